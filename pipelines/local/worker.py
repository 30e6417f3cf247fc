"""Runs a compiled pipeline with KFP's local runner, in a process of its own.

Started by `runner.py` as `python -m llm_finetune.pipelines.local.worker JOB.json`; what it prints is read there.
"""

import json
import logging
import os
import select
import signal
import sys
import threading
import warnings
from pathlib import Path

from kfp import components, local


def main() -> None:
    """Runs the pipeline that a job file names: `pipeline`, `arguments`, `pipeline_root`, `cache_root`, `caching`."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    threading.Thread(target=_stop_with, args=(os.getppid(),), daemon=True).start()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s - %(message)s", stream=sys.stdout)
    # Local runs ignore accelerators, retries and Kubernetes settings, and say so once per task; images are not used.
    warnings.filterwarnings("ignore")
    local.init(
        local.SubprocessRunner(use_venv=False),
        pipeline_root=job["pipeline_root"],
        enable_caching=job["caching"],
        cache_root=job["cache_root"],
    )
    components.load_component_from_file(job["pipeline"])(**job["arguments"])


def _stop_with(owner: int) -> None:
    """Ends this process and every card it runs when the process that started it is gone, however it went."""
    try:
        descriptor = os.pidfd_open(owner)
    except ProcessLookupError:
        os.killpg(0, signal.SIGTERM)
        return
    select.select([descriptor], [], [])
    os.killpg(0, signal.SIGTERM)


if __name__ == "__main__":
    main()
