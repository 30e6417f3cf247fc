"""Runs a compiled pipeline with KFP's DockerRunner, every card confined; `python card_runner.py JOB.json`.

A process of its own, because the runner's settings are global to a process.
"""

import json
import logging
import sys
import warnings
from pathlib import Path

from docker.types import Mount
from kfp import components, local


def main() -> None:
    """Runs the pipeline that a job file names: `pipeline`, `arguments`, `pipeline_root`, `mounts`."""
    job = json.loads(Path(sys.argv[1]).read_text())
    logging.basicConfig(level=logging.INFO, format="%(levelname)s - %(message)s", stream=sys.stdout)
    warnings.filterwarnings("ignore")  # local runs ignore retries and Kubernetes settings, and say so per task
    runner = local.DockerRunner(
        user="10001:0",
        read_only=True,
        tmpfs={"/tmp": "rw,size=4g,mode=1777"},
        network_mode="none",
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        mem_limit="8g",
        mounts=[Mount(target, source, type="bind", read_only=True) for target, source in job["mounts"].items()],
    )
    local.init(runner, pipeline_root=job["pipeline_root"])
    components.load_component_from_file(job["pipeline"])(**job["arguments"])


if __name__ == "__main__":
    main()
