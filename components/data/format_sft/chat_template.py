"""The chat template that makes a served model see what it was trained on."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from llm_finetune.components.data.format_sft.template import GAP, Part, Template

_SHAPE = Path(__file__).with_name("chat_template.jinja")


def chat_template(template: Template) -> str:
    """Writes an instruction template as a chat template.

    A row (instruction, input) is the request [system: instruction, user: input]; a row without an input is
    [user: instruction]. Earlier turns are rendered as further prompts, each with its answer and the end-of-turn token.

    Args:
        template: The instruction template.

    Returns:
        Jinja source for a tokenizer's `chat_template`; it needs `eos_token` and `raise_exception`, as transformers
        and vLLM give them.
    """
    pieces: list[str] = []
    always: list[Part] = []  # neighbours that are never left out become one text
    for section in template.sections:
        if template.is_optional(section):
            pieces += [*_concatenation(always), _section(section)]
            always = []
        else:
            always += [*section, Part(GAP, False)]
    pieces += _concatenation([*always, *template.lead])
    return (
        _SHAPE.read_text(encoding="utf-8")
        .replace("«takes_system»", "true" if len(template.fields) == 2 else "false")
        .replace("«prompt»", " ~ ".join(pieces) or "''")
        .replace("«tail»", _quoted(template.tail))
    )


def _section(section: Sequence[Part]) -> str:
    filled = [f"{part.text} != ''" for part in section if part.is_field]
    return f"({' ~ '.join(_concatenation([*section, Part(GAP, False)]))} if {' or '.join(filled)} else '')"


def _concatenation(parts: Sequence[Part]) -> list[str]:
    pieces = []
    for is_field, group in itertools.groupby(parts, key=lambda part: part.is_field):
        texts = [part.text for part in group]
        pieces += texts if is_field else [_quoted("".join(texts))]
    return pieces


def _quoted(text: str) -> str:
    """Returns a Jinja string literal; whatever looks like Jinja inside it is text."""
    escapes = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return "'" + "".join(escapes.get(c) or (c if c.isprintable() else _escaped(c)) for c in text) + "'"


def _escaped(character: str) -> str:
    return character.encode("unicode-escape").decode("ascii")
