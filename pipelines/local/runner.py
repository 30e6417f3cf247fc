"""Runs a compiled pipeline on this machine and stops all its processes at the end."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from llm_finetune.components.serving.vllm_serve.local.server import OWNER_VARIABLE
from llm_finetune.components.shared.engine import processes
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.progress import format_duration
from llm_finetune.pipelines.local.pages import Outcome, finish_pages, show_index, write_pages
from llm_finetune.pipelines.local.state import RunState
from llm_finetune.pipelines.run_view.display import Display

# KFP's local runner replaces this text with the interpreter's path in every value that it passes to a step.
REPLACED_TEXT = "python3"


@dataclass(frozen=True)
class LocalRun:
    """A finished run.

    Attributes:
        state: State of its cards.
        seconds: Wall time.
        peak_memory_gib: Peak memory of all its processes together; shared pages count once.
        succeeded: Whether all cards succeeded, except those behind a closed gate.
    """

    state: RunState
    seconds: float
    peak_memory_gib: float
    succeeded: bool


def run_pipeline(
    pipeline: Path,
    arguments: dict[str, Any],
    folder: Path,
    cache_root: Path,
    caching: bool,
    console: Console,
    environment: dict[str, str] | None = None,
) -> LocalRun:
    """Runs a pipeline and shows its progress.

    Args:
        pipeline: Compiled YAML.
        arguments: Pipeline parameters.
        folder: New folder for logs and artifacts.
        cache_root: Folder of cache entries.
        caching: Whether unchanged cards use cached results.
        console: Console for the progress.
        environment: Additional environment variables of the cards.

    Returns:
        The finished run.

    Raises:
        UserError: If a path contains text that KFP's local runner would replace.
        KeyboardInterrupt: After all processes have been stopped.
    """
    for name, value in {"folder": str(folder), **arguments}.items():
        if REPLACED_TEXT in json.dumps(value):
            raise UserError(
                f"{name} = {value!r} contains {REPLACED_TEXT!r}, which KFP's local runner would replace. Use a path "
                "without it, for example a symbolic link"
            )
    state = RunState(pipeline, folder, cache_root)
    job = folder / "job.json"
    job.write_text(
        json.dumps(
            {
                "pipeline": str(pipeline),
                "arguments": arguments,
                "caching": caching,
                "pipeline_root": str(folder / "artifacts"),
                "cache_root": str(cache_root),
            }
        )
    )
    started = time.monotonic()
    try:
        with (
            _worker(job, environment or {}) as worker,
            _measure_memory() as memory,
            Display(console, state) as display,
        ):
            assert worker.stdout is not None
            for line in worker.stdout:
                event = state.read(line)
                display.update(event)
                if event:
                    _write_pages_so_far(state)
                if state.failed:
                    break  # the local runner would continue with independent cards
            else:
                worker.wait()
    except KeyboardInterrupt:
        finish_pages(console, state, Outcome("stopped", facts={"time": format_duration(time.monotonic() - started)}))
        show_index(console, state)
        raise
    succeeded = worker.returncode == 0 and state.failed is None
    return LocalRun(state, time.monotonic() - started, memory.peak_bytes / 2**30, succeeded)


def _write_pages_so_far(state: RunState) -> None:
    with contextlib.suppress(OSError):  # reported at the end of the run, after another attempt
        write_pages(state, Outcome("running", f"as of {time.strftime('%H:%M:%S')}; updated when a card ends"))


@contextlib.contextmanager
def _worker(job: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Starts the worker in its own session and stops all its processes at the end."""
    worker = subprocess.Popen(
        [sys.executable, "-m", "llm_finetune.pipelines.local.worker", str(job)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        errors="replace",
        bufsize=1,
        start_new_session=True,
        # UTF-8, whatever the locale: that is how the cards' words are read here, and how they read text themselves.
        env={
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "PYTHONUTF8": "1",
            OWNER_VARIABLE: str(os.getpid()),
            **environment,
        },
    )
    try:
        yield worker
    finally:
        processes.end_group(worker.pid, grace=10.0, supervised=False)
        worker.wait()
        if worker.stdout:
            worker.stdout.close()


@dataclass
class _Memory:
    peak_bytes: int = 0


@contextlib.contextmanager
def _measure_memory(every_seconds: float = 2.0) -> Iterator[_Memory]:
    """Measures the peak memory of this process and of all processes of the run during the block."""
    memory, done = _Memory(), threading.Event()

    def watch() -> None:
        while not done.wait(every_seconds):
            memory.peak_bytes = max(memory.peak_bytes, _memory_of_run())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield memory
    finally:
        done.set()
        watcher.join()


def _memory_of_run() -> int:
    """Returns the proportional set size of the run's processes in bytes; the resident set size if not on Linux.

    The environment of each process of a run contains the owner's process ID. The parent process is no criterion: the
    model server is reparented to init.
    """
    own, total = os.getpid(), 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid == own or process.environ().get(OWNER_VARIABLE) == str(own):
                memory = process.memory_full_info()
                total += getattr(memory, "pss", memory.rss)
    return total
