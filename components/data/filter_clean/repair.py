"""Repairs text: control characters, and Unicode that a wrong decoding has broken."""

from collections.abc import Callable

import ftfy
import pyarrow as pa
import pyarrow.compute as pc
from ftfy.fixes import remove_control_chars, remove_terminal_escapes

from llm_finetune.components.shared.rows.columns import as_text, is_text
from llm_finetune.components.shared.rows.duplicates import bytes_of

# What ftfy's remove_control_chars takes out: characters that mean nothing in text, the byte-order mark among them.
_CONTROL = r"[\x00-\x08\x0B\x0E-\x1F\x7F\x{206A}-\x{206F}\x{FEFF}\x{FFF9}-\x{FFFC}]"
# Plain ASCII with single line feeds is what ftfy would return unchanged.
_UNUSUAL = rf"{_CONTROL}|\r|[^\x00-\x7F]"
# Code and mark-up are data here, and so are the quotation marks that an author has chosen.
_FTFY = ftfy.TextFixerConfig(unescape_html=False, uncurl_quotes=False, fix_latin_ligatures=False, explain=False)


def repaired(column: pa.Array, mode: str) -> tuple[pa.Array, int]:
    """Repairs the texts of a column.

    Args:
        column: Texts; a column of anything else is returned as it is.
        mode: `control` removes control characters and terminal escapes; `unicode` also mends what ftfy can: mojibake
            (`schÃ¶n`), half- and full-width forms, line ends, composition (NFC).

    Returns:
        The column and how many of its texts have changed.
    """
    if not is_text(column.type) or not len(column):
        return column, 0
    repair, pattern = _WAYS[mode]
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


def repaired_messages(column: pa.Array, mode: str) -> tuple[pa.Array, int]:
    """Repairs what the messages of conversations say.

    Args:
        column: Lists of messages, as `conversations.as_messages` gives.
        mode: As in `repaired`.

    Returns:
        The column and how many of its messages have changed.
    """
    if not len(column):
        return column, 0
    offsets = column.offsets.to_numpy()  # of a slice, they begin anywhere
    messages = column.values.slice(offsets[0], offsets[-1] - offsets[0])
    parts = [messages.field(name) for name in range(messages.type.num_fields)]
    place = messages.type.get_field_index("content")
    parts[place], changed = repaired(parts[place], mode)
    if not changed:
        return column, 0
    flat = pa.StructArray.from_arrays(parts, fields=list(messages.type))
    return pa.ListArray.from_arrays(pa.array(offsets - offsets[0]), flat, mask=column.is_null()), changed


def _is_plain(texts: pa.StringArray) -> bool:
    """Tells whether all bytes are of ordinary ASCII text, many times faster than the patterns do."""
    _, data = bytes_of(texts)
    control = (data < 0x09).any() or (data == 0x0B).any() or ((data >= 0x0D) & (data < 0x20)).any()
    return not (control or (data >= 0x7F).any())


def _without_control(text: str) -> str:
    return remove_control_chars(remove_terminal_escapes(text))


def _mended(text: str) -> str:
    return ftfy.fix_text(text, _FTFY)


_WAYS: dict[str, tuple[Callable[[str], str], str]] = {
    "control": (_without_control, _CONTROL),
    "unicode": (_mended, _UNUSUAL),
}
