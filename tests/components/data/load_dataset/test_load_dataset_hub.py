"""Load Dataset: datasets of the Hugging Face Hub."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from fake_datasets_hub import TOKEN, FakeHub
from load_dataset_file import LINES, ROWS, parquet

from llm_finetune.components.shared import tables

HUB_CASES = [
    {"hf_dataset": "org/alpaca"},
    {"hf_dataset": "org/alpaca", "hf_revision": "v1", "max_samples": 3, "hf_split": "test"},
    {"hf_dataset": "org/lines", "max_samples": 1500},
    {"source_type": "jsonl_path", "jsonl_path": "hf://datasets/org/lines/train.jsonl", "max_samples": 0},
    {"hf_dataset": "org/alpaca", "hf_split": "dev"},
    {"hf_dataset": "org/alpaca", "hf_config": "large"},
    {"hf_dataset": "org/none"},
    {"hf_dataset": "org/gated"},
    {"hf_dataset": "org/alpaca", "hf_revision": "v9"},
    {"hf_dataset": "a b"},
    {"hf_dataset": "org/untyped", "max_samples": 0},
]
HUB_SCRIPT = """
import json, sys
from llm_finetune.components.data.load_dataset import step
from llm_finetune.components.shared.errors import UserError
for i, case in enumerate(json.loads(sys.argv[1])):
    try:
        facts = step.load_dataset(f"{sys.argv[2]}/{i}", f"{sys.argv[2]}/{i}.html", step.Settings.of(case))
        print(json.dumps(facts.metadata()))
    except UserError as error:
        print(json.dumps(str(error)))
print(json.dumps([name for name in ("torch", "transformers") if name in sys.modules]))
"""


def on_hub(hub, folder: Path, cases: list[dict], token: str = "") -> list:
    folder.mkdir()
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "HF_TOKEN": token}
    command = [sys.executable, "-c", HUB_SCRIPT, json.dumps(cases), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_hub(tmp_path):
    hub = FakeHub()
    test_split = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS[:5]), test_split)
    files = {"data/train-0.parquet": parquet(), "data/test-0.parquet": test_split.getvalue(), "README.md": b"# hi"}
    first = hub.add("org/alpaca", files, branch="v1")
    second = hub.add("org/alpaca", {**files, "README.md": b"# changed"})
    lines = hub.add("org/lines", {"train.jsonl": LINES * 60})
    shards = ["train-0.jsonl", "train-1.jsonl"]
    hub.add(
        "org/untyped", {name: b'{"a": %s, "b": "x"}\n' % a for name, a in zip(shards, (b"null", b'"x"'), strict=True)}
    )
    gated = hub.add("org/gated", {"train.jsonl": LINES}, gated=True)
    hub.cards["org/alpaca"] = {"license": ["cc-by-nc-4.0", "mit"]}
    with hub.serving():
        *answers, heavy = on_hub(hub, tmp_path / "a", HUB_CASES)
        assert heavy == []
        whole, pinned, part, by_path, split, config, none, refusal, revision, name, untyped = answers
        assert (whole["rows"], whole["revision"], whole["source"]) == (50, second, "org/alpaca train")
        assert (pinned["rows"], pinned["revision"]) == (3, first)
        assert (whole["license"], part["license"]) == ("cc-by-nc-4.0 and mit", "unknown")
        assert (part["rows"], part["revision"]) == (1500, lines)
        assert by_path["rows"] == 3000
        assert [row for batch in tables.batches(tmp_path / "a" / "0") for row in batch.to_pylist()] == ROWS
        assert "Available splits: ['train', 'test']" in split
        assert "'large' not found" in config
        assert "dataset 'org/none' does not exist on the Hub" in none
        assert "org/gated is gated" in refusal and "HF_TOKEN" in refusal
        assert "no revision 'v9'" in revision
        assert "'a b'" in name
        assert "'a' had only null values" in untyped and "'hf://datasets/org/untyped@" in untyped
        assert TOKEN not in hub.tokens_seen
        assert on_hub(hub, tmp_path / "b", [{"hf_dataset": "org/gated"}], TOKEN)[0]["revision"] == gated
        assert "is gated" in on_hub(hub, tmp_path / "c", [{"hf_dataset": "org/gated"}], "hf_other")[0]
    assert "could not be" in on_hub(hub, tmp_path / "d", [{"hf_dataset": "org/alpaca"}])[0]
