"""Starts and stops a model server on this machine: vLLM, or `transformers serve` where vLLM is not installed."""

import contextlib
import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_finetune.components.serving.vllm_serve import smoke
from llm_finetune.components.serving.vllm_serve.local import ports
from llm_finetune.components.serving.vllm_serve.local.commands import Launch
from llm_finetune.components.serving.vllm_serve.local.ports import HOST, Held
from llm_finetune.components.shared.engine import processes, supervisor
from llm_finetune.components.shared.engine.processes import end_group, last_line, tail
from llm_finetune.components.shared.errors import UserError

OWNER_VARIABLE = "LLM_FINETUNE_OWNER_PID"


@dataclass(frozen=True)
class Server:
    """A server that was started.

    Attributes:
        pid: Its supervisor, which leads the process group of that number.
        started: The supervisor's start time in clock ticks since boot; tells it from a later process of that number.
        log: Where the server writes, whole path.
        port: Where it listens.
        ready_seconds: From starting the process to its first healthy answer.
    """

    pid: int
    started: int
    log: Path
    port: int
    ready_seconds: float


def hold(port: int) -> "contextlib.AbstractContextManager[Held]":
    """Holds a port for a server; the process that the server ends with may hold it already. See `ports.held`."""
    return ports.held(port, _owner())


def start(launch: Launch, held: Held, log: Path, timeout: float) -> Server:
    """Starts a server in its own process group and waits until it listens and is healthy.

    Its supervisor goes on holding the port as long as the server runs. No answer is taken from another process.

    The server outlives this process. When the environment variable LLM_FINETUNE_OWNER_PID names a process, the server
    ends with that one.

    Args:
        launch: What to run.
        held: The port that `launch` listens on.
        log: File for everything that the server prints; replaced.
        timeout: Seconds until it must be healthy.

    Returns:
        The running server.

    Raises:
        UserError: If it ends or is not healthy in time, or another process listens on its port; it is stopped and the
            message holds the end of its log, or who listens.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    command = launch.command, launch.environment, launch.folder
    process = processes.start(*command, log, _owner(), held.descriptors)
    print(f"started {launch.server} (process group {process.pid}), log {log}", flush=True)
    try:
        _wait(process, launch, held.port, log, begun + timeout)
        started = supervisor.processes_of(process.pid)[process.pid][1]
        return Server(process.pid, started, log, held.port, round(time.monotonic() - begun, 2))
    except BaseException:
        end_group(process.pid, grace=5.0)
        process.wait()
        raise


def check(server: Server) -> None:
    """Checks that the answers from a server's port are its own: it runs, and it alone listens there.

    Args:
        server: A server that was healthy.

    Raises:
        UserError: If it has ended, or another process listens on its port.
    """
    if not ports.is_listened_on_by(server.port, supervisor.alive(server.pid)):
        told = f"The end of its log {server.log}:\n{tail(server.log)}"
        raise UserError(f"the server has ended while it was asked. {told}")


def _owner() -> int:
    return int(os.environ.get(OWNER_VARIABLE, "0"))


def _wait(process: subprocess.Popen[bytes], launch: Launch, port: int, log: Path, deadline: float) -> None:
    begun = said = time.monotonic()
    while not _is_ready(process.pid, port):
        if process.poll() is not None:
            raise UserError(
                f"{launch.server} ended with status {process.returncode} before it was ready{_hint(log)}. "
                f"The end of its log {log}:\n{tail(log)}"
            )
        if time.monotonic() > deadline:
            raise UserError(
                f"{launch.server} was not ready after {time.monotonic() - begun:.0f} s. Raise `ready_timeout` if it "
                f"was still loading. The end of its log {log}:\n{tail(log)}"
            )
        if time.monotonic() - said > 10:
            said = time.monotonic()
            print(f"waiting for {launch.server}, {said - begun:.0f} s: {last_line(log)}", flush=True)
        time.sleep(0.25)


def _is_ready(group: int, port: int) -> bool:
    listens = ports.is_listened_on_by(port, supervisor.alive(group))
    return listens and smoke.is_healthy(f"http://{HOST}:{port}/health")


def stop(deployment_info: str | Path, grace: float = 15.0) -> bool:
    """Stops the server of a local deployment and all its processes.

    Args:
        deployment_info: The JSON file that the card wrote.
        grace: Seconds between TERM and KILL.

    Returns:
        Whether anything was running.

    Raises:
        UserError: If the file is missing or describes no local deployment.
    """
    info = read_info(deployment_info)
    if info.get("target") != "local":
        raise UserError(
            f"{deployment_info} describes a deployment on {info.get('target')}; only local ones are stopped"
        )
    group = int(info["process_group"])
    leader = supervisor.processes_of(group).get(group)
    if leader and leader[1] != info["process_started"]:
        return False
    return end_group(group, grace)


def is_running(deployment_info: str | Path) -> bool:
    """Tells whether a local deployment's server still runs."""
    info = read_info(deployment_info)
    leader = supervisor.processes_of(int(info["process_group"])).get(int(info["process_group"]))
    return leader is not None and leader[0] not in "ZX" and leader[1] == info["process_started"]


def read_info(deployment_info: str | Path) -> dict[str, Any]:
    """Reads a deployment_info file.

    Raises:
        UserError: If it is missing or broken.
    """
    try:
        return dict(json.loads(Path(deployment_info).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{deployment_info} does not exist; give the deployment_info file of a run") from None
    except (ValueError, IsADirectoryError) as error:
        raise UserError(f"{deployment_info} is no deployment_info file: {error}") from None


def _hint(log: Path) -> str:
    """Returns what a known message of the log asks for."""
    text = tail(log, 200)
    known = {
        "address already in use": "another process took a port meanwhile; start it again",
        "KV cache is needed": "lower `max_model_len`: the KV cache of one full-length request does not fit",
        "Cannot allocate memory": "the machine has too little free memory for this model",
        "not supported for now": "this vLLM does not know the model's architecture",
    }
    return next((f" ({meaning})" for sign, meaning in known.items() if sign.lower() in text.lower()), "")
