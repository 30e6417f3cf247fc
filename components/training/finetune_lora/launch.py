"""Starts the training in several processes of this machine, as torchrun does, and says why it ended."""

import logging
import signal
import sys
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from llm_finetune.components.shared.errors import UserError

SECONDS_TO_END = 10  # below the 30 s that Kubernetes leaves a pod between SIGTERM and SIGKILL


class ProcessFailed(RuntimeError):
    """A process of the training ended on a defect; its own traceback stands above in the log."""


def resolve_processes(asked: int) -> int:
    """Returns the number of processes to train with.

    Args:
        asked: The card's setting; 0 takes one per GPU, and one where there is none.

    Raises:
        UserError: If more are asked for than there are GPUs.
    """
    gpus = torch.cuda.device_count()
    if gpus and asked > gpus:
        raise UserError(
            f"processes = {asked}, but this machine has {gpus} GPU{'s' * (gpus > 1)}: one process trains on one GPU. "
            "Ask for more GPUs (gpu_count), or set processes to 0 for one per GPU"
        )
    return asked or max(gpus, 1)


def launch(processes: int, module: str, arguments: Sequence[str], logs: Path) -> None:
    """Runs a Python module in several processes and waits for them; when one fails, all are ended.

    They find each other through a store on 127.0.0.1. A signal to this process ends them and is then taken up again
    by whoever handled it before.

    Args:
        processes: How many; each learns its place from torchrun's variables (`RANK`, `LOCAL_RANK`, `WORLD_SIZE`).
        module: Module to run; its `main` records its failure (`torch.distributed.elastic.multiprocessing.errors`).
        arguments: Its arguments.
        logs: Folder for the files in which failures are recorded.

    Raises:
        UserError: If a process raised one, or was killed.
        ProcessFailed: If a process ended on anything else.
    """
    _quiet()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(logs)),
        shutdown_timeout=SECONDS_TO_END,
    )
    handled = _handlers(config)
    stopped: signal.Signals | None = None
    try:
        elastic_launch(config, sys.executable)("-m", module, *arguments)
    except ChildFailedError as error:
        raise _explained(error, processes) from None
    except SignalException as error:
        stopped = error.sigval
    finally:
        for number, handler in handled.items():  # torch puts its own in their place and leaves them there
            signal.signal(number, handler)
    if stopped:
        signal.raise_signal(stopped)


def _quiet() -> None:
    """Keeps torch's own words about a failure out of the log, where it is told once; each module has its own level."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _handlers(config: LaunchConfig) -> dict[signal.Signals, Any]:
    if threading.current_thread() is not threading.main_thread():
        return {}  # only there does torch handle signals, and only there may anyone
    numbers = [signal.Signals[name] for name in config.signals_to_handle.split(",")]
    return {number: signal.getsignal(number) for number in numbers}


def _explained(error: ChildFailedError, processes: int) -> Exception:
    rank, failure = min(error.failures.items(), key=lambda item: _order(item[1]))
    where = f"process {rank} of {processes} (0 to {processes - 1})"
    kind, _, text = _recorded(failure).partition(": ")
    if kind == UserError.__name__:
        return UserError(text)
    if failure.exitcode < 0:
        killed = failure.exitcode == -signal.SIGKILL
        likely = " Most likely it ran out of memory: see the pod's memory limit." if killed else ""
        return UserError(
            f"{where} was killed by {failure.signal_name()}, and the others were ended.{likely} "
            "With a checkpoint_folder, the next run goes on from the latest checkpoint"
        )
    return ProcessFailed(
        f"{where} failed, and the others were ended: {_recorded(failure) or f'exit code {failure.exitcode}'}"
    )


def _recorded(failure: ProcessFailure) -> str:
    message = failure.error_file_data.get("message", "")
    return str(message["message"]) if isinstance(message, dict) else ""


def _order(failure: ProcessFailure) -> tuple[bool, int, int]:
    """Sorts the cause before its consequences: the others lose their connection, or are ended by SIGTERM."""
    ended_by_us = failure.exitcode == -signal.SIGTERM
    return (
        not _recorded(failure).startswith(UserError.__name__),
        failure.timestamp,
        2 if ended_by_us else 0 if failure.exitcode < 0 else 1,
    )
