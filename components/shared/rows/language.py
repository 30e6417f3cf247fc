"""The language of a text."""

from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from llm_finetune.components.shared.errors import UserError, nearest

UNKNOWN = "und"
"""ISO 639-2's code for an undetermined language."""
# On shorter texts the identifier is as often wrong as right; of longer ones the beginning is enough.
LEAST_LETTERS = 20
MOST_CHARACTERS = 400


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # unpacks its model: most of a second

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def check_codes(codes: list[str]) -> None:
    """Refuses codes of languages that can't be told.

    Args:
        codes: ISO 639-1 codes.

    Raises:
        UserError: Naming the code and the ones that are known.
    """
    known = sorted(_identifier().labels)
    for code in codes:
        if code not in known:
            raise UserError(
                f"languages: {code!r} is no language that can be told{nearest(code, known)} (known: {', '.join(known)})"
            )


def languages(column: pa.StringArray) -> list[str]:
    """Returns the language of each text.

    Args:
        column: Texts without null.

    Returns:
        ISO 639-1 codes; `und` for texts with fewer than 20 letters.
    """
    identifier = _identifier()
    beginnings = pc.utf8_slice_codeunits(column, 0, MOST_CHARACTERS)
    letters = pc.utf8_length(pc.replace_substring_regex(beginnings, r"[^\pL]+", ""))
    enough = pc.greater_equal(letters, LEAST_LETTERS).to_pylist()
    texts = beginnings.to_pylist()
    return [identifier.classify(text)[0] if told else UNKNOWN for text, told in zip(texts, enough, strict=True)]
