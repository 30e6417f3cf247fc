"""Starts processes under a supervisor, ends process groups, and ends a process together with its parent."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from llm_finetune.components.shared.engine import supervisor


def start(
    command: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    log: Path,
    owner: int,
    descriptors: Sequence[int] = (),
) -> "subprocess.Popen[bytes]":
    """Starts a command in a new process group, under a supervisor.

    Args:
        command: The command line.
        environment: All environment variables.
        folder: The working directory.
        log: File for stdout and stderr; replaced.
        owner: PID of a process with which the command ends; 0 for none.
        descriptors: File descriptors that the supervisor keeps open while it runs; the command does not inherit them.

    Returns:
        The supervisor, the leader of the process group, which exits with the status of the command.
    """
    supervised = [sys.executable, "-I", supervisor.__file__, f"--owner={owner}", "--", *command]
    with log.open("wb") as output:
        # No other descriptor is inherited: readers of this process's output see EOF when it exits.
        return subprocess.Popen(
            supervised,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            cwd=folder,
            start_new_session=True,
            pass_fds=descriptors,
        )


def end_group(group: int, grace: float, supervised: bool = True) -> bool:
    """Ends all processes of a process group: SIGTERM, then SIGKILL for those that still run.

    Args:
        group: The process group.
        grace: Seconds between SIGTERM and SIGKILL.
        supervised: Whether the leader is a supervisor, which forwards SIGTERM; else all processes receive it.

    Returns:
        Whether a process was running.
    """
    was_running = supervisor.alive(group)
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, 10.0)):
        deadline = time.monotonic() + seconds
        with contextlib.suppress(ProcessLookupError):
            if number == signal.SIGTERM and supervised and group in was_running:
                os.kill(group, number)
            else:
                os.killpg(group, number)
        while supervisor.alive(group) and time.monotonic() < deadline:
            time.sleep(0.05)
        if not supervisor.alive(group):
            break
    # A leader that is a child of this process must be reaped.
    with contextlib.suppress(ChildProcessError):
        os.waitpid(group, os.WNOHANG)
    return bool(was_running)


def call_when_orphaned(parent: int, action: Callable[[], object]) -> None:
    """Calls a function, in a thread, as soon as the parent of this process has ended.

    Args:
        parent: PID of the parent, read before it may have ended.
        action: The function.
    """

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        action()

    threading.Thread(target=wait, daemon=True).start()


def tail(log: Path, lines: int = 20) -> str:
    """Returns the last lines of a log, without empty lines and color codes."""
    with log.open(encoding="utf-8", errors="replace") as stream:
        kept = deque((line.rstrip() for line in stream if line.strip()), maxlen=lines)
    return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(kept))


def last_line(log: Path) -> str:
    """Returns the last line of a log, without the prefix of the logger."""
    line = re.sub(r"^\(.*?pid=\d+\) |[A-Z]+ \d\d-\d\d [\d:]+ \[.*?\] ", "", tail(log, 1))
    return line.strip()[:120] or "starting"
