"""`llm-finetune submit` as the tests call it, and the ways that a run may go."""

import io

import pytest
from kfp_api import KfpApi
from rich.console import Console

from llm_finetune.components.shared.errors import UserError
from llm_finetune.pipelines.submit.start import submit
from llm_finetune.pipelines.submit.submission import Submission

DONE = ["check-recipe", "load-dataset", "load-model", "finetune-lora", "quality-gate"]
OPEN = ("SUCCEEDED", dict.fromkeys([*DONE, "merge-export", "vllm-serve", "report"], "SUCCEEDED"), "")
RUNNING = ("RUNNING", {"check-recipe": "SUCCEEDED", "load-dataset": "RUNNING"}, "")


def submitted(api: KfpApi, **wanted) -> tuple[int, str]:
    shown = io.StringIO()
    status = submit(Console(file=shown, width=200), Submission(**{"host": api.url, "poll_seconds": 0.01} | wanted))
    return status, shown.getvalue()


def refused(api: KfpApi, **wanted) -> str:
    with pytest.raises(UserError) as error:
        submitted(api, **wanted)
    assert api.store["runs"] == []
    return str(error.value)
