"""Runs a compiled pipeline on this machine and stops all of it when asked to."""

import contextlib
import json
import os
import signal
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
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.progress import format_duration
from llm_finetune.pipelines.local.pages import Outcome, finish_pages, show_index, write_pages
from llm_finetune.pipelines.local.state import RunState
from llm_finetune.pipelines.run_view.display import Display

# KFP's local runner replaces this text in every value it passes to a step by the interpreter's path.
REWRITTEN = "python3"


@dataclass(frozen=True)
class LocalRun:
    """A run that has ended.

    Attributes:
        state: Its cards.
        seconds: Wall time.
        peak_memory_gib: Most memory that all its processes held together, shared pages counted once.
        succeeded: Whether every card that was to run did.
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
    """Runs a pipeline to its end, showing its progress.

    Args:
        pipeline: Compiled YAML.
        arguments: Its parameters.
        folder: New folder for logs and artifacts.
        cache_root: Folder of cache entries.
        caching: Whether earlier results are taken where nothing has changed.
        console: Where progress is shown.
        environment: Variables for the cards, over this process's own.

    Returns:
        The run.

    Raises:
        UserError: If a path holds text that KFP's local runner would rewrite.
        KeyboardInterrupt: After everything has been stopped.
    """
    for name, value in {"folder": str(folder), **arguments}.items():
        if REWRITTEN in json.dumps(value):
            raise UserError(
                f"{name} = {value!r} holds {REWRITTEN!r}, which KFP's local runner would replace. "
                "Use a path without it (a symbolic link will do)"
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
            _memory_watch() as memory,
            Display(console, state) as display,
        ):
            assert worker.stdout is not None
            for line in worker.stdout:
                event = state.read(line)
                display.update(event)
                if event:
                    _write_pages_so_far(state)
                if state.failed:
                    break  # the rest of the graph is of no use any more
            else:
                worker.wait()
    except KeyboardInterrupt:
        finish_pages(console, state, Outcome("stopped", facts={"time": format_duration(time.monotonic() - started)}))
        show_index(console, state)
        raise
    succeeded = worker.returncode == 0 and state.failed is None
    return LocalRun(state, time.monotonic() - started, memory.peak_bytes / 2**30, succeeded)


def _write_pages_so_far(state: RunState) -> None:
    with contextlib.suppress(OSError):  # told at the run's end, where it is tried again
        write_pages(state, Outcome("running", f"as of {time.strftime('%H:%M:%S')}; written anew whenever a card ends"))


@contextlib.contextmanager
def _worker(job: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Starts the worker in a session of its own and leaves nothing of it behind."""
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
        env={**os.environ, "PYTHONUNBUFFERED": "1", OWNER_VARIABLE: str(os.getpid()), **environment},
    )
    try:
        yield worker
    finally:
        stop_group(worker)


def stop_group(worker: subprocess.Popen[Any], grace: float = 10.0) -> None:
    """Ends a process and all that it started in its session: SIGTERM first, SIGKILL after a while.

    Args:
        worker: Leader of the session.
        grace: Seconds between the two.
    """
    group = worker.pid
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not _alive(group):
            break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, number)
        deadline = time.monotonic() + grace
        while _alive(group) and time.monotonic() < deadline:
            worker.poll()
            time.sleep(0.05)
    worker.wait()
    if worker.stdout:
        worker.stdout.close()


def _alive(group: int) -> bool:
    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                return True
    return False


@dataclass
class _Memory:
    peak_bytes: int = 0


@contextlib.contextmanager
def _memory_watch(every_seconds: float = 2.0) -> Iterator[_Memory]:
    """Measures the memory of this process and of all that the run started while the block runs."""
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
    """Returns the proportional set size of the run's processes in bytes (Linux; elsewhere their resident size).

    Every process of a run carries its owner's number, the model server too, which is nobody's child.
    """
    own, total = os.getpid(), 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid == own or process.environ().get(OWNER_VARIABLE) == str(own):
                memory = process.memory_full_info()
                total += getattr(memory, "pss", memory.rss)
    return total
