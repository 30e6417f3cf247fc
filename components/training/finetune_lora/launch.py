"""Runs the training in several processes on this machine, as torchrun does, and explains failures."""

import logging
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from llm_finetune.components.shared.errors import UserError

SHUTDOWN_SECONDS = 10  # less than the 30 s between SIGTERM and SIGKILL in Kubernetes


SignalHandler = Callable[[int, FrameType | None], object] | int | None


class ProcessFailed(RuntimeError):
    """A process of the training failed with an unexpected error; its traceback is in the log above."""


def resolve_processes(setting: int) -> int:
    """Returns the number of processes to train with.

    Args:
        setting: The card's setting `processes`; 0 for one per GPU, and one without a GPU.

    Raises:
        UserError: If there are fewer GPUs.
    """
    gpus = torch.cuda.device_count()
    if gpus and setting > gpus:
        raise UserError(
            f"processes = {setting}, but this machine has {gpus} GPU{'s' * (gpus > 1)}: one process trains on one GPU. "
            "Request more GPUs (gpu_count), or set processes to 0 for one per GPU"
        )
    return setting or max(gpus, 1)


def launch(processes: int, module: str, arguments: Sequence[str], logs: Path) -> None:
    """Runs a Python module in several processes and waits for them; if one fails, all are terminated.

    Their rendezvous is a store on 127.0.0.1. A signal to this process terminates them, and is then raised again for the
    handler that was installed before.

    Args:
        processes: Number of processes; each reads its rank from torchrun's variables (`RANK`, `LOCAL_RANK`,
            `WORLD_SIZE`).
        module: Module to run; its `main` records its failure (`torch.distributed.elastic.multiprocessing.errors`).
        arguments: Its arguments.
        logs: Folder for the error files.

    Raises:
        UserError: If a process raised one, or was killed.
        ProcessFailed: If a process failed in another way.
    """
    _silence_elastic()
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
        shutdown_timeout=SHUTDOWN_SECONDS,
    )
    handlers = _signal_handlers(config)
    stopped: signal.Signals | None = None
    try:
        elastic_launch(config, sys.executable)("-m", module, *arguments)
    except ChildFailedError as error:
        raise _explain_failure(error, processes) from None
    except SignalException as error:
        stopped = error.sigval
    finally:
        for number, handler in handlers.items():  # torch installs its own and does not restore these
            signal.signal(number, handler)
    if stopped:
        signal.raise_signal(stopped)


def _silence_elastic() -> None:
    """Silences torch's own messages about a failure, which is reported once; each module has its own log level."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _signal_handlers(config: LaunchConfig) -> dict[signal.Signals, SignalHandler]:
    if threading.current_thread() is not threading.main_thread():
        return {}  # Python allows signal handlers in the main thread only
    numbers = [signal.Signals[name] for name in config.signals_to_handle.split(",")]
    return {number: signal.getsignal(number) for number in numbers}


def _explain_failure(error: ChildFailedError, processes: int) -> Exception:
    rank, failure = min(error.failures.items(), key=lambda item: _failure_order(item[1]))
    where = f"process {rank} of {processes} (0 to {processes - 1})"
    kind, _, text = _error_message(failure).partition(": ")
    if kind == UserError.__name__:
        return UserError(text)
    if failure.exitcode < 0:
        killed = failure.exitcode == -signal.SIGKILL
        likely = " It probably ran out of memory: check the pod's memory limit." if killed else ""
        return UserError(
            f"{where} was killed by {failure.signal_name()}, and the others were terminated.{likely} "
            "With a checkpoint_folder, the next run resumes from the latest checkpoint"
        )
    return ProcessFailed(
        f"{where} failed, and the others were terminated: {_error_message(failure) or f'exit code {failure.exitcode}'}"
    )


def _error_message(failure: ProcessFailure) -> str:
    message = failure.error_file_data.get("message", "")
    return str(message["message"]) if isinstance(message, dict) else ""


def _failure_order(failure: ProcessFailure) -> tuple[bool, int, int]:
    """Sorts the cause before its consequences: other processes lose the connection, or are terminated by SIGTERM."""
    terminated = failure.exitcode == -signal.SIGTERM
    return (
        not _error_message(failure).startswith(UserError.__name__),
        failure.timestamp,
        2 if terminated else 0 if failure.exitcode < 0 else 1,
    )
