"""Duplicates and near-duplicates: normalization, hashing and similarity for all cards."""

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

if TYPE_CHECKING:
    from datasketch import MinHash

SHINGLE_BYTES = 5
PERMUTATIONS = 128
# The index is queried below the threshold, as band hashes alone miss pairs just above it.
CANDIDATE_MARGIN = 0.1

_SPACE = 0x20
_MIX = np.uint64(0x9E3779B97F4A7C15)


def normalize_text(column: pa.StringArray) -> pa.StringArray:
    r"""Normalizes text for the comparison of duplicates: NFKC, lower case, white space collapsed to one space.

    `"The  Cat\n"` and `"the cat "` both become `"the cat "`; leading and trailing white space is not removed.

    Args:
        column: Strings without null.

    Returns:
        The same number of strings.
    """
    if pc.all(pc.string_is_ascii(column)).as_py():
        column = pc.ascii_lower(column)
    else:
        column = pc.utf8_lower(pc.utf8_normalize(column, form="NFKC"))
    offsets, data = string_buffers(column)
    space = data == _SPACE
    control = (data >= 0x09) & (data <= 0x0D)
    space |= control
    again = space.copy()
    again[1:] &= space[:-1]
    again[offsets[:-1][offsets[:-1] < len(data)]] = False
    if not control.any() and not again.any():
        return column
    data = np.where(control, np.uint8(_SPACE), data)
    dropped = np.flatnonzero(again)
    return _strings(offsets - np.searchsorted(dropped, offsets), np.delete(data, dropped) if len(dropped) else data)


def hash_texts(column: pa.StringArray) -> np.ndarray:
    """Returns a 128-bit hash per string.

    Args:
        column: Strings without null.

    Returns:
        uint64 array, shape [rows, 2]; the same on every machine.
    """
    offsets, data = string_buffers(column)
    view, ends, digest = memoryview(data.data), offsets.tolist(), xxhash.xxh3_128_digest
    joined = b"".join([digest(view[start:end]) for start, end in itertools.pairwise(ends)])
    return np.frombuffer(joined, dtype=">u8").astype(np.uint64).reshape(-1, 2)


def keyed_hash(values: np.ndarray, seed: int) -> np.ndarray:
    """Returns a keyed hash of integers (SplitMix64), the same on every machine.

    Args:
        values: uint64 array.
        seed: The key.

    Returns:
        uint64 array, uniform for any input.
    """
    key = np.frombuffer(xxhash.xxh3_64_digest(str(seed).encode()), dtype=">u8").astype(np.uint64)[0]
    x = values ^ key
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


class SeenHashes:
    """A growing set of hashes of 16 bytes each, with lookups in batches.

    Hashes are stored in sorted runs. Runs of similar length are merged, so that n hashes are in about log2(n / batch)
    runs.
    """

    def __init__(self) -> None:
        """Creates an empty set."""
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, batch: np.ndarray) -> np.ndarray:
        """Adds hashes and returns which were already in the set.

        Args:
            batch: uint64 array, shape [rows, 2], as returned by `hash_texts`.

        Returns:
            True for rows whose hash occurred before, in an earlier batch or in this one.
        """
        high, low = batch[:, 0], batch[:, 1]
        seen = np.ones(len(batch), bool)
        order = np.lexsort((low, high))
        sorted_high, sorted_low = high[order], low[order]
        is_first = np.ones(len(batch), bool)
        is_first[1:] = (sorted_high[1:] != sorted_high[:-1]) | (sorted_low[1:] != sorted_low[:-1])
        firsts, sorted_high, sorted_low = order[is_first], sorted_high[is_first], sorted_low[is_first]
        known = np.zeros(len(firsts), bool)
        for run_high, run_low in self._runs:
            place = np.minimum(np.searchsorted(run_high, sorted_high), len(run_high) - 1)
            known |= (run_high[place] == sorted_high) & (run_low[place] == sorted_low)
        seen[firsts] = known
        if not known.all():
            self._runs.append((sorted_high[~known], sorted_low[~known]))
            self._merge()
        return seen

    def _merge(self) -> None:
        while len(self._runs) > 1 and len(self._runs[-2][0]) <= 2 * len(self._runs[-1][0]):
            pairs = self._runs.pop(), self._runs.pop()
            high, low = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
            order = np.argsort(high, kind="stable")
            self._runs.append((high[order], low[order]))


@dataclass(frozen=True)
class Sketch:
    """A row in the near-duplicate index.

    Attributes:
        minhash: Signature, to find candidates.
        text: Normalized text, to compute the similarity.
    """

    minhash: "MinHash"
    text: bytes


