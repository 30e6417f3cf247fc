"""Writes a split in shuffled order in constant memory: rows go to buckets on disk, which are sorted one by one."""

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llm_finetune.components.shared import tables

BUCKET_BYTES = 64 << 20
MAX_BUCKETS = 256


class Shuffle:
    """External shuffle by key; a context manager for the buckets' files.

    A row's key determines its position before its side is known, so rows are distributed while the dataset is read for
    the first time.
    """

    def __init__(self, dataset: str | Path, scratch: Path) -> None:
        """Computes the number of buckets.

        Args:
            dataset: Folder with the rows.
            scratch: Folder for the buckets.
        """
        self.schema = tables.schema(dataset)
        self.buckets = min(MAX_BUCKETS, _bytes_in_memory(dataset) // BUCKET_BYTES + 1)
        self._files = [scratch / f"{number:05}.arrow" for number in range(self.buckets)]
        self._keys: list[np.ndarray] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Opens the buckets."""
        self._writers = [self._stack.enter_context(pa.ipc.new_file(str(file), self.schema)) for file in self._files]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the buckets."""
        self._stack.close()

    def partition(self, batch: pa.RecordBatch, keys: np.ndarray) -> list[pa.RecordBatch]:
        """Splits rows by bucket; safe to run in threads.

        Args:
            batch: Rows.
            keys: Uniform uint64 per row; rows with equal keys keep their order.
        """
        bucket = _bucket(keys, self.buckets)
        order = np.argsort(bucket, kind="stable")
        rows = batch.take(pa.array(order))
        bounds = np.searchsorted(bucket[order], np.arange(self.buckets + 1))
        return [rows.slice(begin, end - begin) for begin, end in itertools.pairwise(bounds)]

    def add(self, parts: list[pa.RecordBatch], keys: np.ndarray) -> None:
        """Writes the next rows of the dataset to their buckets.

        Args:
            parts: Result of `partition`.
            keys: The same keys.
        """
        self._keys.append(keys)
        for writer, rows in zip(self._writers, parts, strict=True):
            if rows.num_rows:
                writer.write(rows)

    def write(self, outputs: list[Path], side: np.ndarray) -> None:
        """Writes the rows of each side in the order of their keys. Call it last.

        Args:
            outputs: Folder to write for each side.
            side: Index of the output of each row, shape [rows].
        """
        self._stack.close()
        with ExitStack() as stack:
            writers = [stack.enter_context(tables.ShardWriter(output, self.schema)) for output in outputs]
            for parts in tables.read_ahead(self._in_order(side, len(outputs))):
                for writer, part in zip(writers, parts, strict=True):
                    writer.write(part)

    def _in_order(self, side: np.ndarray, sides: int) -> Iterator[list[pa.Table]]:
        keys = np.concatenate(self._keys) if self._keys else np.zeros(0, np.uint64)
        bucket = _bucket(keys, self.buckets)
        rows = np.argsort(bucket, kind="stable")
        bounds = np.searchsorted(bucket[rows], np.arange(self.buckets + 1))
        for file, begin, end in zip(self._files, bounds[:-1], bounds[1:], strict=True):
            own = rows[begin:end]
            order = np.argsort(keys[own], kind="stable")
            with pa.memory_map(str(file)) as stream:
                table = pa.ipc.open_file(stream).read_all().combine_chunks()
            file.unlink()
            ordered = side[own][order]
            yield [table.take(pa.array(order[ordered == number])) for number in range(sides)]


def _bucket(keys: np.ndarray, buckets: int) -> np.ndarray:
    return (((keys >> np.uint64(32)) * np.uint64(buckets)) >> np.uint64(32)).astype(np.uint16)


def _bytes_in_memory(dataset: str | Path) -> int:
    """Estimates a dataset's size in memory from its footers and a batch, as Parquet stores equal texts once."""
    footers = [pq.read_metadata(file) for file in tables.shards(dataset)]
    groups = (footer.row_group(number) for footer in footers for number in range(footer.num_row_groups))
    stored = sum(group.total_byte_size for group in groups)
    first = next(tables.batches(dataset), None)
    rows = sum(footer.num_rows for footer in footers)
    return int(max(stored, first.nbytes * rows // first.num_rows if first and first.num_rows else 0))
