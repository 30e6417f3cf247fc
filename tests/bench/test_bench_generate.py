import json
import re

import pytest
from bench import generate


def test_the_bench_of_batched_generation_gives_the_same_answers_both_ways(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["generate.py", "--tiny", "--prompts", "6", "--tokens", "6", "--rounds", "1"])
    status = generate.main()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    # How much faster is for the bench to say, not for a busy machine.
    assert figures["same_answers"] == 1.0
    assert status == (0 if figures["ok"] else 1) and figures["ok"] == (figures["ratio"] >= figures["goal"])


@pytest.mark.soak
def test_the_bench_measures_vllm_with_an_adapter(servable, monkeypatch, capsys):
    folders = ["--model", str(servable["model_config"]), "--adapter", str(servable["ft_result"])]
    sizes = ["--prompts", "2", "--tokens", "4", "--rounds", "1"]
    monkeypatch.setattr("sys.argv", ["generate.py", *folders, *sizes])
    generate.main()
    assert re.search(r"^vLLM +\d+\.\d\d$", capsys.readouterr().out, re.M)
