"""Parses the output of KFP's local runner for state changes of cards.

The lines are those of kfp 2.17.0 (kfp/local/task_dispatcher.py and orchestrator/task_executor.py). The test of the
local pipeline fails if another release changes them.
"""

import re

from llm_finetune.pipelines.run_view.cards import Event

_COLOUR = re.compile(r"\x1b\[\d+m")
_STARTED = re.compile(r"INFO - Executing task '(.+)'$")
_ENDED = re.compile(r"Task '(.+)' finished with status (SUCCESS|FAILURE)$")
_CACHED = re.compile(r"INFO - Task (\S+) cache hit \(key=(\w+)\)")


def read_event(line: str) -> Event | None:
    """Returns the event in a line of the runner, or None for other lines, such as the output of a card."""
    plain = _COLOUR.sub("", line).rstrip()
    if match := _STARTED.search(plain):
        return Event("started", match[1])
    if match := _ENDED.search(plain):
        return Event("succeeded" if match[2] == "SUCCESS" else "failed", match[1])
    if match := _CACHED.search(plain):
        return Event("cached", match[1], match[2])
    return None
