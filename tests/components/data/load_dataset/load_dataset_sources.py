"""Lines of sources for Load Dataset, and runs of the card on any that `jsonl_path` or a mixture names."""

import json
import shutil
from pathlib import Path

import pytest

from llm_finetune.components.data.load_dataset import step
from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError


def lines(start: int, count: int, **more) -> bytes:
    return "".join(json.dumps({"text": f"row {start + i}", **more}) + "\n" for i in range(count)).encode()


def load(tmp_path: Path, path: str, **more) -> tuple[step.Facts, list[dict]]:
    chosen = step.Settings.of({"source_type": "jsonl_path", "jsonl_path": path, "max_samples": 0, **more})
    shutil.rmtree(tmp_path / "raw", ignore_errors=True)
    facts = step.load_dataset(tmp_path / "raw", tmp_path / "raw.html", chosen)
    return facts, [row for batch in tables.batches(tmp_path / "raw") for row in batch.to_pylist()]


def refused(tmp_path: Path, path: str, **more) -> str:
    (tmp_path / "raw.html").unlink(missing_ok=True)
    with pytest.raises(UserError) as caught:
        load(tmp_path, path, **more)
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(("raw", "tmp"))]
    return str(caught.value)
