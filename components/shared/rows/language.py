"""Language identification."""

from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from llm_finetune.components.shared.errors import UserError, nearest

UNKNOWN = "und"
"""ISO 639-2's code for an undetermined language."""
# Identification is unreliable below 20 letters; 400 characters are enough.
LEAST_LETTERS = 20
MOST_CHARACTERS = 400


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # decompresses its model (almost a second)

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def check_language_codes(codes: list[str]) -> None:
    """Raises for codes of languages that cannot be identified.

    Args:
        codes: ISO 639-1 codes.

    Raises:
        UserError: If a code is unknown.
    """
    known = sorted(_identifier().labels)
    for code in codes:
        if code not in known:
            raise UserError(
                f"languages: {code!r} is not supported{nearest(code, known)} (supported: {', '.join(known)})"
            )


def detect_languages(column: pa.StringArray) -> list[str]:
    """Identifies the language of each text.

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
    return [identifier.classify(text)[0] if is_long else UNKNOWN for text, is_long in zip(texts, enough, strict=True)]
