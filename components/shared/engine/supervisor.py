"""Runs a command as a child, and ends all processes of its group on SIGTERM or when the owner process ends.

Started by file path with `python -I`, so it imports the standard library only and needs a few megabytes. It leads the
process group of `processes.start`, and reaps orphaned descendants (PR_SET_CHILD_SUBREAPER). Linux only.
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
        group: ID of the process group.

    Returns:
        State and start time (clock ticks since boot) by PID.
    """
    found = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as stat:
            # The command name in parentheses can have any characters. Then: state, PPID, process group, ...
            fields = stat.read().rpartition(")")[2].split()
            if int(fields[2]) == group:
                found[int(name)] = (fields[0], int(fields[19]))
    return found


def alive(group: int) -> set[int]:
    """Returns the running processes of a group, without zombies."""
    return {number for number, (state, _) in processes_of(group).items() if state not in "ZX"}


def supervise(command: list[str], owner: int, grace: float) -> int:
    """Runs a command until it exits, the owner ends, or this process receives SIGTERM.

    Args:
        command: The command line.
        owner: PID of the owner; 0 for none.
        grace: Seconds between SIGTERM and SIGKILL.

    Returns:
        The exit status of the command; 0 if it was stopped.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with _signals() as wake:
        watched = [wake]
        if owner:
            try:
                watched.append(os.pidfd_open(owner))
            except ProcessLookupError:
                return 0
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        status = None
        while status is None:
            ready, _, _ = select.select(watched, [], [])
            stop = wake in ready and signal.SIGTERM in os.read(wake, 4096)
            status = _reap(child.pid)
            if stop or (ready and ready[-1] != wake):
                status = 0
        # The child first, which ends its own workers, then all other processes.
        _end({child.pid}, signal.SIGTERM, grace)
        _end(None, signal.SIGTERM, grace / 2)
        _end(None, signal.SIGKILL, grace)
    return status


def _end(processes: set[int] | None, number: int, seconds: float) -> None:
    """Sends a signal once to each process of the own group, and waits until they have ended.

    Args:
        processes: The processes; None for all others of the group, including new ones.
        number: The signal.
        seconds: Maximum time to wait.
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


def _reap(child: int = 0) -> int | None:
    """Reaps all ended children; returns the exit status of `child` if it is one of them."""
    status = None
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == child:
                status = os.waitstatus_to_exitcode(ended[1])
    return status


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """Writes received signals to a pipe, and yields its read end."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    yield reading


def main() -> None:
    """Parses the command line and runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--owner", type=int, default=0, help="PID of a process with which the command ends")
    parser.add_argument("--grace", type=float, default=10.0, help="seconds between SIGTERM and SIGKILL")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    status = supervise(options.command, options.owner, options.grace)
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main()
