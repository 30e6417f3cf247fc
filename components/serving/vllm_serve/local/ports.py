"""Ports of this machine: one that is held for a server until it listens, and who listens on one. Linux only."""

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
SHOWN = 120


@dataclass(frozen=True)
class Held:
    """A port that is held for a server.

    Attributes:
        port: The port.
        descriptors: What holds it; a process that inherits them holds it too.
    """

    port: int
    descriptors: tuple[int, ...]


@contextlib.contextmanager
def held(port: int, owner: int = 0) -> Iterator[Held]:
    """Holds a port for a server that listens on it some time later.

    Two sockets hold it, each until the last process that has it ends. The first is bound to the port and does not
    listen: the system gives the port to nobody who asks for any free one, and a server that sets SO_REUSEADDR, as
    vLLM and uvicorn do, can still listen. The second is bound to a name of the abstract socket namespace, which the
    network namespace has to itself as it has its ports: whoever holds the same port in this way is told who has it.

    Args:
        port: The port; 0 takes any that is free.
        owner: Process that may hold the port already, for a server that ends with it; 0 for none.

    Yields:
        The held port.

    Raises:
        UserError: If it is in use, held for another server, or not allowed.
    """
    with socket.socket() as bound, socket.socket(socket.AF_UNIX) as name:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((HOST, port))
        except OSError as error:
            why = f"port {port} on this machine cannot be used ({error.strerror}). {_way_out()}"
            raise UserError(in_use(port) if error.errno == errno.EADDRINUSE else why) from None
        number = int(bound.getsockname()[1])
        if listeners(number):
            raise UserError(in_use(number))
        try:
            name.bind(_name(number))
        except OSError:
            holders = _holders({_name_inode(number)})
            if owner == os.getpid() or owner not in holders:
                raise UserError(
                    f"port {number} on this machine is held for a server that {_shown(holders)} starts. {_way_out()}"
                ) from None
        yield Held(number, (bound.fileno(), name.fileno()))


def listeners(port: int) -> dict[str, str]:
    """Returns the sockets that listen on a port for clients of 127.0.0.1 and of localhost.

    Args:
        port: The port.

    Returns:
        Their addresses by inode.
    """
    found = {}
    for table in ("tcp", "tcp6"):
        for fields in _table(table):
            address, _, number = fields[1].partition(":")
            if fields[3] == LISTENING and address in _ADDRESSES and int(number, 16) == port:
                found[fields[9]] = _ADDRESSES[address]
    return found


def is_listened_on_by(port: int, processes: Collection[int]) -> bool:
    """Tells whether a server listens on its port.

    Args:
        port: The port.
        processes: The server's processes.

    Returns:
        Whether one of them listens; False where nobody does.

    Raises:
        UserError: If another process listens there.
    """
    found = listeners(port)
    foreign = {inode for inode in found if not _holders({inode}, processes)}
    # A socket that was closed meanwhile is nobody's.
    if foreign and foreign & set(listeners(port)):
        raise UserError(in_use(port))
    return bool(found)


def in_use(port: int) -> str:
    """Returns a message about a port that somebody listens on: who, with which models, and what to do.

    Args:
        port: The port.
    """
    found = listeners(port)
    where = ", ".join(sorted(set(found.values())))
    who = _shown(_holders(set(found))) + (f" listens there (on {where})" if found else " has bound it")
    return f"port {port} on this machine is in use: {who}{_models(port, found)}. {_way_out()}"


def _way_out() -> str:
    return (
        "Stop what has it (an earlier deployment: `llm-finetune stop`), or take another port: `vllm_serve: {port: 0}` "
        "in the recipe, `--port 0` on the command line; 0 takes a free one"
    )


def _models(port: int, found: dict[str, str]) -> str:
    host = "[::1]" if set(found.values()) == {"::1"} else HOST
    with contextlib.suppress(smoke.SmokeFailure):
        if found:
            return f" and serves {', '.join(smoke.models(f'http://{host}:{port}/v1', timeout=2)) or 'no model'}"
    return ""


def _shown(processes: Collection[int]) -> str:
    return ", ".join(map(_process, sorted(processes))) or "a process of another user or container"


def _process(number: int) -> str:
    with contextlib.suppress(OSError):
        command = Path(f"/proc/{number}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ")
        text = " ".join(command.decode(errors="replace").split())
        text = text.partition(" ")[0].rpartition("/")[2] + "".join(text.partition(" ")[1:])
        return f"process {number} ({text[:SHOWN]}{'…' if len(text) > SHOWN else ''})"
    return f"process {number}"


def _holders(inodes: Collection[str], processes: Collection[int] | None = None) -> set[int]:
    """Returns the processes that have one of these sockets open.

    Args:
        inodes: The sockets.
        processes: Where to look; None looks at all processes whose descriptors this one may see.
    """
    wanted, found = {f"socket:[{inode}]" for inode in inodes}, set()
    for number in map(int, filter(str.isdigit, os.listdir("/proc"))) if processes is None else processes:
        with contextlib.suppress(OSError):
            for descriptor in os.scandir(f"/proc/{number}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(descriptor.path) in wanted:
                        found.add(number)
    return found


def _name(port: int) -> str:
    return f"\0llm-finetune port {port}"


def _name_inode(port: int) -> str:
    shown = _name(port).replace("\0", "@")
    return next((fields[6] for fields in _table("unix") if " ".join(fields[7:]) == shown), "")


def _table(name: str) -> Iterator[list[str]]:
    with contextlib.suppress(FileNotFoundError), open(f"/proc/net/{name}", encoding="utf-8", errors="replace") as lines:
        next(lines)
        for line in lines:
            yield line.split()


def _written(address: str) -> str:
    """Returns an address as /proc/net writes it: 32 bits at a time, as this processor stores them."""
    packed = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
    return "".join(f"{word:08X}" for (word,) in struct.iter_unpack("=I", packed))


_ADDRESSES = {_written(address): address for address in (HOST, "0.0.0.0", "::", "::1", f"::ffff:{HOST}")}
