"""The merge's bench runs on a toy."""

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parent / "merge.py"


def test_the_bench_prints_its_table_and_its_ratios() -> None:
    ran = subprocess.run([sys.executable, BENCH, "--tiny"], check=True, capture_output=True, text=True)
    *table, ratios = ran.stdout.splitlines()
    assert [line.rsplit(maxsplit=4)[0] for line in table[-3:]] == ["plain copy", "from files", "merge_and_unload"]
    assert json.loads(ratios).keys() == {"seconds_of_copy", "memory_of_peft", "ok"}
