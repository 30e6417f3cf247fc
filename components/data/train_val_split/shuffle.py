"""Writing a split in shuffled order, in flat memory: rows are dealt into buckets, each put in order by itself."""

import itertools
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa

from llm_finetune.components.shared import tables

BUCKET_BYTES = 64 << 20
MOST_BUCKETS = 256


def write_shuffled(
    rows: Path, outputs: list[Path], side: np.ndarray, keys: np.ndarray, size: int, scratch: Path
) -> None:
    """Writes the rows of each side in the order of their keys.

    Args:
        rows: Arrow stream with the rows; removed when they are dealt.
        outputs: Folder to write for each side.
        side: Number of each row's output, shape [rows].
        keys: Uniform uint64 per row; equal keys keep the order of the dataset.
        size: Bytes of the dataset in memory.
        scratch: Folder for the buckets.
    """
    buckets = min(MOST_BUCKETS, -(-size // BUCKET_BYTES) or 1)
    with pa.OSFile(str(rows)) as stream:
        schema = pa.ipc.open_stream(stream).schema
    place = side.astype(np.int64) * buckets + _bucket(keys, buckets)
    if buckets == 1:
        with pa.OSFile(str(rows)) as stream:
            whole = pa.ipc.open_stream(stream).read_all().combine_chunks()
        for number, output in enumerate(outputs):
            _write(output, schema, [whole.take(pa.array(_in_order(place, number, keys)))])
        return
    files = [scratch / f"{number:05}.arrow" for number in range(buckets * len(outputs))]
    _deal(rows, files, place, schema)
    rows.unlink()
    for number, output in enumerate(outputs):
        parts = (
            _sorted_bucket(files[bucket], keys[np.flatnonzero(place == bucket)])
            for bucket in range(number * buckets, (number + 1) * buckets)
        )
        _write(output, schema, tables.read_ahead(parts))


def _bucket(keys: np.ndarray, buckets: int) -> np.ndarray:
    return (((keys >> np.uint64(32)) * np.uint64(buckets)) >> np.uint64(32)).astype(np.int64)


def _deal(rows: Path, files: list[Path], place: np.ndarray, schema: pa.Schema) -> None:
    with ExitStack() as stack:
        stream = pa.ipc.open_stream(stack.enter_context(pa.OSFile(str(rows))))
        writers = [stack.enter_context(pa.ipc.new_file(str(file), schema)) for file in files]
        start = 0
        for batch in tables.read_ahead(stream):
            target = place[start : start + batch.num_rows]
            order = np.argsort(target, kind="stable")
            dealt = batch.take(pa.array(order))
            bounds = np.searchsorted(target[order], np.arange(len(files) + 1))
            for number, (begin, end) in enumerate(itertools.pairwise(bounds)):
                if end > begin:
                    writers[number].write(dealt.slice(begin, end - begin))
            start += batch.num_rows


def _sorted_bucket(file: Path, keys: np.ndarray) -> pa.Table:
    with pa.memory_map(str(file)) as stream:
        table = pa.ipc.open_file(stream).read_all().combine_chunks()
    file.unlink()
    return table.take(pa.array(np.argsort(keys, kind="stable")))


def _in_order(place: np.ndarray, number: int, keys: np.ndarray) -> np.ndarray:
    rows = np.flatnonzero(place == number)
    return rows[np.argsort(keys[rows], kind="stable")]


def _write(output: Path, schema: pa.Schema, parts: Iterable[pa.Table]) -> None:
    with tables.ShardWriter(output, schema) as writer:
        for part in parts:
            writer.write(part)
