import inspect
import itertools
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from kfp import dsl

from llm_finetune.components.data.data_report import component, outliers, step
from llm_finetune.components.data.data_report.overview import CardRows, card_rows
from llm_finetune.components.data.data_report.profile import profile
from llm_finetune.components.data.filter_clean.component import filter_clean
from llm_finetune.components.data.format_sft.component import format_sft
from llm_finetune.components.data.train_val_split.component import train_val_split
from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError

SCRIPT = "<script>document.title = 'owned'</script>"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def rows() -> list[dict]:
    wild = [
        {"instruction": f"Explain {SCRIPT}", "input": "", "output": "It is <b>text</b> & nothing else."},
        {
            "instruction": "Wie heißt die Hauptstadt dieses schönen Landes?",
            "input": "",
            "output": "Es ist die Stadt Berlin.",
        },
        {
            "instruction": "Write to jane.doe@mail.example.com",
            "input": "now",
            "output": "Sent it to jane.doe@mail.example.com.",
        },
        {"instruction": "Count as far as you can", "input": "", "output": "".join(f"{i} " for i in range(400, 800))},
        {"instruction": "Say nothing at all", "input": "", "output": ""},
        {"instruction": "x", "input": "", "output": "y"},
    ]
    plain = [
        {
            "instruction": "Tell me what the number is",
            "input": f"number {i}",
            "output": f"The number is written as {i}.",
        }
        for i in range(40)
    ]
    return wild + plain + [plain[3], plain[3], plain[7]]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """The data cards, run in order on rows of every kind."""
    folder = tmp_path_factory.mktemp("path")
    made = {name: dsl.Dataset(uri=str(folder / name)) for name in (*step.STAGES, "dropped_rows")}
    made["raw_dataset"].metadata.update(source="rows.jsonl", revision="abc")
    with tables.ShardWriter(made["raw_dataset"].path, pa.Table.from_pylist(rows()).schema) as writer:
        writer.write(pa.Table.from_pylist(rows()))

    def run(card, *names, **settings):
        card.python_func(*(made[name] for name in names), dsl.HTML(uri=str(folder / f"{card.name}.html")), **settings)

    run(filter_clean, "raw_dataset", "clean_dataset", "dropped_rows")
    run(train_val_split, "clean_dataset", "train_dataset", "val_dataset", near_threshold=0.0, val_ratio=0.2)
    run(format_sft, "train_dataset", "val_dataset", "train_sft", "val_sft")
    # Token rows as Tokenize writes them, one token per word; the row with the long answer is too long for it.
    for split in ("train", "val"):
        sft = tables.head(made[f"{split}_sft"].path, 100).to_pylist()
        lengths = [len((row["prompt"] + row["completion"]).split()) for row in sft]
        fits = [length for length in lengths if length < 300]
        table = pa.table({"input_ids": [[0] * n for n in fits], "labels": [[0] * n for n in fits]})
        if split == "train":
            table = pa.table({"input_ids": [[0] * sum(fits)], "labels": [[0] * sum(fits)], "seq_lengths": [fits]})
        with tables.ShardWriter(made[f"{split}_tokens"].path, table.schema) as writer:
            writer.write(table)
        made[f"{split}_tokens"].metadata.update(
            documents=len(lengths), rows=table.num_rows, tokens=sum(fits), supervised_tokens=sum(fits) // 2, cut=0,
            dropped_overlength=len(lengths) - len(fits), dropped_prompt_only=0,
        )  # fmt: skip
    return made


