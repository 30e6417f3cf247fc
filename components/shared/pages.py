"""Report pages: one self-contained HTML file each, no script, no network."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from llm_finetune.components.shared.files import write_text


def write_page(path: str | Path, template: str | Path, **values: Any) -> None:
    """Renders a page and writes it.

    Args:
        path: The file to write.
        template: A Jinja template file that extends `page.html.jinja`. Everything in `values` is escaped.
        **values: What the template shows; `title` heads the page.
    """
    write_text(path, _environment(Path(template).parent).get_template(Path(template).name).render(**values))


def cut(value: Any, characters: int) -> str:
    """Returns a value as text of at most so many characters, ended by `…` where it was cut."""
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
