"""Processes that do a card's work beside it: started under a supervisor, and ended with all that they have started."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
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
    """Starts a command in a process group of its own, under a supervisor.

    Args:
        command: The command line.
        environment: Its whole environment.
        folder: Its working directory.
        log: File for everything that it prints; replaced.
        owner: Process whose end ends the command; 0 for none.
        descriptors: Open files that the supervisor keeps open as long as it runs; the command does not get them.

    Returns:
        The supervisor, which leads the group of its number and ends with the command's status.
    """
    supervised = [sys.executable, "-I", supervisor.__file__, f"--owner={owner}", "--", *command]
    with log.open("wb") as output:
        # No other descriptor of ours is handed on: whoever reads this process's output sees its end when it ends.
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


def end_group(group: int, grace: float) -> bool:
    """Ends all processes of a group: TERM, and KILL for what is left after the grace time.

    Args:
        group: The process group.
        grace: Seconds between TERM and KILL.

    Returns:
        Whether anything was running.
    """
    was_running = supervisor.alive(group)
    # The supervisor hands TERM on to the others and waits for them; without it, all are told directly.
    for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 10.0)):
        deadline = time.monotonic() + patience
        with contextlib.suppress(ProcessLookupError):
            if number == signal.SIGTERM and group in was_running:
                os.kill(group, number)
            else:
                os.killpg(group, number)
        while supervisor.alive(group) and time.monotonic() < deadline:
            time.sleep(0.05)
        if not supervisor.alive(group):
            break
    # Where this process started the group, it has to be waited for.
    with contextlib.suppress(ChildProcessError):
        os.waitpid(group, os.WNOHANG)
    return bool(was_running)


def tail(log: Path, lines: int = 20) -> str:
    """Returns the last lines of a log, without colours and empty lines."""
    with log.open(encoding="utf-8", errors="replace") as stream:
        kept = deque((line.rstrip() for line in stream if line.strip()), maxlen=lines)
    return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(kept))


def last_line(log: Path) -> str:
    """Returns the last line of a log without the logger's prefix."""
    line = re.sub(r"^\(.*?pid=\d+\) |[A-Z]+ \d\d-\d\d [\d:]+ \[.*?\] ", "", tail(log, 1))
    return line.strip()[:120] or "loading its libraries"
