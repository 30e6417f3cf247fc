"""Which rows are the same, or nearly: one normalisation, one hash, one similarity for every card."""

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

if TYPE_CHECKING:
    from datasketch import MinHash

SHINGLE_BYTES = 5
PERMUTATIONS = 128
# Candidates are looked for below the threshold and then compared: band hashes alone miss pairs just above it.
CANDIDATE_MARGIN = 0.1

_SPACE = 0x20


def normalised(column: pa.StringArray) -> pa.StringArray:
    r"""Returns text as duplicates compare it: NFKC, lower case, runs of white space as one space.

    `"The  Cat\n"` and `"the cat "` both become `"the cat "`; callers trim beforehand.

    Args:
        column: Strings without null.

    Returns:
        The same number of strings.
    """
    if pc.all(pc.string_is_ascii(column)).as_py():
        column = pc.ascii_lower(column)
    else:
        column = pc.utf8_lower(pc.utf8_normalize(column, form="NFKC"))
    offsets, data = _bytes_of(column)
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


def hashes(column: pa.StringArray) -> np.ndarray:
    """Returns a 128-bit hash per string.

    Args:
        column: Strings without null.

    Returns:
        uint64 array of shape [rows, 2]; the same on every machine.
    """
    offsets, data = _bytes_of(column)
    view, ends, digest = memoryview(data.data), offsets.tolist(), xxhash.xxh3_128_digest
    joined = b"".join([digest(view[start:end]) for start, end in itertools.pairwise(ends)])
    return np.frombuffer(joined, dtype=">u8").astype(np.uint64).reshape(-1, 2)


def mixed(values: np.ndarray, seed: int) -> np.ndarray:
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
    return x ^ (x >> np.uint64(31))


class SeenHashes:
    """A growing set of hashes at 16 bytes each, looked up a batch at a time.

    It keeps sorted runs and merges neighbours of similar length, so that n hashes lie in about log2(n / batch) runs.
    """

    def __init__(self) -> None:
        """Begins with an empty set."""
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, batch: np.ndarray) -> np.ndarray:
        """Adds hashes and tells which were there already.

        Args:
            batch: uint64 array of shape [rows, 2], as `hashes` gives.

        Returns:
            True per row whose hash came before, in an earlier batch or in this one.
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


class NearDuplicates:
    """MinHash-LSH over rows: finds earlier rows that share most of their shingles (runs of five bytes)."""

    def __init__(self, threshold: float) -> None:
        """Prepares an empty index.

        Args:
            threshold: Jaccard similarity from which two rows are near-duplicates.
        """
        from datasketch import MinHash, MinHashLSH  # brings scipy: half a second that exact duplicates do not need

        self.threshold = threshold
        self._blank: MinHash = MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=int)
        self._index: MinHashLSH = MinHashLSH(
            threshold=max(threshold - CANDIDATE_MARGIN, 0.05), num_perm=PERMUTATIONS, weights=(0.3, 0.7)
        )
        self._signatures: dict[int, np.ndarray] = {}

    def signatures(self, column: pa.StringArray) -> Iterator["MinHash"]:
        """Yields the MinHash of each string, to be given to `query` and `insert`.

        Args:
            column: Normalised strings without null.
        """
        offsets, data = _bytes_of(column)
        shingles = _shingles(data)
        for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
            sketch = self._blank.copy()
            last = max(start + 1, end - SHINGLE_BYTES + 1)
            sketch.update_batch(
                shingles[start:last].tolist() if end - start >= SHINGLE_BYTES else [_short(data[start:end])]
            )
            yield sketch

    def similar(self, sketch: "MinHash", least: float) -> list[tuple[int, float]]:
        """Returns the inserted rows that look like this one.

        Args:
            sketch: A MinHash of `signatures`.
            least: Similarity from which rows count; not much below the threshold, where few would be found.

        Returns:
            Row numbers in order, each with its estimated Jaccard similarity.
        """
        values = sketch.hashvalues
        found = []
        for row in sorted(self._index.query(sketch)):
            similarity = float(np.count_nonzero(self._signatures[row] == values)) / PERMUTATIONS
            if similarity >= least:
                found.append((row, similarity))
        return found

    def insert(self, row: int, sketch: "MinHash") -> None:
        """Adds a row under its number."""
        self._index.insert(row, sketch, check_duplication=False)
        self._signatures[row] = sketch.hashvalues


def _shingles(data: np.ndarray) -> np.ndarray:
    """Returns a 32-bit hash of the five bytes that begin at each position (0 at the last four)."""
    hashed = np.zeros(len(data), np.uint32)
    usable = len(data) - SHINGLE_BYTES + 1
    if usable > 0:
        packed = np.zeros(usable, np.uint64)
        for i in range(SHINGLE_BYTES):
            packed |= data[i : i + usable].astype(np.uint64) << np.uint64(8 * i)
        hashed[:usable] = (packed * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)
    return hashed


def _short(data: np.ndarray) -> int:
    return xxhash.xxh32_intdigest(data.tobytes())


def _bytes_of(column: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """Returns offsets [rows + 1] and bytes of strings, without a copy."""
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
