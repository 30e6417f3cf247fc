r"""Instruction templates: text with fields, split into prompt and completion.

### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n{output}
╰─ section ──────────────────╯    ╰─ section ─────────╯    ╰ lead ───────╯╰ completion
"""

import string
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from llm_finetune.components.shared.errors import UserError, nearest

FIELDS = ("instruction", "input", "output")
SECTION_SEPARATOR = "\n\n"  # between sections


@dataclass(frozen=True)
class Part:
    """A piece of a template.

    Attributes:
        text: Literal text, or the name of a field.
        is_field: Whether `text` is the name of a field.
    """

    text: str
    is_field: bool


@dataclass(frozen=True)
class Template:
    """A parsed template.

    Attributes:
        text: Source of the template, with newlines.
        sections: Blocks before the block with the output, without the blank lines between them.
        lead: Part of the last block before the output.
        tail: Text after the output.
        drop_empty_sections: Whether to omit a section if all its fields are empty.
    """

    text: str
    sections: tuple[tuple[Part, ...], ...]
    lead: tuple[Part, ...]
    tail: str
    drop_empty_sections: bool

    @property
    def fields(self) -> set[str]:
        """Fields in the prompt."""
        return {part.text for part in (*sum(self.sections, ()), *self.lead) if part.is_field}

    def is_optional(self, section: Sequence[Part]) -> bool:
        """Returns whether a section can be omitted."""
        return self.drop_empty_sections and any(part.is_field for part in section)

    def prompts(self, instruction: pa.StringArray, input: pa.StringArray) -> pa.StringArray:
        """Renders everything before the output.

        Args:
            instruction: Instructions without null.
            input: As many inputs without null.

        Returns:
            One prompt per row.
        """
        values = {"instruction": instruction, "input": input}
        rendered = []
        for section in self.sections:
            block = _render([*section, Part(SECTION_SEPARATOR, False)], values)
            if self.is_optional(section):
                names = [part.text for part in section if part.is_field]
                filled = pc.not_equal(_join([values[name] for name in names]), "")
                block = pc.if_else(filled, block, "")
            rendered.append(block)
        return _join([*rendered, _render(self.lead, values)], len(instruction))

    def completions(self, output: pa.StringArray) -> pa.StringArray:
        """Renders the output and the text after it."""
        return _join([output, self.tail])


def parse(text: str, drop_empty_sections: bool) -> Template:
    r"""Parses a template.

    Args:
        text: Text with `{instruction}`, `{input}` and `{output}`. `\n` is a newline, `{{` and `}}` are braces.
        drop_empty_sections: Whether to omit a section if all its fields are empty.

    Returns:
        The template.

    Raises:
        UserError: If a field is unknown, missing, used twice, or after the output.
    """
    text = text.replace("\\n", "\n")
    _check(text)
    sections: list[tuple[Part, ...]] = []
    blocks = text.split(SECTION_SEPARATOR)
    for i, block in enumerate(blocks):
        parts = _parse_parts(block)
        place = next((at for at, part in enumerate(parts) if part == Part("output", True)), None)
        if place is not None:
            after = [
                *parts[place + 1 :],
                *(Part(SECTION_SEPARATOR + rest.text, False) for rest in _literals(blocks[i + 1 :])),
            ]
            tail = "".join(part.text for part in after)
            return Template(text, tuple(sections), tuple(parts[:place]), tail, drop_empty_sections)
        sections.append(tuple(parts))
    raise AssertionError("a checked template has an output")


def _check(text: str) -> None:
    try:
        found = list(string.Formatter().parse(text))
    except ValueError as error:
        raise UserError(f"template: {error}. Use {{{{ and }}}} for literal braces") from None
    names = [name for _, name, _, _ in found if name is not None]
    for _, name, form, conversion in found:
        if name is not None and name not in FIELDS:
            shown = ", ".join(f"{{{field}}}" for field in FIELDS)
            raise UserError(
                f"template: unknown field {{{name}}}{nearest(name, FIELDS)} (fields: {shown}; "
                "use {{ and }} for literal braces)"
            )
        if form or conversion:
            raise UserError(f"template: the field {{{name}}} supports no format specification; use {{{name}}}")
    if "output" not in names:
        raise UserError("template: {output} is missing; it marks the answer that the model is trained on")
    if names.count("output") > 1:
        raise UserError("template: {output} occurs twice; the answer would be part of the prompt")
    after = names[names.index("output") + 1 :]
    if after:
        raise UserError(f"template: {{output}} comes before {{{after[0]}}}; the prompt must contain all other fields")
    if len(names) == 1:
        raise UserError("template: {instruction} and {input} are both missing; the prompt would not depend on the row")


def _parse_parts(block: str) -> list[Part]:
    parts: list[Part] = []
    for literal, name, _, _ in string.Formatter().parse(block):
        if literal:
            parts.append(Part(literal, False))
        if name is not None:
            parts.append(Part(name, True))
    return parts


def _literals(blocks: list[str]) -> list[Part]:
    return [Part("".join(part.text for part in _parse_parts(block)), False) for block in blocks]


def _render(parts: Sequence[Part], values: dict[str, pa.StringArray]) -> pa.StringArray | str:
    pieces = [values[part.text] if part.is_field else part.text for part in parts]
    return _join(pieces) if any(part.is_field for part in parts) else "".join(part.text for part in parts)


def _join(pieces: Sequence[pa.StringArray | str], rows: int | None = None) -> pa.StringArray:
    if rows is not None and all(isinstance(piece, str) for piece in pieces):
        return pa.repeat(pa.scalar("".join(str(piece) for piece in pieces)), rows)
    return pc.binary_join_element_wise(*pieces, "") if pieces else ""
