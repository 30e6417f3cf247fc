"""Reserves a port for a server until it listens, and finds the processes that use a port. Linux only."""

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from llm_finetune.components.serving.vllm_serve import smoke
from llm_finetune.components.shared.errors import UserError

HOST = "127.0.0.1"
LISTENING = "0A"
MAX_COMMAND_LENGTH = 120


@dataclass(frozen=True)
class ReservedPort:
    """A port that is reserved for a server.

    Attributes:
        port: The port.
        descriptors: File descriptors of the reservation; a process that inherits them keeps it.
    """

    port: int
    descriptors: tuple[int, ...]


@contextlib.contextmanager
def reserve(port: int, owner: int = 0) -> Iterator[ReservedPort]:
    """Reserves a port for a server that will listen on it.

    The reservation has two sockets, which exist until the last process with their descriptors ends. The first is bound
    to the port without listening: the kernel does not assign the port to others, and a server that sets SO_REUSEADDR,
    as vLLM and uvicorn do, can still listen. The second is bound to a name in the abstract socket namespace, which is
    per network namespace like ports are: it detects a reservation by another process.

    Args:
        port: The port; 0 for any free one.
        owner: Process that may have reserved the port already, for a server that ends with it; 0 for none.

    Yields:
        The reserved port.

    Raises:
        UserError: If the port is in use, reserved for another server, or not permitted.
    """
    with socket.socket() as bound, socket.socket(socket.AF_UNIX) as name:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((HOST, port))
        except OSError as error:
            why = f"port {port} on this machine cannot be used ({error.strerror}). {_remedy()}"
            raise UserError(in_use_message(port) if error.errno == errno.EADDRINUSE else why) from None
        number = int(bound.getsockname()[1])
        if listeners(number):
            raise UserError(in_use_message(number))
        try:
            name.bind(_reservation_name(number))
        except OSError:
            holders = _processes_with({_reservation_inode(number)})
            if owner == os.getpid() or owner not in holders:
                raise UserError(
                    f"port {number} on this machine is reserved for a server of {_describe(holders)}. {_remedy()}"
                ) from None
        yield ReservedPort(number, (bound.fileno(), name.fileno()))


def listeners(port: int) -> dict[str, str]:
    """Returns the sockets that accept connections to a port at 127.0.0.1 or localhost.

    Args:
        port: The port.

    Returns:
        The addresses of the sockets by inode.
    """
    found = {}
    for table in ("tcp", "tcp6"):
        for fields in _table(table):
            address, _, number = fields[1].partition(":")
            if fields[3] == LISTENING and address in _ADDRESSES and int(number, 16) == port:
                found[fields[9]] = _ADDRESSES[address]
    return found


def is_listening(port: int, processes: Collection[int]) -> bool:
    """Returns whether a server listens on its port.

    Args:
        port: The port.
        processes: Processes of the server.

    Returns:
        True if one of them listens; False if no process does.

    Raises:
        UserError: If another process listens there.
    """
    found = listeners(port)
    foreign = {inode for inode in found if not _processes_with({inode}, processes)}
    # Read again: a socket that has been closed has no process.
    if foreign and foreign & set(listeners(port)):
        raise UserError(in_use_message(port))
    return bool(found)


def in_use_message(port: int) -> str:
    """Returns an error message for a port in use: the process, the models it serves, and the fix.

    Args:
        port: The port.
    """
    found = listeners(port)
    where = ", ".join(sorted(set(found.values())))
    who = _describe(_processes_with(set(found))) + (f" listens on it (at {where})" if found else " has bound it")
    return f"port {port} on this machine is in use: {who}{_models(port, found)}. {_remedy()}"


def _remedy() -> str:
    return (
        "Stop that process (an earlier deployment: `llm-finetune stop`), or use another port: `vllm_serve: {port: 0}` "
        "in the recipe or `--port 0` on the command line; 0 selects a free port"
    )


def _models(port: int, found: dict[str, str]) -> str:
    host = "[::1]" if set(found.values()) == {"::1"} else HOST
    with contextlib.suppress(smoke.SmokeFailure):
        if found:
            return f" and serves {', '.join(smoke.models(f'http://{host}:{port}/v1', timeout=2)) or 'no model'}"
    return ""


def _describe(processes: Collection[int]) -> str:
    return ", ".join(map(_process, sorted(processes))) or "a process of another user or container"


def _process(number: int) -> str:
    with contextlib.suppress(OSError):
        command = Path(f"/proc/{number}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ")
        text = " ".join(command.decode(errors="replace").split())
        text = text.partition(" ")[0].rpartition("/")[2] + "".join(text.partition(" ")[1:])
        return f"process {number} ({text[:MAX_COMMAND_LENGTH]}{'…' if len(text) > MAX_COMMAND_LENGTH else ''})"
    return f"process {number}"


def _processes_with(inodes: Collection[str], processes: Collection[int] | None = None) -> set[int]:
    """Returns the processes that have a socket open.

    Args:
        inodes: Inodes of the sockets.
        processes: Processes to check; None for all whose descriptors are readable.
    """
    wanted, found = {f"socket:[{inode}]" for inode in inodes}, set()
    for number in map(int, filter(str.isdigit, os.listdir("/proc"))) if processes is None else processes:
        with contextlib.suppress(OSError):
            for descriptor in os.scandir(f"/proc/{number}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(descriptor.path) in wanted:
                        found.add(number)
    return found


def _reservation_name(port: int) -> str:
    return f"\0llm-finetune port {port}"


def _reservation_inode(port: int) -> str:
    shown = _reservation_name(port).replace("\0", "@")
    return next((fields[6] for fields in _table("unix") if " ".join(fields[7:]) == shown), "")


def _table(name: str) -> Iterator[list[str]]:
    with contextlib.suppress(FileNotFoundError), open(f"/proc/net/{name}", encoding="utf-8", errors="replace") as lines:
        next(lines)
        for line in lines:
            yield line.split()


def _proc_format(address: str) -> str:
    """Returns an address in the format of /proc/net: 32-bit words in the byte order of this machine."""
    packed = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
    return "".join(f"{word:08X}" for (word,) in struct.iter_unpack("=I", packed))


_ADDRESSES = {_proc_format(address): address for address in (HOST, "0.0.0.0", "::", "::1", f"::ffff:{HOST}")}
