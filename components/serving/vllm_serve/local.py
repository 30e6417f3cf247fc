"""Starts and stops a model server on this machine: vLLM, or `transformers serve` where vLLM is not installed."""

import json
import os
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_finetune.components.serving.vllm_serve import smoke
from llm_finetune.components.serving.vllm_serve.commands import Launch
from llm_finetune.components.shared import processes, supervisor
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.processes import end_group, last_line, tail

HOST = "127.0.0.1"
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


def free_port(port: int) -> int:
    """Returns a port that can be listened on.

    Args:
        port: The wanted port; 0 takes any that is free.

    Returns:
        The port.

    Raises:
        UserError: If the wanted port is in use or not allowed.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UserError(
                f"port {port} on this machine cannot be used ({error.strerror}). Stop what listens there (an earlier "
                "deployment: `llm-finetune stop`), or give another `port`; 0 takes a free one"
            ) from None
        return int(probe.getsockname()[1])


def start(launch: Launch, port: int, log: Path, timeout: float) -> Server:
    """Starts a server in its own process group and waits until it is healthy.

    The server outlives this process. When the environment variable LLM_FINETUNE_OWNER_PID names a process, the server
    ends with that one.

    Args:
        launch: What to run.
        port: The port that `launch` listens on.
        log: File for everything that the server prints; replaced.
        timeout: Seconds until it must be healthy.

    Returns:
        The running server.

    Raises:
        UserError: If it ends or is not healthy in time; it is stopped and the message holds the end of its log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    owner = os.environ.get(OWNER_VARIABLE, "0")
    begun = time.monotonic()
    process = processes.start(launch.command, launch.environment, launch.folder, log, int(owner))
    print(f"started {launch.server} (process group {process.pid}), log {log}", flush=True)
    try:
        _wait(process, launch, port, log, begun + timeout)
        started = supervisor.processes_of(process.pid)[process.pid][1]
        return Server(process.pid, started, log, port, round(time.monotonic() - begun, 2))
    except BaseException:
        end_group(process.pid, grace=5.0)
        process.wait()
        raise


def _wait(process: subprocess.Popen[bytes], launch: Launch, port: int, log: Path, deadline: float) -> None:
    begun = said = time.monotonic()
    while not smoke.is_healthy(f"http://{HOST}:{port}/health"):
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
        "address already in use": "the port was taken meanwhile: give another `port`, or 0 for a free one",
        "KV cache is needed": "lower `max_model_len`: the KV cache of one full-length request does not fit",
        "Cannot allocate memory": "the machine has too little free memory for this model",
        "not supported for now": "this vLLM does not know the model's architecture",
    }
    return next((f" ({meaning})" for sign, meaning in known.items() if sign.lower() in text.lower()), "")
