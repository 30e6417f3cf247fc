"""Writes the pages of a run as HTML files, and an index with links to them.

Artifact files of KFP have no extension, so browsers show their source. HTML is copied to a file that ends in `.html`,
Markdown is rendered to an HTML page in the same style.
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
from llm_finetune.pipelines.local.serving import serve_command
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
    """State of a run, for its index.

    Attributes:
        state: running, succeeded, failed, stopped, or gate closed.
        reason: Reason; may be empty.
        log: Log with details, or None.
        facts: Time and memory of the run by name.
    """

    state: str
    reason: str = ""
    log: Path | None = None
    facts: dict[str, str] = field(default_factory=dict)


def write_pages(state: RunState, outcome: Outcome) -> None:
    """Writes the pages of cards that ended since the last call, and the index.

    Args:
        state: The run; sets `pages` of its cards.
        outcome: State of the run.

    Raises:
        OSError: If a file cannot be written.
    """
    for card in state.cards.values():
        if card.pages is None and card.state in ENDED:
            card.pages = list(_write_card_pages(card, state.folder / "pages"))
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
        serve=serve_command(model, state.output("vllm-serve", "deployment_info")) if model else "",
        parameters=[(name, _as_text(value)) for name, value in parameters.items()],
    )


def finish_pages(console: Console, state: RunState, outcome: Outcome) -> None:
    """Writes pages and index of a run that has ended; prints a warning if that fails, for example on a full disk."""
    try:
        write_pages(state, outcome)
    except OSError as error:
        console.print(f"cannot write the pages of the run: {error}", style="yellow", markup=False, soft_wrap=True)


def show_index(console: Console, state: RunState) -> None:
    """Prints the link to a run's index on a line of its own."""
    index = state.folder / INDEX
    if index.exists():
        console.print("\nAll pages of this run:", style="bold")
        console.out(index.as_uri())


def markdown_page(text: str, title: str, path: Path) -> str:
    """Renders Markdown as an HTML page; HTML in it is escaped and images are not loaded.

    Args:
        text: Markdown.
        title: Title of the page, unless the Markdown starts with a heading.
        path: HTML file to write.

    Returns:
        Title of the page.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    tokens = parser.parse(text)
    if [token.tag for token in tokens[:1]] == ["h1"]:
        title = "".join(part.content for part in tokens[1].children or [])
        tokens = tokens[3:]
    body = parser.renderer.render(tokens, parser.options, {})
    write_page(path, TEMPLATES / "markdown.html.jinja", title=title, body=Markup(body))
    return title


def _write_card_pages(card: CardRun, folder: Path) -> Iterator[Page]:
    """Writes a card's pages and yields them."""
    for output, kind in card.page_types.items():
        source, path = card.outputs.get(output), folder / f"{card.task}-{output}.html"
        if source is None or not source.is_file():
            continue  # the card failed before it wrote the page
        if kind == "system.Markdown":
            title = markdown_page(source.read_text(encoding="utf-8"), card.title, path)
        else:
            folder.mkdir(exist_ok=True)
            shutil.copyfile(source, path)
            found = _TITLE.search(source.read_text(encoding="utf-8"))
            title = html.unescape(found[1]) if found else card.title
        yield Page(output, title, path)


def _row(card: CardRun, folder: Path, is_running: bool) -> dict[str, object]:
    final_states = {} if is_running else {"waiting": "not run", "running": "stopped"}
    return {
        "title": card.title,
        "state": final_states.get(card.state, card.state),
        "time": format_duration(card.seconds) if card.state in ("done", "failed") else "",
        "links": [(page.title, page.path.relative_to(folder).as_posix()) for page in card.pages or []],
    }


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
