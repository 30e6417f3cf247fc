"""Which rows are unlike the others, and in what."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from llm_finetune.components.shared.rows.duplicates import bytes_of

# What is measured of a row's text. Bytes beyond ASCII count as letters: they are parts of letters, mostly.
MEASURES = ("length", "letters", "digits", "beyond ASCII", "word length")
_LETTER = np.zeros(256, np.uint8)
_LETTER[[*range(0x41, 0x5B), *range(0x61, 0x7B), *range(0x80, 0x100)]] = 1
_DIGIT = np.zeros(256, np.uint8)
_DIGIT[0x30:0x3A] = 1
_SPACE = np.zeros(256, np.uint8)
_SPACE[[*range(0x09, 0x0E), 0x1F, 0x20]] = 1
# Shares are compared as they are, lengths by their ratio; below these spreads a difference is no oddness.
_LEAST_SPREAD = np.array([0.2, 0.03, 0.02, 0.02, 0.15])


@dataclass(frozen=True)
class Odd:
    """A row that stands out.

    Attributes:
        row: Its number.
        why: In what, in words.
    """

    row: int
    why: str


def measures(column: pa.StringArray) -> np.ndarray:
    """Measures texts.

    Args:
        column: Texts without null.

    Returns:
        float32 array [rows, measures]: the logarithm of the bytes, the shares of letters, digits and bytes beyond
        ASCII, and the logarithm of the bytes per word.
    """
    offsets, data = bytes_of(column)
    length = np.diff(offsets)
    some = np.maximum(length, 1)

    def share(kinds: np.ndarray) -> np.ndarray:
        counted = np.concatenate([[0], np.cumsum(kinds[data], dtype=np.int64)])
        return (counted[offsets[1:]] - counted[offsets[:-1]]) / some

    beyond = np.concatenate([[0], np.cumsum(data >= 0x80, dtype=np.int64)])
    word = 1 / np.maximum(share(_SPACE), 1 / some)
    beyond_share = (beyond[offsets[1:]] - beyond[offsets[:-1]]) / some
    columns = (np.log(some), share(_LETTER), share(_DIGIT), beyond_share, np.log(word))
    return np.stack(columns, axis=1).astype(np.float32)


def oddest(measured: np.ndarray, count: int) -> list[Odd]:
    """Returns the rows that are farthest from the middle, counted in the spread of all rows.

    Args:
        measured: What `measures` gave for all rows.
        count: How many rows to return at most.

    Returns:
        The oddest rows first; none for a dataset of fewer than ten rows, which has no middle.
    """
    if len(measured) < 10:
        return []
    middle = np.median(measured, axis=0)
    # 1.4826 makes the median distance comparable with a standard deviation.
    spread = np.maximum(1.4826 * np.median(np.abs(measured - middle), axis=0), _LEAST_SPREAD)
    far = np.abs(measured - middle) / spread
    worst = far.max(axis=1)
    rows = np.argsort(-worst, kind="stable")[:count]
    return [Odd(int(row), _why(measured[row], middle, int(far[row].argmax()))) for row in rows if worst[row] > 3]


def _why(values: np.ndarray, middle: np.ndarray, measure: int) -> str:
    name, value, usual = MEASURES[measure], float(values[measure]), float(middle[measure])
    if name in ("length", "word length"):
        times = float(np.exp(abs(value - usual)))
        what = "text" if name == "length" else "words"
        return f"{what} {times:.0f} times {'longer' if value > usual else 'shorter'} than usual"
    return f"{100 * value:.0f} % {name}, usually {100 * usual:.0f} %"