@pytest.fixture(scope="module")
def pages(artifacts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    made = {name: dsl.HTML(uri=str(folder / f"{name}.html")) for name in step.PAGES}
    stages = {name: artifacts[name] for name in step.STAGES}
    component.data_report.python_func(**stages, **made)
    return {name: Path(page.path) for name, page in made.items()}


def test_the_funnel_accounts_for_every_row(artifacts):
    way = card_rows({n: a.path for n, a in artifacts.items()}, {n: a.metadata for n, a in artifacts.items()})
    assert way[0] == CardRows("Load Dataset", 49, {})
    assert way[1] == CardRows("Filter & Clean", 44, {"missing output": 1, "too short": 1, "duplicate": 3})
    assert [s.rows for s in way[2:4]] == [44, 44]
    assert way[4].lost == {"too long in tokens": 1} and way[4].rows == 43
    assert all(before.rows - after.rows == sum(after.lost.values()) for before, after in itertools.pairwise(way))
    lost = {**artifacts, "clean_dataset": dsl.Dataset(uri=artifacts["clean_dataset"].path)}
    way = card_rows({n: a.path for n, a in lost.items()}, {n: a.metadata for n, a in lost.items()})
    assert way[1].lost == {"no recorded reason": 5}


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        (
            "clean_dataset",
            {"rows_in": 60},
            "clean_dataset was made from 60 rows, but raw_dataset has 49: rows were lost",
        ),
        ("val_dataset", {"rows_in": 43}, "val_dataset was made from 43 rows, but clean_dataset has 44: rows were lost"),
        ("train_sft", {"rows_in": 1000}, "train_sft was made from 1,000 rows, but train_dataset has "),
        ("val_tokens", {"documents": 2}, "val_tokens was made from 2 rows, but val_sft has "),
    ],
)
def test_a_path_that_does_not_close_is_refused(artifacts, name, wrong, message):
    metadata = {n: a.metadata for n, a in artifacts.items()}
    metadata[name] = metadata[name] | wrong
    with pytest.raises(UserError) as error:
        card_rows({n: a.path for n, a in artifacts.items()}, metadata)
    assert message in str(error.value)


def test_a_dataset_in_figures(artifacts):
    found = profile(artifacts["raw_dataset"].path, step.Settings())
    assert (found.rows, found.empty_outputs, found.layout) == (49, 1, "instruction")
    assert (found.clusters, found.repeated) == (2, 3)
    assert [(cluster.size, cluster.rows) for cluster in found.largest] == [(3, (9, 46)), (2, (13, 48))]
    assert found.personal == Counter(email=2)
    assert found.personal_rows == [("email", "Write to [EMAIL] → now → Sent it to [EMAIL].")]
    assert found.languages["de"] == 1 and found.languages["en"] > 35 and sum(found.languages.values()) == 49
    lengths = [sum(len(value.strip()) for value in row.values()) for row in rows()]
    assert found.longest[0] == (3, lengths[3]) and len(found.longest) == 10
    assert [length for _, length in found.longest] == sorted(lengths, reverse=True)[:10]
    assert found.outliers[0] == outliers.Outlier(3, "74 % digits, usually 6 %")
    assert not any("jane.doe" in text for text in found.shown_texts.values())
    assert sum(profile(artifacts["raw_dataset"].path, step.Settings(language_rows=10)).languages.values()) == 10


