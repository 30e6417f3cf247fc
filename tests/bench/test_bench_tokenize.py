"""The Tokenize benchmark's code path, on a toy tokenizer."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent / "tokenize_rows.py"


def test_the_benchmark_measures_both_sides_on_the_same_rows():
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--tiny", "--rounds", "1"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ok"]
    (size,) = found["sizes"]
    assert size["rows"] == 200
    # The card adds an end token to each row and leaves out rows that are too long; the bare encoder does neither.
    assert 0.7 * size["bare_tokens"] < size["card_tokens"] < size["bare_tokens"] + 200
    assert found["ratios"]["rate"] > 0
