"""The CPU benchmark's code path, on a tiny model."""

import json
import os
import sys


def test_the_benchmark_measures_every_way_on_the_same_documents(monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [*sys.path])  # the script adds its folder
    for name in ("GOMP_SPINCOUNT", "OMP_NUM_THREADS"):  # and sets these
        monkeypatch.setenv(name, os.environ.get(name, "1000"))
    from bench import train_cpu

    options = ["--tiny", "--rounds", "1", "--documents", "16", "--rows", "even", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["train_cpu.py", *options])
    status, shown = train_cpu.main(), capsys.readouterr()
    assert status == 0, shown.out + shown.err
    found = json.loads(shown.out.splitlines()[-1])
    assert found["ok"]
    assert list(found["ways"]) == list(found["ratios"]) == ["stock", "unchecked", "ours"]
    assert found["ratios"]["ours"] == 1.0
    assert found["loss_difference"] < 1e-5
    # Of 70 to 110 tokens, little is padding whoever draws the rows.
    assert all(0.75 < way["real_share"] <= 1 for way in found["ways"].values())
