"""Datasets between cards: folders of Parquet shards, written and read as streams."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.files import atomic_folder

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_THREADS = 8  # each holds a batch
ROWS_PER_SHARD = 1_000_000
ROWS_PER_GROUP = 16_384
GROUP_BYTES = 16 << 20  # limit for groups of long rows, as readers load a whole group


class ShardWriter:
    """Writes record batches to `part-00000.parquet`, `part-00001.parquet`, …; the folder appears when it is complete.

    Rows are buffered into row groups of equal size, independent of the size of the batches. Use it as a context
    manager; after an exception nothing is left on disk.
    """

    def __init__(self, path: str | Path, schema: pa.Schema, rows_per_shard: int = ROWS_PER_SHARD) -> None:
        """Sets the output.

        Args:
            path: Folder to create.
            schema: Schema of every batch.
            rows_per_shard: Maximum rows per file.
        """
        self.path, self.schema, self.rows_per_shard = Path(path), schema, rows_per_shard
        self.rows = 0
        self._stack = ExitStack()
        self._writer: pq.ParquetWriter | None = None
        self._shards = 0
        self._rows_in_shard = 0
        self._buffered: list[pa.Table] = []
        self._buffered_rows = self._buffered_bytes = 0

    def __enter__(self) -> Self:
        """Creates the folder."""
        self.folder = self._stack.enter_context(atomic_folder(self.path))
        return self

    def write(self, rows: pa.RecordBatch | pa.Table) -> None:
        """Appends rows of the writer's schema."""
        table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
        self.rows += table.num_rows
        self._buffer(table)
        if self._buffered_bytes >= GROUP_BYTES:
            self._write_buffered(self._buffered_rows)
        elif self._buffered_rows >= ROWS_PER_GROUP:
            self._write_buffered(self._buffered_rows // ROWS_PER_GROUP * ROWS_PER_GROUP)

    def _buffer(self, table: pa.Table) -> None:
        self._buffered.append(table)
        self._buffered_rows += table.num_rows
        self._buffered_bytes += table.nbytes

    def _write_buffered(self, rows: int) -> None:
        """Writes the first `rows` buffered rows."""
        table = pa.concat_tables(self._buffered)
        self._buffered, self._buffered_rows, self._buffered_bytes = [], 0, 0
        if rows < table.num_rows:
            self._buffer(table.slice(rows))
        table = table.slice(0, rows)
        while table.num_rows:
            if self._writer is None:
                shard = self.folder / f"part-{self._shards:05}.parquet"
                self._writer = pq.ParquetWriter(shard, self.schema, compression="zstd")
                self._shards, self._rows_in_shard = self._shards + 1, 0
            part = table.slice(0, self.rows_per_shard - self._rows_in_shard)
            self._writer.write_table(part, row_group_size=ROWS_PER_GROUP)
            self._rows_in_shard += part.num_rows
            if self._rows_in_shard >= self.rows_per_shard:
                self._close_shard()
            table = table.slice(part.num_rows)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Renames the folder to its final name, or removes it after an exception."""
        try:
            if kind is None and self._buffered:
                self._write_buffered(self._buffered_rows)
            if kind is None and not self._shards:
                self.write_empty_shard()
            self._close_shard()
        except BaseException as closing:
            self._stack.__exit__(type(closing), closing, closing.__traceback__)
            raise
        self._stack.__exit__(kind, error, trace)

    def write_empty_shard(self) -> None:
        """Writes a shard without rows, so that an empty dataset has a schema."""
        self._writer = pq.ParquetWriter(self.folder / "part-00000.parquet", self.schema, compression="zstd")
        self._shards = 1

    def _close_shard(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()


def shards(path: str | Path) -> list[Path]:
    """Returns a dataset's Parquet files in order.

    Args:
        path: The dataset's folder.

    Returns:
        At least one file.

    Raises:
        UserError: If the folder has none.
    """
    files = sorted(Path(path).glob("*.parquet"))
    if not files:
        raise UserError(f"{path} has no Parquet files: it is not a dataset written by these components")
    return files


def schema(path: str | Path) -> pa.Schema:
    """Returns the schema of a dataset."""
    return pq.read_schema(shards(path)[0])


def count_rows(path: str | Path) -> int:
    """Returns the number of rows from the files' footers."""
    return sum(pq.read_metadata(file).num_rows for file in shards(path))


def batches(path: str | Path, columns: list[str] | None = None, rows: int = ROWS_PER_GROUP) -> Iterator[pa.RecordBatch]:
    """Streams a dataset in order.

    Args:
        path: The dataset's folder.
        columns: Columns to read; all by default.
        rows: Maximum rows per batch.

    Yields:
        Record batches in order.
    """
    for file in shards(path):
        with pq.ParquetFile(file) as reader:
            # One reader per row group: over a whole file, the reader keeps all decoded data in memory.
            for group in range(reader.num_row_groups):
                yield from reader.iter_batches(batch_size=rows, columns=columns, row_groups=[group])


def read_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Prefetches the next item in a thread while the current one is processed.

    Args:
        items: Items that take time to produce, such as `batches`.

    Yields:
            The items in order.
    """
    stream, end = iter(items), object()
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, stream, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, stream, end)
            yield cast(Item, item)


def in_parallel(work: Callable[[Item], Result], items: Iterable[Item], ahead: int = 1) -> Iterator[Result]:
    """Processes several items at once in threads, for work in pyarrow and numpy that releases the GIL.

    Args:
        work: Function of an item; results must not depend on earlier items.
        items: Items that take time to produce, such as `batches`.
        ahead: Finished results to buffer, in addition to the items in progress.

    Yields:
        The results in the order of the items.
    """
    threads = min(len(os.sched_getaffinity(0)), MOST_THREADS)
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Result]] = deque()
        for item in read_ahead(items):
            waiting.append(pool.submit(work, item))
            if len(waiting) >= threads + ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def head(path: str | Path, rows: int) -> pa.Table:
    """Returns the first rows as a table."""
    first: list[pa.RecordBatch] = []
    for batch in batches(path, rows=max(rows, 1)):
        if rows <= 0:
            break
        first.append(batch.slice(0, rows))
        rows -= batch.num_rows
    return pa.Table.from_batches(first, schema(path))
