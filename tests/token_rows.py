"""Token rows as the Tokenize card writes them, with something in them to learn."""

import random
from pathlib import Path

import pyarrow as pa
from tiny import tiny_tokenizer

from llm_finetune.components.shared import tables

END = 2


def documents(count: int, seed: int) -> list[dict]:
    """Documents of different length whose answer repeats a token of the prompt, so that there is something to learn."""
    generator = random.Random(seed)
    rows = []
    for index in range(count):
        prompt = [generator.randrange(4, 300) for _ in range(generator.randrange(3, 20))]
        completion = [prompt[0]] * generator.randrange(1, 9) + [END]
        rows.append({"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion, "row": index})
    return rows


def write(folder: Path, rows: list[dict], packed: int = 0) -> Path:
    """Writes a split; with `packed`, so many documents share a row."""
    if packed:
        joined = [rows[i : i + packed] for i in range(0, len(rows), packed)]
        rows = [
            {
                "input_ids": [token for document in group for token in document["input_ids"]],
                "labels": [label for document in group for label in document["labels"]],
                "seq_lengths": [len(document["input_ids"]) for document in group],
            }
            for group in joined
        ]
    lists = pa.list_(pa.int32())
    last = ("seq_lengths", lists) if packed else ("row", pa.int64())
    table = pa.Table.from_pylist(rows, pa.schema([("input_ids", lists), ("labels", lists), last]))
    with tables.ShardWriter(folder, table.schema) as writer:
        writer.write(table)
        tiny_tokenizer(writer.folder / "tokenizer")
    return folder
