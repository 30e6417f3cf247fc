"""One file for Load Dataset in every format that it reads, and runs of the card on it."""

import gzip
import io
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from llm_finetune.components.data.load_dataset import step
from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError

ROWS = [{"instruction": f"do {i}", "input": "", "output": f"ütf {i}"} for i in range(50)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def load(tmp_path: Path, path: Path | str, **more) -> tuple[step.Facts, list[dict]]:
    kind = "jsonl_url" if "://" in str(path) else "jsonl_path"
    chosen = step.Settings.of({"source_type": kind, kind: str(path), "max_samples": 0, **more})
    facts = step.load_dataset(tmp_path / "raw", tmp_path / "raw.html", chosen)
    return facts, [row for batch in tables.batches(tmp_path / "raw") for row in batch.to_pylist()]


def refused(tmp_path: Path, path: Path | str, **more) -> str:
    shutil.rmtree(tmp_path / "raw", ignore_errors=True)
    with pytest.raises(UserError) as caught:
        load(tmp_path, path, **more)
    assert not (tmp_path / "raw").exists() and not (tmp_path / "raw.partial").exists()
    return str(caught.value)


def file(tmp_path: Path, content: bytes, name: str = "data.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def parquet() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), buffer)
    return buffer.getvalue()


def as_csv() -> bytes:
    lines = ["instruction,input,output", *(f'{row["instruction"]},,"{row["output"]}"' for row in ROWS)]
    return "\n".join(lines).encode()


FILES = {
    "data.jsonl": LINES,
    "data.txt": LINES,
    "bom.jsonl": b"\xef\xbb\xbf" + LINES,
    "windows.jsonl": LINES.replace(b"\n", b"\r\n"),
    "blank.jsonl": b"\n" + LINES.replace(b"\n", b"\n\n").rstrip(b"\n"),
    "data.json": json.dumps(ROWS, indent=2, ensure_ascii=False).encode(),
    "data.jsonl.gz": gzip.compress(LINES[:1000]) + gzip.compress(LINES[1000:]),
    "data.jsonl.zst": zstandard.compress(LINES),
    "unnamed": gzip.compress(json.dumps(ROWS).encode()),
    "data.parquet": parquet(),
    "data.csv": as_csv(),
    "data.csv.gz": gzip.compress(as_csv()),
    "data.tsv": as_csv().replace(b",", b"\t"),
}
