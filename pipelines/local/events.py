"""Reads what KFP's local runner prints: which card runs, is taken from the cache, ends, fails.

The lines are those of kfp 2.17.0 (kfp/local/task_dispatcher.py and orchestrator/task_executor.py); the local pipeline
test breaks if another release words them otherwise.
"""

import re
from dataclasses import dataclass
from typing import Literal

_COLOUR = re.compile(r"\x1b\[\d+m")
_STARTED = re.compile(r"INFO - Executing task '(.+)'$")
_ENDED = re.compile(r"Task '(.+)' finished with status (SUCCESS|FAILURE)$")
_CACHED = re.compile(r"INFO - Task (\S+) cache hit \(key=(\w+)\)")


@dataclass(frozen=True)
class Event:
    """Something that happened to a card.

    Attributes:
        kind: What happened.
        task: The card's name in the pipeline.
        cache_key: First digits of the cache entry's name, for a card that was taken from the cache.
    """

    kind: Literal["started", "succeeded", "failed", "cached"]
    task: str
    cache_key: str = ""


def read_event(line: str) -> Event | None:
    """Returns what a line of the runner says, or None for any other line, such as a card's own output."""
    plain = _COLOUR.sub("", line).rstrip()
    if match := _STARTED.search(plain):
        return Event("started", match[1])
    if match := _ENDED.search(plain):
        return Event("succeeded" if match[2] == "SUCCESS" else "failed", match[1])
    if match := _CACHED.search(plain):
        return Event("cached", match[1], match[2])
    return None