class NearDuplicates:
    """MinHash-LSH index of rows: finds earlier rows that share most of their 5-byte shingles.

    The index returns candidates. Their exact similarity is computed from both texts, which are stored in a temporary
    file: an estimate from 128 permutations has an error of 0.03 to 0.04 at the threshold, so that pairs close to it
    would be misclassified.
    """

    def __init__(self, threshold: float) -> None:
        """Creates an empty index.

        Args:
            threshold: Jaccard similarity from which two rows are near-duplicates.
        """
        from datasketch import MinHash, MinHashLSH  # imports scipy (half a second), which exact duplicates do not need

        self.threshold = threshold
        self._blank: MinHash = MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=int)
        self._index: MinHashLSH = MinHashLSH(num_perm=PERMUTATIONS, params=_bands(threshold))
        self._texts = TemporaryFile()  # noqa: SIM115 (open as long as the index)
        self._places: dict[int, tuple[int, int]] = {}

    def sketches(self, column: pa.StringArray) -> Iterator[Sketch]:
        """Yields the sketch of each string, for `similar` and `insert`.

        Args:
            column: Normalized strings without null.
        """
        offsets, data = string_buffers(column)
        for start, end in itertools.pairwise(offsets.tolist()):
            minhash = self._blank.copy()
            shingles = _shingles(data[start:end])
            minhash.update_batch((shingles * _MIX >> np.uint64(32)).tolist())
            yield Sketch(minhash, data[start:end].tobytes())

    def similar(self, sketch: Sketch, least: float) -> list[tuple[int, float]]:
        """Returns the inserted rows that are similar to a row.

        Args:
            sketch: Sketch of the row.
            least: Minimum similarity. The recall drops with its distance below the threshold.

        Returns:
            Row numbers in order, each with its Jaccard similarity.
        """
        candidates = sorted(self._index.query(sketch.minhash))
        if not candidates:
            return []
        own = np.unique(_shingles(np.frombuffer(sketch.text, np.uint8)))
        compared = ((row, _jaccard(own, self._text(row))) for row in candidates)
        return [(row, similarity) for row, similarity in compared if similarity >= least]

    def insert(self, row: int, sketch: Sketch) -> None:
        """Adds a row."""
        self._index.insert(row, sketch.minhash, check_duplication=False)
        self._places[row] = (self._texts.seek(0, os.SEEK_END), len(sketch.text))
        self._texts.write(sketch.text)

    def text(self, row: int) -> str:
        """Returns the normalized text of an inserted row."""
        return self._text(row).decode()

    def _text(self, row: int) -> bytes:
        place, length = self._places[row]
        self._texts.seek(place)
        return self._texts.read(length)


@cache
def _bands(threshold: float) -> tuple[int, int]:
    """Returns the number and the size of the index's bands; cached, as the library computes them by integration."""
    from datasketch import MinHashLSH

    least = max(threshold - CANDIDATE_MARGIN, 0.05)
    index = MinHashLSH(threshold=least, num_perm=PERMUTATIONS, weights=(0.3, 0.7))
    return index.b, index.r


def _jaccard(own: np.ndarray, text: bytes) -> float:
    other = np.unique(_shingles(np.frombuffer(text, np.uint8)))
    shared = len(np.intersect1d(own, other, assume_unique=True))
    return shared / (len(own) + len(other) - shared)


def _shingles(data: np.ndarray) -> np.ndarray:
    """Returns the five bytes at each position as a number; a shorter text as one number."""
    usable = max(len(data) - SHINGLE_BYTES + 1, 1)
    packed = np.zeros(usable, np.uint64)
    for i in range(min(SHINGLE_BYTES, len(data))):
        packed |= data[i : i + usable].astype(np.uint64) << np.uint64(8 * i)
    return packed


def string_buffers(column: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """Returns offsets [rows + 1] and bytes of strings without a copy; a null has no bytes."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    _, offset_buffer, data_buffer = column.buffers()
    if offset_buffer is None or not len(column):
        return np.zeros(len(column) + 1, np.int64), np.zeros(0, np.uint8)
    offsets = np.frombuffer(offset_buffer, np.int32)[column.offset : column.offset + len(column) + 1].astype(np.int64)
    data = np.frombuffer(data_buffer, np.uint8) if data_buffer is not None else np.zeros(0, np.uint8)
    return offsets - offsets[0], data[offsets[0] : offsets[-1]]


def _strings(offsets: np.ndarray, data: np.ndarray) -> pa.StringArray:
    return pa.StringArray.from_buffers(
        len(offsets) - 1, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(np.ascontiguousarray(data))
    )
