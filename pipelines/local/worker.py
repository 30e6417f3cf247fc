"""Runs a compiled pipeline with KFP's local runner, in a separate process.

`runner.py` starts it as `python -m llm_finetune.pipelines.local.worker JOB.json` and parses its output.
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
    """Runs the job in a JSON file: `pipeline`, `arguments`, `pipeline_root`, `cache_root` and `caching`."""
    job = json.loads(Path(sys.argv[1]).read_text())
    threading.Thread(target=_stop_after, args=(os.getppid(),), daemon=True).start()
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


def _stop_after(owner: int) -> None:
    """Stops this process and its cards when the owner process exits for any reason."""
    try:
        descriptor = os.pidfd_open(owner)
    except ProcessLookupError:
        os.killpg(0, signal.SIGTERM)
        return
    select.select([descriptor], [], [])
    os.killpg(0, signal.SIGTERM)


if __name__ == "__main__":
    main()
