r"""Instruction templates: text with fields, cut into the prompt and the completion.

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
GAP = "\n\n"  # what divides sections


@dataclass(frozen=True)
class Part:
    """A piece of a template.

    Attributes:
        text: Literal text, or the name of a field.
        is_field: Which of the two.
    """

    text: str
    is_field: bool


@dataclass(frozen=True)
class Template:
    """A parsed template.

    Attributes:
        text: As it was written, with true newlines.
        sections: Blocks that stand before the one with the output, each without the blank line that ends it.
        lead: The output's block up to the output.
        tail: What follows the output.
        drop_empty_sections: Whether a section whose fields are all empty is left out.
    """

    text: str
    sections: tuple[tuple[Part, ...], ...]
    lead: tuple[Part, ...]
    tail: str
    drop_empty_sections: bool

    @property
    def fields(self) -> set[str]:
        """The fields that the prompt shows."""
        return {part.text for part in (*sum(self.sections, ()), *self.lead) if part.is_field}

    def is_optional(self, section: Sequence[Part]) -> bool:
        """Tells whether a section can be left out."""
        return self.drop_empty_sections and any(part.is_field for part in section)

    def prompts(self, instruction: pa.StringArray, input: pa.StringArray) -> pa.StringArray:
        """Returns everything that stands before the output.

        Args:
            instruction: Instructions without null.
            input: As many inputs without null.

        Returns:
            One prompt per row.
        """
        values = {"instruction": instruction, "input": input}
        rendered = []
        for section in self.sections:
            block = _rendered([*section, Part(GAP, False)], values)
            if self.is_optional(section):
                names = [part.text for part in section if part.is_field]
                filled = pc.not_equal(_joined([values[name] for name in names]), "")
                block = pc.if_else(filled, block, "")
            rendered.append(block)
        return _joined([*rendered, _rendered(self.lead, values)], len(instruction))

    def completions(self, output: pa.StringArray) -> pa.StringArray:
        """Returns the output with what follows it in the template."""
        return _joined([output, self.tail])


def parse(text: str, drop_empty_sections: bool) -> Template:
    r"""Parses a template.

    Args:
        text: Text with `{instruction}`, `{input}` and `{output}`. A written `\n` is a newline, `{{` and `}}` braces.
        drop_empty_sections: Whether a section whose fields are all empty is left out.

    Returns:
        The template.

    Raises:
        UserError: If a field is unknown, missing, twice or behind the output.
    """
    text = text.replace("\\n", "\n")
    _check(text)
    sections: list[tuple[Part, ...]] = []
    blocks = text.split(GAP)
    for i, block in enumerate(blocks):
        parts = _parts(block)
        place = next((at for at, part in enumerate(parts) if part == Part("output", True)), None)
        if place is not None:
            after = [*parts[place + 1 :], *(Part(GAP + rest.text, False) for rest in _literals(blocks[i + 1 :]))]
            tail = "".join(part.text for part in after)
            return Template(text, tuple(sections), tuple(parts[:place]), tail, drop_empty_sections)
        sections.append(tuple(parts))
    raise AssertionError("a checked template has an output")


def _check(text: str) -> None:
    try:
        found = list(string.Formatter().parse(text))
    except ValueError as error:
        raise UserError(f"template: {error}. Write {{{{ and }}}} for braces that are text") from None
    names = [name for _, name, _, _ in found if name is not None]
    for _, name, form, conversion in found:
        if name is not None and name not in FIELDS:
            shown = ", ".join(f"{{{field}}}" for field in FIELDS)
            raise UserError(
                f"template: unknown field {{{name}}}{nearest(name, FIELDS)} (fields: {shown}; "
                "write {{ and }} for braces that are text)"
            )
        if form or conversion:
            raise UserError(f"template: the field {{{name}}} takes no format; write {{{name}}} alone")
    if "output" not in names:
        raise UserError("template: {output} is missing; it marks where the answer, which is learned, begins")
    if names.count("output") > 1:
        raise UserError("template: {output} is there twice; the model would see the answer that it should give")
    behind = names[names.index("output") + 1 :]
    if behind:
        raise UserError(
            f"template: {{output}} stands before {{{behind[0]}}}; the model can't answer what it has not seen"
        )
    if len(names) == 1:
        raise UserError("template: neither {instruction} nor {input} is there; the model would not see what is asked")


def _parts(block: str) -> list[Part]:
    parts: list[Part] = []
    for literal, name, _, _ in string.Formatter().parse(block):
        if literal:
            parts.append(Part(literal, False))
        if name is not None:
            parts.append(Part(name, True))
    return parts


def _literals(blocks: list[str]) -> list[Part]:
    return [Part("".join(part.text for part in _parts(block)), False) for block in blocks]


def _rendered(parts: Sequence[Part], values: dict[str, pa.StringArray]) -> pa.StringArray | str:
    pieces = [values[part.text] if part.is_field else part.text for part in parts]
    return _joined(pieces) if any(part.is_field for part in parts) else "".join(part.text for part in parts)


def _joined(pieces: Sequence[pa.StringArray | str], rows: int | None = None) -> pa.StringArray:
    if rows is not None and all(isinstance(piece, str) for piece in pieces):
        return pa.repeat(pa.scalar("".join(str(piece) for piece in pieces)), rows)
    return pc.binary_join_element_wise(*pieces, "") if pieces else ""