def test_the_same_figures_whatever_the_row_groups(artifacts, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROWS_PER_GROUP", 7)
    table = tables.head(artifacts["raw_dataset"].path, 100)
    with tables.ShardWriter(tmp_path / "small", table.schema, rows_per_shard=20) as writer:
        for batch in table.to_batches(max_chunksize=7):
            writer.write(batch)
    monkeypatch.undo()
    one, many = (
        profile(path, step.Settings(language_rows=9)) for path in (artifacts["raw_dataset"].path, tmp_path / "small")
    )
    for name in ("rows", "largest", "longest", "outliers", "shown_texts", "personal", "languages"):
        assert getattr(one, name) == getattr(many, name), name


def test_the_defaults_of_the_card_are_those_of_its_settings():
    signature = inspect.signature(component.data_report.python_func).parameters
    settings = step.Settings()
    assert {name: signature[name].default for name in step.Settings.model_fields} == settings.model_dump()


def test_it_needs_no_torch():
    code = "import sys; from llm_finetune.components.data.data_report import step; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "False"


def test_outliers_say_why():
    usual = [f"the quick brown fox number {'abcdefgh'[i % 8]} jumps" for i in range(50)]
    texts = [*usual, "9" * 40, "", "ü" * 30, "z" * 4000]
    odd = outliers.find_outliers(outliers.measure(pa.array(texts)), 10)
    why = {item.row: item.reason for item in odd}
    assert sorted(why) == [50, 51, 52, 53]
    assert "100 % digits, usually 0 %" in why[50] and "100 % beyond ASCII" in why[52]
    assert "longer" in why[53] and "letters" not in why[53]
    assert outliers.find_outliers(outliers.measure(pa.array(usual[:9])), 10) == []


def test_pages_show_what_was_asked_for(pages):
    text = {name: page.read_text() for name, page in pages.items()}
    for heading in ("Rows by card", "Splits", "Leakage", "Training data: length in tokens", "Format"):
        assert f"<h2>{heading}</h2>" in text["report"]
    assert "1 missing output, 1 too short, 3 duplicate" in text["report"] and "rows.jsonl at abc" in text["report"]
    for heading in (
        "Length in characters",
        "Duplicates",
        "Personal data and secrets",
        "Languages",
        "Longest rows",
        "Outliers",
    ):
        assert all(f"<h2>{heading}</h2>" in text[name] for name in ("raw_report", "train_report", "val_report"))
    assert "Length in tokens" in text["train_report"] and "Length in tokens" not in text["raw_report"]


def test_pages_need_no_network_and_hold_no_markup_of_the_data(pages):
    for page in pages.values():
        text = page.read_text()
        assert "jane.doe" not in text and "<script" not in text and "<b>text" not in text
        assert not re.search(r"(?:src|href|url)\s*[=(]", text)
    assert "&lt;script&gt;" in pages["raw_report"].read_text()


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed")
@pytest.mark.parametrize(("name", "width"), [("report", 400), ("raw_report", 1280)])
def test_pages_open_in_a_browser(pages, name, width, tmp_path):
    shown = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
         "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path}", f"--window-size={width},900",
         "--virtual-time-budget=2000", "--dump-dom", f"file://{pages[name]}"],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    assert (
        re.search(r"<title>(Data Report|Raw data)</title>", shown)
        and "owned" not in re.search("<title>.*?</title>", shown)[0]
    )
    assert shown.count("<rect") == pages[name].read_text().count("<rect") > 5


def test_empty_and_strange_datasets(tmp_path, artifacts):
    def written(name, table):
        with tables.ShardWriter(tmp_path / name, table.schema) as writer:
            writer.write(table)
        return tmp_path / name

    nothing = profile(written("none", pa.Table.from_pylist(rows()).slice(0, 0)), step.Settings())
    assert (nothing.rows, nothing.longest, nothing.outliers, nothing.clusters) == (0, [], [], 0)
    said = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}] * 2
    chat = profile(written("chat", pa.Table.from_pylist(said)), step.Settings())
    assert chat.layout == "messages" and chat.largest[0].size == 2
    assert profile(written("text", pa.table({"text": ["one", "two"]})), step.Settings()).layout == "plain text"
    with pytest.raises(UserError, match="no such column"):
        profile(written("other", pa.table({"a": [1]})), step.Settings())


def test_unpacked_tokens_are_counted_too(artifacts):
    drawn = step.token_lengths(artifacts["val_tokens"].path)
    table = tables.head(artifacts["val_tokens"].path, 1000)
    lengths = np.array([len(row) for row in table["input_ids"].to_pylist()])
    assert (drawn.rows, drawn.minimum, drawn.maximum, drawn.unit) == (
        len(lengths),
        lengths.min(),
        lengths.max(),
        "tokens",
    )


def test_card_refuses_a_country_that_does_not_exist(artifacts, tmp_path, capsys):
    made = {name: dsl.HTML(uri=str(tmp_path / f"{name}.html")) for name in step.PAGES}
    with pytest.raises(SystemExit):
        component.data_report.python_func(**{n: artifacts[n] for n in step.STAGES}, **made, phone_region="XX")
    assert "phone_region = 'XX'" in capsys.readouterr().err and not list(tmp_path.iterdir())
