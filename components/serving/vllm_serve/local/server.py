"""Starts and stops a model server on this machine: vLLM, or `transformers serve` if vLLM is not installed."""

import contextlib
import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from llm_finetune.components.serving.vllm_serve import smoke
from llm_finetune.components.serving.vllm_serve.local import ports
from llm_finetune.components.serving.vllm_serve.local.commands import Launch
from llm_finetune.components.serving.vllm_serve.local.ports import HOST, ReservedPort
from llm_finetune.components.serving.vllm_serve.report import DeploymentInfo
from llm_finetune.components.shared.engine import processes, supervisor
from llm_finetune.components.shared.engine.processes import end_group, last_line, tail
from llm_finetune.components.shared.errors import UserError

OWNER_VARIABLE = "LLM_FINETUNE_OWNER_PID"


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        pid: PID of its supervisor, the leader of the process group.
        started: Start time of the supervisor in clock ticks since boot; detects a reused PID.
        log: Absolute path of the log.
        port: Port of the server.
        ready_seconds: Time from the start of the process to the first successful health check.
    """

    pid: int
    started: int
    log: Path
    port: int
    ready_seconds: float


def reserve_port(port: int) -> "contextlib.AbstractContextManager[ReservedPort]":
    """Reserves a port for a server; the owner process may have reserved it already. See `ports.reserve`."""
    return ports.reserve(port, _owner())


def start(launch: Launch, reserved: ReservedPort, log: Path, timeout: float) -> Server:
    """Starts a server in its own process group and waits until it is healthy.

    The supervisor keeps the reservation of the port while the server runs. Responses of other processes are not
    accepted.

    The server keeps running after this process has ended. If the environment variable LLM_FINETUNE_OWNER_PID is set,
    the server ends together with that process.

    Args:
        launch: The server to start.
        reserved: The port of the server.
        log: File for stdout and stderr of the server; replaced.
        timeout: Seconds until the server must be healthy.

    Returns:
        The running server.

    Raises:
        UserError: If the server exits, is not healthy in time, or another process listens on its port. The server is
            stopped, and the message has the end of its log or the other process.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    started_at = time.monotonic()
    command = launch.command, launch.environment, launch.folder
    process = processes.start(*command, log, _owner(), reserved.descriptors)
    print(f"started {launch.server} (process group {process.pid}), log {log}", flush=True)
    try:
        _wait(process, launch, reserved.port, log, started_at + timeout)
        started = supervisor.processes_of(process.pid)[process.pid][1]
        return Server(process.pid, started, log, reserved.port, round(time.monotonic() - started_at, 2))
    except BaseException:
        end_group(process.pid, grace=5.0)
        process.wait()
        raise


def verify_running(server: Server) -> None:
    """Checks that a server is running and that no other process listens on its port.

    Args:
        server: A server that was healthy.

    Raises:
        UserError: If the server has exited, or another process listens on its port.
    """
    if not ports.is_listening(server.port, supervisor.alive(server.pid)):
        raise UserError(
            f"the server exited during the test prompts. The end of its log {server.log}:\n{tail(server.log)}"
        )


def _owner() -> int:
    return int(os.environ.get(OWNER_VARIABLE, "0"))


def _wait(process: subprocess.Popen[bytes], launch: Launch, port: int, log: Path, deadline: float) -> None:
    started = reported = time.monotonic()
    while not _is_ready(process.pid, port):
        if process.poll() is not None:
            raise UserError(
                f"{launch.server} exited with status {process.returncode} before it was ready{_hint(log)}. "
                f"The end of its log {log}:\n{tail(log)}"
            )
        if time.monotonic() > deadline:
            raise UserError(
                f"{launch.server} was not ready after {time.monotonic() - started:.0f} s. Raise `ready_timeout` if it "
                f"was still loading. The end of its log {log}:\n{tail(log)}"
            )
        if time.monotonic() - reported > 10:
            reported = time.monotonic()
            print(f"waiting for {launch.server}, {reported - started:.0f} s: {last_line(log)}", flush=True)
        time.sleep(0.25)


def _is_ready(group: int, port: int) -> bool:
    listens = ports.is_listening(port, supervisor.alive(group))
    return listens and smoke.is_healthy(f"http://{HOST}:{port}/health")


def stop(deployment_info: str | Path, grace: float = 15.0) -> bool:
    """Stops the server of a local deployment with all its processes.

    Args:
        deployment_info: JSON file of the card.
        grace: Seconds between TERM and KILL.

    Returns:
        Whether a process was running.

    Raises:
        UserError: If the file is missing or not of a local deployment.
    """
    info = read_info(deployment_info)
    if info.get("target") != "local":
        raise UserError(
            f"{deployment_info} is of a deployment with target = {info.get('target')}; only local servers are stopped"
        )
    group = int(info["process_group"])
    leader = supervisor.processes_of(group).get(group)
    if leader and leader[1] != info["process_started"]:
        return False
    return end_group(group, grace)


def is_running(deployment_info: str | Path) -> bool:
    """Returns whether the server of a local deployment is running."""
    info = read_info(deployment_info)
    leader = supervisor.processes_of(int(info["process_group"])).get(int(info["process_group"]))
    return leader is not None and leader[0] not in "ZX" and leader[1] == info["process_started"]


def read_info(deployment_info: str | Path) -> DeploymentInfo:
    """Reads a deployment_info file.

    Raises:
        UserError: If it is missing or invalid.
    """
    try:
        return cast(DeploymentInfo, dict(json.loads(Path(deployment_info).read_text(encoding="utf-8"))))
    except FileNotFoundError:
        raise UserError(f"{deployment_info} does not exist; pass the deployment_info file of a run") from None
    except (ValueError, IsADirectoryError) as error:
        raise UserError(f"{deployment_info} is not a deployment_info file: {error}") from None


def _hint(log: Path) -> str:
    """Returns the fix of a known error in the log, in parentheses; empty for an unknown one."""
    text = tail(log, 200)
    known = {
        "address already in use": "another process uses the port; start it again",
        "KV cache is needed": "lower `max_model_len`: the KV cache of one full-length request does not fit",
        "Cannot allocate memory": "the machine has too little free memory for this model",
        "not supported for now": "this version of vLLM does not support the architecture",
    }
    return next((f" ({meaning})" for sign, meaning in known.items() if sign.lower() in text.lower()), "")
