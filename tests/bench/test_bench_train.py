"""The GPU benchmark's code path, on a tiny model and whatever device there is."""

import json
import sys

import pytest


@pytest.fixture
def bench(monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [*sys.path])  # the script adds its folder
    from bench import train_gpu

    def run(*options: str) -> dict:
        monkeypatch.setattr(sys, "argv", ["train_gpu.py", "--shape", "tiny", *options])
        status, shown = train_gpu.main(), capsys.readouterr()
        assert status == 0, shown.out + shown.err
        return json.loads(shown.out.splitlines()[-1])

    return run


def test_the_benchmark_measures_every_way_on_the_same_documents(bench):
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
def test_our_way_behind_torch_compile_has_the_same_loss(bench):
    found = bench("--steps", "2", "--ways", "ours,compiled")
    assert found["ok"] and list(found["ways"]) == ["ours", "compiled"]
    assert found["ways"]["compiled"]["loss"] == pytest.approx(found["ways"]["ours"]["loss"], rel=1e-5)
