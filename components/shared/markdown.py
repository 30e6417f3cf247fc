"""Markdown tables: plain values are escaped here, and nowhere else."""

import re
from collections.abc import Iterable, Sequence


class Markdown(str):
    """Text that is Markdown already; a table shows it with its markup."""

    __slots__ = ()


def code(value: object) -> Markdown:
    """Returns a value as a code span, delimited by more backticks than any run of them inside."""
    text = str(value)
    fence = "`" * (max((len(run) for run in re.findall(r"`+", text)), default=0) + 1)
    padding = " " if text.startswith("`") or text.endswith("`") else ""
    return Markdown(f"{fence}{padding}{text}{padding}{fence}")


def cell(value: object) -> str:
    """Returns a value as the text of a table cell, on one line.

    Args:
        value: `Markdown` keeps its markup. In anything else no character is taken for markup; booleans are `yes` and
            `no`, integers have thousands separators, floats four significant digits.
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = " ".join(str(value).split())
    return re.sub(r"\|" if isinstance(value, Markdown) else r"[\\|<>*_`\[\]]", r"\\\g<0>", text)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Returns the lines of a table.

    Args:
        header: Column names, in Markdown; empty strings for a table without a header.
        rows: One value per column; see `cell`.
    """
    cells = [[cell(Markdown(name)) for name in header], *([cell(value) for value in row] for row in rows)]
    lines = [f"| {' | '.join(line)} |" for line in cells]
    return [lines[0], "|" + "---|" * len(header), *lines[1:]]
