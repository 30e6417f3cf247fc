"""Conversations as Format for SFT writes them, tokenized by the card's step, and what of the result is trained."""

import json
from pathlib import Path

import pyarrow as pa

from llm_finetune.components.shared import tables
from llm_finetune.components.tokens.tokenize import step

OFFERED = [{"type": "function", "function": {"name": "weather", "description": "Looks outside", "parameters": {}}}]


def tokenized(tmp_path: Path, tokenizer: Path, columns: pa.Table, **settings: object) -> tuple[dict, list[dict]]:
    with tables.ShardWriter(tmp_path / "sft", columns.schema) as writer:
        writer.write(columns)
    out = [tmp_path / name for name in ("train", "val", "page.html")]
    chosen = step.Settings(packing=False, **settings)
    _, facts = step.tokenize(tmp_path / "sft", tmp_path / "sft", *out, chosen, model=str(tokenizer))
    return facts, tables.head(out[1], 100).to_pylist()


def talk(*conversations: list[dict], kind: pa.DataType | None = None, **more: object) -> pa.Table:
    columns = {"prompt": ["-"] * len(conversations), "completion": ["-"] * len(conversations)}
    return pa.table({**columns, "messages": pa.array(conversations, kind), **more})


def answers(row: dict) -> list[tuple[int, list[int]]]:
    """Returns where each trained stretch begins, and its tokens."""
    found: list[tuple[int, list[int]]] = []
    for position, (token, label) in enumerate(zip(row["input_ids"], row["labels"], strict=True)):
        assert label in (-100, token)
        if label == -100:
            continue
        if position and row["labels"][position - 1] != -100:
            found[-1][1].append(token)
        else:
            found.append((position, [token]))
    return found


def calls(*functions: tuple[str, dict], content: str | None = None) -> dict:
    """Returns an assistant's message with calls of functions, given by name and arguments."""
    written = [
        {"id": f"call{i:05}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for i, (name, arguments) in enumerate(functions)
    ]
    return {"role": "assistant", "content": content, "tool_calls": json.dumps(written)}


def said(role: str, content: str, **more: str) -> dict:
    return {"role": role, "content": content, **more}
