"""The data bench's code path, on a few rows."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent / "data.py"


def test_the_bench_compares_every_step(tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--rows", "700", "--rounds", "1", "--sizes", "300", "--scratch", str(tmp_path)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert list(found["ratio_of_hand"]) == ["load", "filter", "split"]
    assert 0 < found["peak_gib"] < 1 and not list(tmp_path.iterdir())
