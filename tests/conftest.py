"""What holds for every test: known surroundings, and the longest files first."""

import gc
import os
import sys
from types import SimpleNamespace

import pytest
import surroundings

BEFORE = surroundings.settle(os.environ)  # here, since libraries read the environment when a test imports them

from kfp.dsl import pipeline_task  # noqa: E402 - reads the environment

# At each setting of a task kfp reads the source of the whole stack to know the name of the caller. In a process that has
# imported torch this takes 10 seconds per pipeline.
pipeline_task.inspect = SimpleNamespace(stack=lambda: [(), (None, None, None, sys._getframe(2).f_code.co_name)])

# A process takes whole files: begun last, these would keep one busy for minutes while the others wait.
LONGEST = (
    "test_local_run.py",
    "test_many_gpus.py",
    "test_vllm_serve_local.py",
    "test_local_mistakes.py",
    "test_launch_processes.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


def pytest_collection_finish() -> None:
    """Keeps the garbage collector from what the imports have made: torch's objects alone take it half a second."""
    gc.collect()
    gc.freeze()


def pytest_configure(config: pytest.Config) -> None:
    """Leaves tests that need the network or a GPU what they take from the machine."""
    surroundings.give_back(os.environ, BEFORE, config.option.markexpr)
