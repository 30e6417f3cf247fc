"""What the tests of local runs share: a user's folder, recipe and command."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tiny import tiny_model

COMMAND = str(Path(sys.executable).parent / "llm-finetune")
RUN = ["--dataset", "rows.jsonl", "--base-model", "model", "--resume", "--recipe"]
RECIPE = """
parameters:
  serve_target: local
  num_epochs: 1
  max_length: 256
  learning_rate: 1.0e-3
  template: "Do \\"{{instruction}}\\":\\n{{input}}\\n\\n{{output}}"
  gate_rules: {gate}
finetune_lora: {{evaluate_first: false, dtype: float32}}
evaluate: {{generate_samples: 2, max_new_tokens: 4}}
vllm_serve: {{port: 0, max_model_len: 256, max_batch_tokens: 256, answer_tokens: 8}}
"""


def rows(path: Path, count: int = 40) -> Path:
    path.write_text("".join(
        json.dumps({"instruction": "Repeat the number", "input": f"number {i}", "output": f"this is {i}"}) + "\n"
        for i in range(count)
    ))  # fmt: skip
    return path


def run(*arguments, cwd: Path, **options) -> subprocess.CompletedProcess:
    environment = {**os.environ, "COLUMNS": "160", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run([COMMAND, "run", *map(str, arguments)], cwd=cwd, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, env=environment, timeout=400, **options)  # fmt: skip


def recipe(path: Path, gate: str = "samples_used > 0", more: str = "") -> Path:
    path.write_text(RECIPE.format(gate=gate) + more)
    return path


def user_folder(folder: Path) -> Path:
    """Writes what a user brings along: a model and rows."""
    tiny_model(folder / "model", layers=1, head=32)
    rows(folder / "rows.jsonl")
    return folder
