"""A run's pages as files that a browser opens, and an index that links them all.

KFP gives an artifact's file no ending, so that a browser shows its source. HTML is copied to a name that ends in
`.html`, Markdown is rendered to a page of the same look.
"""

import html
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from markdown_it import MarkdownIt
from markupsafe import Markup
from rich.console import Console

from llm_finetune.components.shared.pages import write_page
from llm_finetune.components.shared.progress import format_duration
from llm_finetune.pipelines.local.serving import command_to_serve
from llm_finetune.pipelines.local.state import RunState
from llm_finetune.pipelines.run_view.cards import CardRun, Page

INDEX = "index.html"
TEMPLATES = Path(__file__).parent
ENDED = ("done", "cached", "failed")
STYLES = {
    "running": "", "waiting": "soft", "not run": "soft", "done": "good", "cached": "good", "succeeded": "good",
    "failed": "bad", "stopped": "bad", "gate closed": "bad",
}  # fmt: skip
_TITLE = re.compile(r"<title>(.*?)</title>", re.DOTALL)


@dataclass(frozen=True)
class Outcome:
    """How a run stands, as its index says it.

    Attributes:
        state: running, succeeded, failed, stopped, or gate closed.
        reason: Why; may be empty.
        log: The log that says more, or None.
        facts: Figures of the whole run by name.
    """

    state: str
    reason: str = ""
    log: Path | None = None
    facts: dict[str, str] = field(default_factory=dict)


def write_pages(state: RunState, outcome: Outcome) -> None:
    """Writes the pages of cards that have ended since the last time, and the index.

    Args:
        state: The run; its cards' `pages` are filled in.
        outcome: How it stands.

    Raises:
        OSError: If a file cannot be written.
    """
    for card in state.cards.values():
        if card.pages is None and card.state in ENDED:
            card.pages = list(_browsable(card, state.folder / "pages"))
    parameters = json.loads((state.folder / "job.json").read_text(encoding="utf-8"))["arguments"]
    model = state.output("merge-export", "merged_model")
    log = outcome.log.relative_to(state.folder).as_posix() if outcome.log and outcome.log.exists() else ""
    write_page(
        state.folder / INDEX,
        TEMPLATES / "index.html.jinja",
        title=f"Run {state.folder.name}",
        folder=state.folder,
        outcome=outcome,
        log=log,
        cards=[_row(card, state.folder, outcome.state == "running") for card in state.cards.values()],
        styles=STYLES,
        model=model,
        serve=command_to_serve(model, state.output("vllm-serve", "deployment_info")) if model else "",
        parameters=[(name, _as_text(value)) for name, value in parameters.items()],
    )


def finish_pages(console: Console, state: RunState, outcome: Outcome) -> None:
    """Writes pages and index of a run that has ended; says so where that is not possible, such as on a full disk."""
    try:
        write_pages(state, outcome)
    except OSError as error:
        console.print(f"The run's pages could not be written: {error}", style="yellow", markup=False, soft_wrap=True)


def show_index(console: Console, state: RunState) -> None:
    """Prints the link to a run's index, alone on its line."""
    index = state.folder / INDEX
    if index.exists():
        console.print("\nAll pages of this run:", style="bold")
        console.out(index.as_uri())


def markdown_page(text: str, title: str, path: Path) -> str:
    """Renders Markdown as a page of its own, in which HTML is text and nothing is loaded from elsewhere.

    Args:
        text: The Markdown.
        title: Title of the page, unless the Markdown begins with a heading.
        path: HTML file to write.

    Returns:
        The page's title.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    tokens = parser.parse(text)
    if [token.tag for token in tokens[:1]] == ["h1"]:
        title = "".join(part.content for part in tokens[1].children or [])
        tokens = tokens[3:]
    body = parser.renderer.render(tokens, parser.options, {})
    write_page(path, TEMPLATES / "markdown.html.jinja", title=title, body=Markup(body))
    return title


def _browsable(card: CardRun, folder: Path) -> Iterator[Page]:
    """Writes a card's pages and yields them."""
    for output, kind in card.page_types.items():
        source, path = card.outputs.get(output), folder / f"{card.task}-{output}.html"
        if source is None or not source.is_file():
            continue  # a card that failed before it wrote it
        if kind == "system.Markdown":
            title = markdown_page(source.read_text(encoding="utf-8"), card.title, path)
        else:
            folder.mkdir(exist_ok=True)
            shutil.copyfile(source, path)
            found = _TITLE.search(source.read_text(encoding="utf-8"))
            title = html.unescape(found[1]) if found else card.title
        yield Page(output, title, path)


def _row(card: CardRun, folder: Path, goes_on: bool) -> dict[str, object]:
    never = {} if goes_on else {"waiting": "not run", "running": "stopped"}
    return {
        "title": card.title,
        "state": never.get(card.state, card.state),
        "time": format_duration(card.seconds) if card.state in ("done", "failed") else "",
        "links": [(page.title, page.path.relative_to(folder).as_posix()) for page in card.pages or []],
    }


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
