"""Repairs text: removes control characters, and fixes wrongly decoded Unicode."""

from collections.abc import Callable

import ftfy
import pyarrow as pa
import pyarrow.compute as pc
from ftfy.fixes import remove_control_chars, remove_terminal_escapes

from llm_finetune.components.shared.rows.columns import as_text, is_text
from llm_finetune.components.shared.rows.duplicates import string_buffers

# The characters that ftfy's remove_control_chars removes, including the byte-order mark.
_CONTROL = r"[\x00-\x08\x0B\x0E-\x1F\x7F\x{206A}-\x{206F}\x{FEFF}\x{FFF9}-\x{FFFC}]"
# ftfy returns ASCII text with LF line endings unchanged.
_UNUSUAL = rf"{_CONTROL}|\r|[^\x00-\x7F]"
# Markup, quotation marks and ligatures are part of the data.
_FTFY = ftfy.TextFixerConfig(unescape_html=False, uncurl_quotes=False, fix_latin_ligatures=False, explain=False)


def repair_column(column: pa.Array, mode: str) -> tuple[pa.Array, int]:
    """Repairs the texts of a column.

    Args:
        column: Texts; a column of another type is returned unchanged.
        mode: `control` removes control characters and terminal escapes; `unicode` also applies ftfy: mojibake
            (`schÃ¶n`), half- and full-width forms, line endings, NFC.

    Returns:
        The column and the number of changed texts.
    """
    if not is_text(column.type) or not len(column):
        return column, 0
    repair, pattern = _REPAIRS[mode]
    texts = as_text(column)
    if _is_plain(texts):
        return column, 0
    hits = pc.match_substring_regex(texts, pattern).fill_null(False)
    if not pc.any(hits).as_py():
        return column, 0
    old = texts.filter(hits).to_pylist()
    new = [repair(text) for text in old]
    changed = sum(before != after for before, after in zip(old, new, strict=True))
    return pc.replace_with_mask(texts, hits, pa.array(new, pa.string())), changed


def repair_messages(column: pa.Array, mode: str) -> tuple[pa.Array, int]:
    """Repairs the content of messages.

    Args:
        column: Lists of messages, as returned by `conversations.as_messages`.
        mode: See `repair_column`.

    Returns:
        The column and the number of changed messages.
    """
    if not len(column):
        return column, 0
    offsets = column.offsets.to_numpy()  # a slice does not start at 0
    messages = column.values.slice(offsets[0], offsets[-1] - offsets[0])
    parts = [messages.field(name) for name in range(messages.type.num_fields)]
    place = messages.type.get_field_index("content")
    parts[place], changed = repair_column(parts[place], mode)
    if not changed:
        return column, 0
    flat = pa.StructArray.from_arrays(parts, fields=list(messages.type))
    return pa.ListArray.from_arrays(pa.array(offsets - offsets[0]), flat, mask=column.is_null()), changed


def _is_plain(texts: pa.StringArray) -> bool:
    """Returns whether all bytes are plain ASCII text; much faster than the patterns."""
    _, data = string_buffers(texts)
    control = (data < 0x09).any() or (data == 0x0B).any() or ((data >= 0x0D) & (data < 0x20)).any()
    return not (control or (data >= 0x7F).any())


def _without_control(text: str) -> str:
    return remove_control_chars(remove_terminal_escapes(text))


def _fix_text(text: str) -> str:
    return ftfy.fix_text(text, _FTFY)


_REPAIRS: dict[str, tuple[Callable[[str], str], str]] = {
    "control": (_without_control, _CONTROL),
    "unicode": (_fix_text, _UNUSUAL),
}
