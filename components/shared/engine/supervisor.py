"""Runs a server as a child, and ends it with all its processes when asked to or when its owner is gone.

Started by file path with `python -I`, so it imports the standard library alone and weighs a few megabytes. It leads the
process group that `processes.start` makes: whatever the server starts is in that group too, and the supervisor adopts
and reaps what the server leaves behind. Linux only.
"""

import argparse
import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

PR_SET_CHILD_SUBREAPER = 36


def processes_of(group: int) -> dict[int, tuple[str, int]]:
    """Returns the processes of a process group.

    Args:
        group: The group's number.

    Returns:
        State letter and start time (clock ticks since boot) by process number.
    """
    found = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as stat:
            # The command in parentheses may hold anything; the fields after it are: state, parent, group, ...
            fields = stat.read().rpartition(")")[2].split()
            if int(fields[2]) == group:
                found[int(name)] = (fields[0], int(fields[19]))
    return found


def alive(group: int) -> set[int]:
    """Returns the processes of a group that still run, zombies left out."""
    return {number for number, (state, _) in processes_of(group).items() if state not in "ZX"}


def supervise(command: list[str], owner: int, grace: float) -> int:
    """Runs the command until it ends, the owner ends, or this process is told to end.

    Args:
        command: The server's command line.
        owner: Process whose end ends the server; 0 for none.
        grace: Seconds that the server has to end by itself.

    Returns:
        The server's exit status, or 0 after a stop that was asked for.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with _signals() as wake:
        watched = [wake]
        if owner:
            try:
                watched.append(os.pidfd_open(owner))
            except ProcessLookupError:
                return 0
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        status = None
        while status is None:
            ready, _, _ = select.select(watched, [], [])
            asked = wake in ready and signal.SIGTERM in os.read(wake, 4096)
            status = _reap(server.pid)
            if asked or (ready and ready[-1] != wake):
                status = 0
        # The server first: it ends its own workers in order. Then whatever is left.
        _end({server.pid}, signal.SIGTERM, grace)
        _end(None, signal.SIGTERM, grace / 2)
        _end(None, signal.SIGKILL, grace)
    return status


def _end(processes: set[int] | None, number: int, seconds: float) -> None:
    """Signals processes of the own group, each once, and waits until they are gone or the time is up.

    Args:
        processes: Which ones; None for all others of the group, new ones included.
        number: The signal.
        seconds: How long to wait.
    """
    deadline = time.monotonic() + seconds
    signalled: set[int] = set()
    while time.monotonic() < deadline:
        others = alive(os.getpgrp()) - {os.getpid()}
        left = others if processes is None else others & processes
        if not left:
            break
        for process in left - signalled:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)
        signalled |= left
        time.sleep(0.05)
        _reap()
    _reap()


def _reap(server: int = 0) -> int | None:
    """Reaps every child that ended; returns the server's status if it is among them."""
    status = None
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == server:
                status = os.waitstatus_to_exitcode(ended[1])
    return status


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """Turns signals into bytes of a pipe, whose reading end it yields."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    yield reading


def main() -> None:
    """Reads the command line and supervises."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--owner", type=int, default=0, help="process whose end ends the server")
    parser.add_argument("--grace", type=float, default=10.0, help="seconds that the server has to end by itself")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    status = supervise(options.command, options.owner, options.grace)
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main()
