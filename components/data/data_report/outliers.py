"""Finds outliers among rows by simple measures of their text."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from llm_finetune.components.shared.rows.duplicates import string_buffers

# Measures of a row's text. Non-ASCII bytes count as letters, as most of them are parts of letters.
MEASURES = ("length", "letters", "digits", "beyond ASCII", "word length")
_LETTER = np.zeros(256, np.uint8)
_LETTER[[*range(0x41, 0x5B), *range(0x61, 0x7B), *range(0x80, 0x100)]] = 1
_DIGIT = np.zeros(256, np.uint8)
_DIGIT[0x30:0x3A] = 1
_SPACE = np.zeros(256, np.uint8)
_SPACE[[*range(0x09, 0x0E), 0x1F, 0x20]] = 1
# Minimum spread per measure, so that small differences in uniform data are not outliers.
_LEAST_SPREAD = np.array([0.2, 0.03, 0.02, 0.02, 0.15])


@dataclass(frozen=True)
class Outlier:
    """An outlier.

    Attributes:
        row: Row number.
        reason: Measure in which it differs, in words.
    """

    row: int
    reason: str


def measure(column: pa.StringArray) -> np.ndarray:
    """Computes the measures of texts.

    Args:
        column: Texts without null.

    Returns:
        float32 array [rows, measures]: logarithm of the number of bytes, shares of letters, digits and non-ASCII bytes,
        logarithm of the bytes per word.
    """
    offsets, data = string_buffers(column)
    length = np.diff(offsets)
    some = np.maximum(length, 1)

    def share(is_member: np.ndarray) -> np.ndarray:
        counted = np.concatenate([[0], np.cumsum(is_member, dtype=np.int64)])
        shares: np.ndarray = np.diff(counted[offsets]) / some
        return shares

    word = 1 / np.maximum(share(_SPACE[data]), 1 / some)
    columns = (np.log(some), share(_LETTER[data]), share(_DIGIT[data]), share(data >= 0x80), np.log(word))
    return np.stack(columns, axis=1).astype(np.float32)


def find_outliers(measured: np.ndarray, count: int) -> list[Outlier]:
    """Returns the rows with the largest distance from the median, in units of the spread of all rows.

    Args:
        measured: Result of `measure` for all rows.
        count: Maximum number of rows.

    Returns:
        The largest outliers first; none for fewer than ten rows.
    """
    if len(measured) < 10:
        return []
    median = np.median(measured, axis=0)
    # The factor 1.4826 makes the median absolute deviation comparable with a standard deviation.
    spread = np.maximum(1.4826 * np.median(np.abs(measured - median), axis=0), _LEAST_SPREAD)
    distance = np.abs(measured - median) / spread
    worst = distance.max(axis=1)
    rows = np.argsort(-worst, kind="stable")[:count]
    return [
        Outlier(int(row), _reason(measured[row], median, int(distance[row].argmax()))) for row in rows if worst[row] > 3
    ]


def _reason(values: np.ndarray, median: np.ndarray, measure: int) -> str:
    name, value, usual = MEASURES[measure], float(values[measure]), float(median[measure])
    if name in ("length", "word length"):
        times = float(np.exp(abs(value - usual)))
        what = "text" if name == "length" else "words"
        return f"{what} {times:.0f} times {'longer' if value > usual else 'shorter'} than usual"
    return f"{100 * value:.0f} % {name}, usually {100 * usual:.0f} %"
