"""vLLM in a process of its own: nothing of it is imported here, and nothing of it is left when it has answered."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_finetune.components.evaluation.evaluate import vllm_child
from llm_finetune.components.shared.engine import engines, processes

STALLED = 900.0
"""Seconds without a word after which the process is taken for dead; it reports while it loads and while it answers."""
SAID_EVERY = 15.0
CUT = 300


class VllmError(Exception):
    """vLLM did not answer.

    Attributes:
        log: The end of its log, to be put behind a message; empty if it was not started.
    """

    def __init__(self, message: str, log: str = "") -> None:
        """Keeps the end of the log beside the message."""
        super().__init__(message)
        self.log = f". The end of its log:\n{log}" if log else ""


def answers(request: Mapping[str, Any]) -> tuple[str, dict[str, list[list[int]]]]:
    """Starts vLLM, lets it answer, and ends it with all its processes.

    Args:
        request: What `vllm_child` reads.

    Returns:
        vLLM's version, and by contender the token ids of every answer.

    Raises:
        VllmError: If it ends without answers, or says nothing for a quarter of an hour.
    """
    with tempfile.TemporaryDirectory(prefix="vllm-", ignore_cleanup_errors=True) as scratch:
        folder, begun = Path(scratch), time.monotonic()
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
        found = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
        count = sum(map(len, found["answers"].values()))
        print(f"vLLM {found['version']}: {count} answers in {time.monotonic() - begun:.0f} s", flush=True)
        return str(found["version"]), found["answers"]


def _environment(folder: Path) -> dict[str, str]:
    own = {
        "TMPDIR": str(folder),  # it leaves files behind
        # In one process the last line of the log is the reason; a second one would hide it.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # FlashInfer's sampler compiles itself with a CUDA toolkit, which few images have.
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
    }
    return engines.environment(engines.vllm_variables(folder) | own)


def _wait(process: "subprocess.Popen[bytes]", log: Path) -> int:
    begun = heard = told = time.monotonic()
    size = 0
    while (status := process.poll()) is None:
        time.sleep(0.1)
        now, length = time.monotonic(), log.stat().st_size
        if length > size:
            size, heard = length, now
        if now - heard > STALLED:
            raise VllmError(f"it has said nothing for {STALLED:.0f} s", processes.tail(log))
        if now - told > SAID_EVERY:
            told = now
            print(f"vLLM, {now - begun:.0f} s: {processes.last_line(log)}", flush=True)
    return status


def _reason(status: int, log: Path) -> str:
    if status == 137:
        return "its process was killed; it may have run out of memory"
    return processes.tail(log, 1).strip()[:CUT].rstrip(".") or f"its process ended with status {status}"
