"""The GPU benchmark's code path, on a tiny model and whatever device there is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "train_gpu.py"


def bench(*options: str) -> dict:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--shape", "tiny", *options],
        capture_output=True, text=True, timeout=900, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_benchmark_measures_every_way_on_the_same_documents():
    found = bench("--steps", "2")
    assert found["ok"] and not found["failed"]
    assert list(found["ways"]) == ["simple", "trl", "ours"]
    assert found["skipped"] == {"unsloth": "unsloth is not installed"}
    assert found["ratios"]["ours"] == 1.0
    assert found["ways"]["simple"]["samples_per_step"] == 16
    assert found["ways"]["ours"]["steps"] == 2
    losses = [way["loss"] for way in found["ways"].values()]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    assert losses[0] == pytest.approx(6.0, abs=0.1)  # a random model knows one of 400 tokens


@pytest.mark.soak
def test_our_way_behind_torch_compile_has_the_same_loss():
    found = bench("--steps", "2", "--ways", "ours,compiled")
    assert found["ok"] and list(found["ways"]) == ["ours", "compiled"]
    assert found["ways"]["compiled"]["loss"] == pytest.approx(found["ways"]["ours"]["loss"], rel=1e-5)
