"""A local run's pages: what a browser gets of what the cards have written, and the links to it."""

import html
import io
import json
import re

import pytest
from browser import needs_chromium, opened
from rich.console import Console

from llm_finetune.pipelines.compile import compile_pipeline
from llm_finetune.pipelines.local.pages import INDEX, Outcome, finish_pages, markdown_page, show_index, write_pages
from llm_finetune.pipelines.local.report import show_pages
from llm_finetune.pipelines.local.state import RunState
from llm_finetune.pipelines.run_view.cards import read_cards

REPORT = """# Quality Gate: **closed** by `loss`

| rule | measured |
|:--|--:|
| lora\\_rank <b>bold</b> | 16 |

<script>document.title = 'owned'</script>

- [the docs](https://docs.example.com/a?b=c&d) and ![a picture](https://pictures.example.com/1.png)
- [bad](javascript:alert(1))

```bash
curl 'http://127.0.0.1/v1' -d '{"a": "<b>"}'
```
"""
PAGE = "<!doctype html>\n<html><head><title>Filter &amp; Clean</title></head><body><h1>Filter</h1></body></html>"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return compile_pipeline(tmp_path_factory.mktemp("compiled") / "pipeline.yaml")


@pytest.fixture
def state(pipeline, tmp_path):
    """A run in a folder whose name has to be encoded in an address; two cards have ended, the third has failed."""
    folder = tmp_path / "läufe [old] #1" / "2026-01-02-030405"
    state = RunState(pipeline, folder, tmp_path / "cache")
    (folder / "job.json").write_text(json.dumps({"arguments": {"model_name": "<i>m</i>", "recipe": {"seed": "ü"}}}))
    for task, status, files in (
        ("filter-clean", "SUCCESS", {"preview": PAGE, "executor_output.json": "{}"}),
        ("quality-gate", "SUCCESS", {"gate_report": REPORT}),
        ("data-report", "FAILURE", {"report": PAGE.replace("Filter &amp; Clean", "Data Report")}),
    ):
        outputs = folder / "artifacts" / "run" / task
        outputs.mkdir(parents=True)
        for name, text in files.items():
            (outputs / name).write_text(text)
        state.read(f"INFO - Executing task '{task}'\n")
        state.read("a line of the card\n")
        state.read(f"Task '{task}' finished with status {status}\n")
    return state


def printed(show, state, width=40):
    console = Console(file=io.StringIO(), width=width, highlight=False)
    show(console, state)
    return console.file.getvalue()


def test_the_pipeline_says_which_outputs_are_pages(pipeline):
    cards = read_cards(pipeline)
    assert cards["quality-gate"].pages == {"gate_report": "system.Markdown"}
    assert cards["data-report"].pages == dict.fromkeys(
        ("report", "raw_report", "train_report", "val_report"), "system.HTML"
    )
    assert cards["check-recipe"].pages == {}
    assert sum(len(card.pages) for card in cards.values()) == 17


def test_markdown_becomes_a_page_of_its_own(tmp_path):
    title = markdown_page(REPORT, "Quality Gate", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert title == "Quality Gate: closed by loss"
    assert page.startswith("<!doctype html>") and f"<title>{title}</title>" in page and page.count("<h1>") == 1
    assert '<th style="text-align:right">measured</th>' in page and '<td style="text-align:right">16</td>' in page
    assert '<td style="text-align:left">lora_rank &lt;b&gt;bold&lt;/b&gt;</td>' in page
    assert "&lt;script&gt;" in page and "<script" not in page and "<b>bold" not in page
    assert re.findall(r'href="(.*?)"', page) == [
        "https://docs.example.com/a?b=c&amp;d", "https://pictures.example.com/1.png"
    ]  # fmt: skip
    assert "<img" not in page  # nothing is loaded from elsewhere
    shown = html.unescape(re.search(r"<pre><code.*?>(.*?)</code>", page, re.DOTALL)[1])
    assert shown == """curl 'http://127.0.0.1/v1' -d '{"a": "<b>"}'\n"""


def test_markdown_without_a_heading_has_the_cards_name(tmp_path):
    assert markdown_page("words\n\n# later\n", "Report <1>", tmp_path / "page.html") == "Report <1>"
    assert "<title>Report &lt;1&gt;</title>" in (tmp_path / "page.html").read_text()


def test_the_index_links_the_pages_of_the_cards_that_have_ended(state):
    write_pages(
        state, Outcome("failed", "Data Report failed: no <rows>", state.cards["data-report"].log, {"time": "1:21"})
    )
    index = (state.folder / INDEX).read_text()
    assert re.findall(r'<a href="(.*?)">(.*?)</a>', index) == [
        ("logs/09-data-report.log", "logs/09-data-report.log"),
        ("pages/filter-clean-preview.html", "Filter &amp; Clean"),
        ("pages/data-report-report.html", "Data Report"),
        ("pages/quality-gate-gate_report.html", "Quality Gate: closed by loss"),
    ]
    assert all((state.folder / link).is_file() for link in re.findall(r'<a href="(.*?)">', index))
    assert (state.folder / "pages" / "filter-clean-preview.html").read_text() == PAGE
    assert "Data Report failed: no &lt;rows&gt;" in index and "&lt;i&gt;m&lt;/i&gt;" in index and "&#34;ü&#34;" in index
    states = dict(re.findall(r'<tr><td>(.*?)</td><td class="\w*">(.*?)</td>', index))
    assert (states["Data Report"], states["Quality Gate"], states["Evaluate"]) == ("failed", "done", "not run")


def test_a_card_that_runs_when_the_run_is_stopped_is_shown_as_stopped(state):
    state.read("INFO - Executing task 'evaluate'\n")
    write_pages(state, Outcome("running"))
    assert '<td>Evaluate</td><td class="">running</td>' in (state.folder / INDEX).read_text()
    write_pages(state, Outcome("stopped"))
    assert '<td>Evaluate</td><td class="bad">stopped</td>' in (state.folder / INDEX).read_text()


def test_each_link_stands_alone_on_its_line_and_leads_to_its_page(state):
    write_pages(state, Outcome("failed"))
    lines = printed(show_pages, state).splitlines()
    links = [line for line in lines if "://" in line]
    assert links == [
        (state.folder / "pages" / "data-report-report.html").as_uri(), (state.folder / INDEX).as_uri()
    ]  # fmt: skip
    assert lines[-2:] == ["All pages of this run:", links[-1]]
    assert all("l%C3%A4ufe%20%5Bold%5D%20%231" in link for link in links)


def test_pages_that_cannot_be_written_are_told_and_nothing_is_linked(state):
    (state.folder / "pages").write_text("in the way")
    assert "cannot write the pages of the run: " in printed(
        lambda console, state: finish_pages(console, state, Outcome("succeeded")), state
    )
    assert printed(show_index, state) == ""


@needs_chromium
def test_a_rendered_page_and_the_index_open_in_a_browser(state, tmp_path):
    write_pages(state, Outcome("gate closed", "no"))
    addresses = re.findall(r"^file://.+$", printed(show_index, state), re.MULTILINE)
    index = opened(*addresses, tmp_path)
    assert "<title>Run 2026-01-02-030405</title>" in index and "<h1>Run 2026-01-02-030405</h1>" in index
    page = opened((state.folder / "pages" / "quality-gate-gate_report.html").as_uri(), tmp_path)
    assert "<title>Quality Gate: closed by loss</title>" in page and "&lt;!doctype" not in page
