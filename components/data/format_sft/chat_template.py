"""Generates the chat template that renders requests like the training data."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from llm_finetune.components.data.format_sft.template import SECTION_SEPARATOR, Part, Template

_SKELETON = Path(__file__).with_name("chat_template.jinja")


def chat_template(template: Template) -> str:
    """Converts an instruction template to a chat template.

    A row with instruction and input corresponds to the request [system: instruction, user: input], a row without input
    to [user: instruction]. Earlier turns are rendered as prompts with their answers and the end-of-turn token.

    Args:
        template: The instruction template.

    Returns:
        Jinja source for a tokenizer's `chat_template`. It uses `eos_token` and `raise_exception`, which transformers
        and vLLM provide.
    """
    pieces: list[str] = []
    required: list[Part] = []  # adjacent required parts are merged into one text
    for section in template.sections:
        if template.is_optional(section):
            pieces += [*_concatenation(required), _section(section)]
            required = []
        else:
            required += [*section, Part(SECTION_SEPARATOR, False)]
    pieces += _concatenation([*required, *template.lead])
    return (
        _SKELETON.read_text(encoding="utf-8")
        .replace("«takes_system»", "true" if len(template.fields) == 2 else "false")
        .replace("«prompt»", " ~ ".join(pieces) or "''")
        .replace("«tail»", _quoted(template.tail))
    )


def _section(section: Sequence[Part]) -> str:
    filled = [f"{part.text} != ''" for part in section if part.is_field]
    return (
        f"({' ~ '.join(_concatenation([*section, Part(SECTION_SEPARATOR, False)]))} if {' or '.join(filled)} else '')"
    )


def _concatenation(parts: Sequence[Part]) -> list[str]:
    pieces = []
    for is_field, group in itertools.groupby(parts, key=lambda part: part.is_field):
        texts = [part.text for part in group]
        pieces += texts if is_field else [_quoted("".join(texts))]
    return pieces


def _quoted(text: str) -> str:
    """Returns a Jinja string literal. Jinja syntax in the text is not interpreted."""
    escapes = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return "'" + "".join(escapes.get(c) or (c if c.isprintable() else _escaped(c)) for c in text) + "'"


def _escaped(character: str) -> str:
    return character.encode("unicode-escape").decode("ascii")
