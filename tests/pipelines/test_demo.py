"""The demo as `make run` does it, held to what the README promises."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = str(Path(sys.executable).parent / "llm-finetune")
TRAINING_EVALUATION_SERVER = {"Fine-Tune LoRA", "Evaluate", "vLLM Serve"}


@pytest.mark.demo
def test_a_small_model_learns_to_turn_addresses_into_json_and_answers_a_chat_request(tmp_path):
    result = subprocess.run([COMMAND, "run", "--no-keep", "--port", "0", "--workdir", tmp_path / "runs"], text=True, cwd=tmp_path,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=1800)  # fmt: skip
    assert result.returncode == 0, result.stdout
    metrics = json.loads(next((tmp_path / "runs").glob("20*/artifacts/*/evaluate/eval_report")).read_text())["metrics"]
    assert metrics["base_json_valid"] == 0
    assert metrics["tuned_json_valid"] >= 0.95
    assert metrics["tuned_field_f1"] >= 0.7
    assert metrics["tuned_loss"] < metrics["base_loss"] / 5
    answer = json.loads(re.search(r"^answer: (\{.*\})$", result.stdout, re.MULTILINE)[1])
    assert answer["state"] == "DC"
    assert float(re.search(r"peak memory ([\d.]+) GiB", result.stdout)[1]) <= 8
    seconds = {
        name.strip(): float(time)
        for name, time in re.findall(r"^│ (.+?)\s+│\s+([\d.]+) s │$", result.stdout, re.MULTILINE)
    }
    assert len(seconds) == 13
    assert sum(time for name, time in seconds.items() if name not in TRAINING_EVALUATION_SERVER) <= 45
