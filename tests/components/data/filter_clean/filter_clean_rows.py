"""Rows for Filter & Clean, and runs of the card on them."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from llm_finetune.components.data.filter_clean import step
from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError


def row(instruction="Say something long enough", input="", output="something", **more) -> dict:
    return {"instruction": instruction, "input": input, "output": output, **more}


def write(path: Path, rows: list[dict] | pa.Table) -> Path:
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows)
    with tables.ShardWriter(path, table.schema) as writer:
        for batch in table.to_batches():
            writer.write(batch)
    return path


def clean(tmp_path: Path, rows: list[dict] | pa.Table, **chosen) -> tuple[step.Facts, list[dict], list[dict]]:
    outputs = (tmp_path / "clean", tmp_path / "dropped", tmp_path / "page.html")
    facts = step.filter_clean(write(tmp_path / "raw", rows), *outputs, step.Settings.of(chosen))
    kept, dropped = ([row for batch in tables.batches(folder) for row in batch.to_pylist()] for folder in outputs[:2])
    assert (facts.rows, facts.rows_in) == (len(kept), len(kept) + len(dropped))
    assert facts.dropped == {r: n for r, n in Counter(r["reason"] for r in dropped).items()}
    return facts, kept, dropped


def refused(tmp_path: Path, rows: list[dict], **chosen) -> str:
    with pytest.raises(UserError) as caught:
        clean(tmp_path, rows, **chosen)
    assert not (tmp_path / "clean").exists() and not (tmp_path / "dropped").exists()
    return str(caught.value)
