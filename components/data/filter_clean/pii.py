"""Personal data in text: e-mail addresses, phone and card numbers, IBANs, IP addresses."""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.text import as_text, is_text

# Cheap and linear: only text that matches is looked at closely, in the order of the kinds below.
_SUSPICIOUS = "|".join(
    (
        r"@[A-Za-z0-9]",
        r"[A-Z]{2}[0-9]{2} ?[A-Z0-9] ?[A-Z0-9] ?[A-Z0-9] ?[A-Z0-9] ?[A-Z0-9] ?[A-Z0-9]",
        r"[2-6](?:[ -]?[0-9]){12}",
        r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]|[0-9A-Fa-f]:[0-9A-Fa-f:]{0,4}:[0-9A-Fa-f]",
        r"\+[0-9]|[0-9]{3}\)? ?[.-]?[0-9]{3}[ .-][0-9]{4}",
    )
)
_BYTE = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
# In this order: a card number contains what looks like a phone number, not the other way round.
_PATTERNS = {
    "email": re.compile(
        r"(?<![\w.%+-])[\w.%+-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![\w-])"
    ),
    "iban": re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]){11,30}"),
    "card": re.compile(r"(?<![\w.-])[2-6](?:[ -]?[0-9]){12,18}(?![\w-])"),
    "ip": re.compile(
        rf"(?<![\w.])(?:{_BYTE}\.){{3}}{_BYTE}(?![\w]|\.\d)|(?<![\w:.])[0-9A-Fa-f]{{1,4}}:[0-9A-Fa-f:]{{2,35}}(?![\w:])"
    ),
    "phone": re.compile(
        r"(?<![\w.+-])(?:\+[0-9]{1,3}[ .-]?(?:\([0-9]{1,4}\)[ .-]?)?[0-9]{1,4}(?:[ .-]?[0-9]{2,4}){1,4}"
        r"|(?:1[ .-])?(?:\([0-9]{3}\) ?|[0-9]{3}[ .-])[0-9]{3}[ .-][0-9]{4})(?![\w-])"
    ),
}
KINDS = tuple(_PATTERNS)
_CARD_LENGTHS = (
    ("4", (13, 16, 19)),
    (("2", "5"), (16,)),
    (("34", "37"), (15,)),
    (("30", "36", "38", "39"), (14,)),
    (("35", "6"), (16, 17, 18, 19)),
)
_IBAN_COUNTRIES = {
    15: "NO",
    16: "BE",
    18: "DK FI FO GL NL",
    19: "MK SI",
    20: "AT BA EE KZ LT LU XK",
    21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ TL",
    24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST",
    26: "IS TR",
    27: "FR GR IT MC MR SM",
    28: "AL AZ BY CY DO GT HU LB PL SV",
    29: "BR EG PS QA UA",
    30: "JO KW MU",
    31: "MT SC",
    32: "LC",
}
_IBAN_LENGTHS = {country: length for length, countries in _IBAN_COUNTRIES.items() for country in countries.split()}


def redacted(text: str, counts: Counter[str]) -> str:
    """Replaces personal data by what it is, such as `[EMAIL]`.

    Args:
        text: Any text.
        counts: Gets one more under its kind for each thing found.

    Returns:
        The text without it.
    """
    for kind, pattern in _PATTERNS.items():

        def replaced(match: re.Match[str], kind: str = kind) -> str:
            length = _CHECKS[kind](match[0])
            if not length:
                return match[0]
            counts[kind] += 1
            return f"[{kind.upper()}]{match[0][length:]}"

        text = pattern.sub(replaced, text)
    return text


def count(column: pa.StringArray) -> Counter[str]:
    """Counts personal data in a column of text, by kind."""
    counts: Counter[str] = Counter()
    for text in column.filter(_suspicious(column)).to_pylist():
        redacted(text, counts)
    return counts


def redacted_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Replaces personal data in every text of a batch, in lists and structures too.

    Args:
        batch: Any rows.

    Returns:
        Rows of the same columns; every layout of text becomes plain strings.

    Raises:
        UserError: If a column's type can't be searched.
    """
    columns = [_redacted_column(column, name) for name, column in zip(batch.schema.names, batch.columns, strict=True)]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _redacted_column(column: pa.Array, name: str) -> pa.Array:
    kind = column.type
    if is_text(kind):
        return _redacted_strings(as_text(column))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        return pa.ListArray.from_arrays(offsets, _redacted_column(pc.list_flatten(column), name), mask=column.is_null())
    if pa.types.is_struct(kind):
        parts = [_redacted_column(pc.struct_field(column, part.name), name) for part in kind]
        return pa.StructArray.from_arrays(parts, names=[part.name for part in kind], mask=column.is_null())
    if pa.types.is_nested(kind) or pa.types.is_dictionary(kind):
        raise UserError(f"pii = 'redact' can't search column {name!r} of type {kind}; leave the column out of the data")
    return column


def _redacted_strings(column: pa.StringArray) -> pa.StringArray:
    hits = _suspicious(column)
    if not pc.any(hits).as_py():
        return column
    counts: Counter[str] = Counter()
    clean = pa.array([redacted(text, counts) for text in column.filter(hits).to_pylist()], pa.string())
    return pc.replace_with_mask(column, hits, clean)


def _suspicious(column: pa.StringArray) -> pa.BooleanArray:
    return pc.match_substring_regex(column, _SUSPICIOUS).fill_null(False)


def _is_card(text: str) -> int:
    number = "".join(filter(str.isdigit, text))
    if not any(number.startswith(begins) and len(number) in lengths for begins, lengths in _CARD_LENGTHS):
        return 0
    digits = [int(digit) for digit in number]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return len(text) if (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0 else 0


def _is_iban(text: str) -> int:
    """Returns the length of the IBAN at the beginning, or 0."""
    wanted = _IBAN_LENGTHS.get(text[:2], 0)
    places = [place for place, character in enumerate(text) if character != " "]
    if not wanted or len(places) < wanted:
        return 0
    length = places[wanted - 1] + 1
    if text[length : length + 1].isalnum():
        return 0
    letters = text[:length].replace(" ", "")
    return length if int("".join(str(int(c, 36)) for c in letters[4:] + letters[:4])) % 97 == 1 else 0


def _is_ip(text: str) -> int:
    if "." in text:
        return len(text)
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return 0
    return len(text) if sum(bool(group) for group in text.split(":")) >= 3 else 0


def _is_phone(text: str) -> int:
    return len(text) if 8 <= sum(character.isdigit() for character in text) <= 15 else 0


_CHECKS: dict[str, Callable[[str], int]] = {
    "email": len,
    "iban": _is_iban,
    "card": _is_card,
    "ip": _is_ip,
    "phone": _is_phone,
}
