"""Help and refusals that need no data do not import kfp or torch, which take seconds."""

import os
import subprocess
import sys

import pytest

REPORT = (
    "import atexit, sys; from llm_finetune.pipelines.cli import main; "
    "atexit.register(lambda: print('imported:', sorted({'kfp', 'torch', 'pyarrow'} & sys.modules.keys()))); "
    "sys.argv[0] = 'llm-finetune'; main()"
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--help"], "Usage: llm-finetune"),
        (["run", "--set", "epochs=3"], "the pipeline has no parameter 'epochs'; did you mean 'num_epochs'?"),
        (["run", "--set", "num_epochs=0"], "recipe.finetune_lora.num_epochs = 0"),
        (["run", "--base-model", "./none"], "no base model folder at ./none"),
        (["submit", "--set", "num_epochs=0"], "recipe.finetune_lora.num_epochs = 0"),
        (["submit", "--cron", "daily"], "--cron 'daily' has 1 fields"),
        (["submit", "--option", "spot"], "--option 'spot' does not have the form name=value"),
    ],
)
def test_help_and_refusals_come_before_slow_imports(tmp_path, arguments, message):
    result = subprocess.run(
        [sys.executable, "-c", REPORT, *arguments],
        capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"COLUMNS": "160"}, check=False,
    )  # fmt: skip
    assert message in result.stdout + result.stderr
    assert "imported: []" in result.stdout
    assert not list((tmp_path / "runs").glob("*"))
