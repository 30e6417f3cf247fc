"""HTML pages of cards: self-contained files without scripts and network access."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import jinja2

from llm_finetune.components.shared.files import write_text


def write_page(path: str | Path, template: str | Path, **values: object) -> None:
    """Renders a page and writes it.

    Args:
        path: File to write.
        template: Jinja template that extends `page.html.jinja`. All values are escaped.
        **values: Variables of the template, among them `title`.
    """
    write_text(path, _environment(Path(template).parent).get_template(Path(template).name).render(**values))


def cut(value: object, characters: int) -> str:
    """Returns a value as text of at most `characters` characters; longer text ends in `…`."""
    text = value if isinstance(value, str) else "" if value is None else str(value)
    return text if len(text) <= characters else text[: characters - 1] + "…"


def bars(counts: Sequence[int], width: float = 720.0, height: float = 120.0) -> list[dict[str, float]]:
    """Returns the rectangles of a histogram for an inline SVG.

    Args:
        counts: Count per bin, left to right.
        width: Width of the drawing in pixels.
        height: Height of the drawing in pixels.

    Returns:
        `x`, `y`, `width`, `height` of each bin.
    """
    highest = max([*counts, 1])
    step = width / max(len(counts), 1)
    return [
        {"x": i * step, "y": height * (1 - n / highest), "width": step * 0.9, "height": height * n / highest}
        for i, n in enumerate(counts)
    ]


@cache
def _environment(folder: Path) -> jinja2.Environment:
    loader = jinja2.FileSystemLoader([folder, Path(__file__).parent])
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cut"] = cut
    return environment
