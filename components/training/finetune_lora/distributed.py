"""The place of this process among those that train (torchrun's environment variables)."""

import os

import torch


def world_size() -> int:
    """Returns the number of processes that train, including this one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Returns whether this is the process that logs and writes the results (rank 0)."""
    return os.environ.get("RANK", "0") == "0"


def min_over_processes(store: torch.distributed.Store, rank: int, processes: int, value: float) -> float:
    """Returns the minimum of a value over the processes; the same in each process.

    Args:
        store: Store of the rendezvous.
        rank: Rank of this process.
        processes: Number of processes.
        value: Value of this process.
    """
    store.set(f"min/{rank}", repr(value))
    return min(float(store.get(f"min/{other}")) for other in range(processes))
