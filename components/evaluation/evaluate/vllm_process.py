"""Runs vLLM in a separate process, which is not imported here and has ended completely afterwards."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from llm_finetune.components.evaluation.evaluate import vllm_child
from llm_finetune.components.shared.engine import engines, processes

STALL_TIMEOUT = 900.0
"""Seconds without log output after which the process counts as stalled; it logs while it loads and generates."""
PROGRESS_INTERVAL = 15.0
MAX_REASON_CHARACTERS = 300


class VllmError(Exception):
    """vLLM generated no answers.

    Attributes:
        log: Last lines of its log, to be appended to a message; empty if it was not started.
    """

    def __init__(self, message: str, log: str = "") -> None:
        """Creates the error.

        Args:
            message: The reason.
            log: Last lines of the log.
        """
        super().__init__(message)
        self.log = f". Last lines of its log:\n{log}" if log else ""


def run(request: Mapping[str, object]) -> tuple[str, dict[str, list[list[int]]]]:
    """Starts vLLM, waits for its answers, and ends all its processes.

    Args:
        request: The request, in the format of `vllm_child`.

    Returns:
        vLLM's version, and by candidate the token ids of every answer.

    Raises:
        VllmError: If it ends without answers, or logs nothing for 15 minutes.
    """
    with tempfile.TemporaryDirectory(prefix="vllm-", ignore_cleanup_errors=True) as scratch:
        folder, start = Path(scratch), time.monotonic()
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        command, log = [sys.executable, vllm_child.__file__, scratch], folder / "vllm.log"
        process = processes.start(command, _environment(folder), folder, log, owner=os.getpid())
        try:
            status = _wait(process, log)
        finally:
            processes.end_group(process.pid, grace=5.0)
            process.wait()
        if status or not (folder / "answers.json").is_file():
            raise VllmError(_reason(status, log), processes.tail(log))
        result = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
        count = sum(map(len, result["answers"].values()))
        print(f"vLLM {result['version']}: {count} answers in {time.monotonic() - start:.0f} s", flush=True)
        return str(result["version"]), result["answers"]


def _environment(folder: Path) -> dict[str, str]:
    own = {
        "TMPDIR": str(folder),  # vLLM leaves temporary files behind
        # With one process, the last line of the log is the error of that process.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # FlashInfer's sampler is compiled with a CUDA toolkit, which few images have.
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
    }
    return engines.environment(engines.vllm_variables(folder) | own)


def _wait(process: "subprocess.Popen[bytes]", log: Path) -> int:
    start = last_output = last_progress = time.monotonic()
    size = 0
    while (status := process.poll()) is None:
        time.sleep(0.1)
        now, new_size = time.monotonic(), log.stat().st_size
        if new_size > size:
            size, last_output = new_size, now
        if now - last_output > STALL_TIMEOUT:
            raise VllmError(f"it logged nothing for {STALL_TIMEOUT:.0f} s", processes.tail(log))
        if now - last_progress > PROGRESS_INTERVAL:
            last_progress = now
            print(f"vLLM, {now - start:.0f} s: {processes.last_line(log)}", flush=True)
    return status


def _reason(status: int, log: Path) -> str:
    if status == 137:
        return "its process was killed; it may have run out of memory"
    last_line = processes.tail(log, 1).strip()[:MAX_REASON_CHARACTERS].rstrip(".")
    return last_line or f"its process ended with status {status}"
