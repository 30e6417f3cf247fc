"""Who answers on a port: the server that was started, and nobody else."""

import http.server
import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llm_finetune.components.serving.vllm_serve.local import commands, ports
from llm_finetune.components.serving.vllm_serve.local import server as server_process
from llm_finetune.components.shared.engine import processes
from llm_finetune.components.shared.errors import UserError

# A server that loads for some seconds before it listens, as model servers do.
SLOW = """
import http.server, sys, time
time.sleep(float(sys.argv[2]))
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Healthy).serve_forever()
"""
# `llm-finetune serve`, up to the ready server, in a process of its own.
SERVE = """
import os, sys
from pathlib import Path
from llm_finetune.components.serving.vllm_serve.local import commands, server
code, port, seconds, folder = sys.argv[1:]
with server.reserve_port(int(port)) as reserved:
    command = [sys.executable, "-c", code, port, seconds]
    launch = commands.Launch("server", command, dict(os.environ), Path(folder), 0, "auto")
    print("holds it", flush=True)
    print("started", server.start(launch, reserved, Path(folder) / "server.log", 30).pid, flush=True)
"""


class Models(http.server.BaseHTTPRequestHandler):
    """A healthy server that lists another model."""

    def do_GET(self) -> None:
        body = json.dumps({"data": [{"id": "someone-elses"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def listening(address: tuple[str, int]) -> Iterator[int]:
    class Server(http.server.ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET

    server = Server(address, Models)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def slow(port: int, seconds: float, folder: Path) -> commands.Launch:
    command = [sys.executable, "-c", SLOW, str(port), str(seconds)]
    return commands.Launch("server", command, dict(os.environ), folder, 0, "auto")


def free() -> int:
    with ports.reserve(0) as reserved:
        return reserved.port


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_a_port_in_use_is_refused_with_who_has_it_and_the_line_to_write(address: str) -> None:
    if ":" in address and not Path("/proc/net/if_inet6").is_file():
        pytest.skip("this machine has no IPv6")
    with listening((address, 0)) as taken, pytest.raises(UserError) as refused, ports.reserve(taken):
        pass
    told = str(refused.value)
    assert told.startswith(f"port {taken} on this machine is in use: process {os.getpid()} (")
    assert f"listens on it (at {address}) and serves someone-elses. " in told
    assert "`vllm_serve: {port: 0}` in the recipe or `--port 0` on the command line" in told


def test_no_answer_is_taken_from_a_server_that_came_meanwhile(tmp_path: Path) -> None:
    with (
        server_process.reserve_port(0) as reserved,
        listening((server_process.HOST, reserved.port)),
        pytest.raises(UserError) as refused,
    ):
        server_process.start(slow(reserved.port, 3, tmp_path), reserved, tmp_path / "server.log", 20)
    assert f"port {reserved.port} on this machine is in use: process {os.getpid()} (" in str(refused.value)
    assert "serves someone-elses" in str(refused.value)


def test_the_second_of_two_servers_on_one_port_is_refused_at_once(tmp_path: Path) -> None:
    port = free()
    command = [sys.executable, "-c", SERVE, SLOW, str(port), "3", str(tmp_path)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stdout.readline() == "holds it\n"
    with pytest.raises(UserError, match=rf"port {port} on this machine is reserved .* of .*process {first.pid} \("):
        server_process.reserve_port(port).__enter__()
    assert first.stdout.readline().startswith("started server (process group ")
    group = int(first.stdout.readline().split()[1])
    # The process that started it has ended; the server goes on, and the supervisor holds its port.
    assert first.wait(10) == 0
    server = server_process.Server(group, 0, tmp_path / "server.log", port, 0.0)
    server_process.verify_running(server)
    with pytest.raises(UserError, match=rf"port {port} on this machine is in use: process \d+ \("):
        server_process.reserve_port(port).__enter__()
    processes.end_group(group, grace=2)
    with pytest.raises(UserError, match="the server exited during the test prompts"):
        server_process.verify_running(server)
    with server_process.reserve_port(port) as again:
        assert again.port == port


def test_a_run_holds_the_port_for_the_server_that_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
    import os, sys
    from llm_finetune.components.serving.vllm_serve.local import server
    with server.reserve_port(int(sys.argv[1])) as reserved:
        print("reserved", reserved.port)
    """
    card = [sys.executable, "-c", textwrap.dedent(code)]
    with ports.reserve(0) as run:
        own = os.environ | {server_process.OWNER_VARIABLE: str(os.getpid())}
        told = subprocess.run([*card, str(run.port)], env=own, capture_output=True, text=True)
        assert told.stdout == f"reserved {run.port}\n", told.stderr
        other = subprocess.run(
            [*card, str(run.port)], env=os.environ | {server_process.OWNER_VARIABLE: "1"}, capture_output=True
        )
        assert other.returncode == 1 and b"is reserved for a server" in other.stderr


def test_a_reserved_port_is_not_assigned_to_others(tmp_path: Path) -> None:
    with ports.reserve(0) as reserved, socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind((server_process.HOST, reserved.port))


def test_connections_of_an_earlier_server_do_not_keep_its_port(tmp_path: Path) -> None:
    with listening((server_process.HOST, 0)) as port:
        client = socket.create_connection((server_process.HOST, port))
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        while client.recv(4096):
            pass
        client.close()
    deadline = time.monotonic() + 5
    while ports.listeners(port) and time.monotonic() < deadline:
        time.sleep(0.05)
    with ports.reserve(port) as reserved:
        assert reserved.port == port
