"""Runs a compiled pipeline with KFP's local runner, in a separate process.

`runner.py` starts it as `python -m llm_finetune.pipelines.local.worker JOB.json` and parses its output.
"""

import json
import logging
import os
import signal
import sys
import warnings
from pathlib import Path

from kfp import components, local

from llm_finetune.components.serving.vllm_serve.local.server import OWNER_VARIABLE
from llm_finetune.components.shared.engine import processes


def main() -> None:
    """Runs the job in a JSON file: `pipeline`, `arguments`, `pipeline_root`, `cache_root` and `caching`."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    # The cards are in the process group of this process.
    processes.call_when_orphaned(int(os.environ[OWNER_VARIABLE]), lambda: os.killpg(0, signal.SIGTERM))
    logging.basicConfig(level=logging.INFO, format="%(levelname)s - %(message)s", stream=sys.stdout)
    # The local runner warns once per task that it ignores accelerators, retries and Kubernetes settings.
    warnings.filterwarnings("ignore")
    local.init(
        local.SubprocessRunner(use_venv=False),
        pipeline_root=job["pipeline_root"],
        enable_caching=job["caching"],
        cache_root=job["cache_root"],
    )
    components.load_component_from_file(job["pipeline"])(**job["arguments"])


if __name__ == "__main__":
    main()
