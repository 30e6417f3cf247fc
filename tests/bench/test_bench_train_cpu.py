"""The CPU benchmark's code path, on a tiny model."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent / "train_cpu.py"


def test_the_benchmark_measures_every_way_on_the_same_documents():
    options = ["--tiny", "--rounds", "1", "--documents", "16", "--rows", "even", "--threads", "1"]
    done = subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ok"]
    assert list(found["ways"]) == list(found["ratios"]) == ["stock", "unchecked", "ours"]
    assert found["ratios"]["ours"] == 1.0
    assert found["loss_difference"] < 1e-5
    # Of 70 to 110 tokens, little is padding whoever draws the rows.
    assert all(0.75 < way["real_share"] <= 1 for way in found["ways"].values())
