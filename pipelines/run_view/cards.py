"""Cards and events of a run, local or on a cluster, and the exit status of `run` and `submit`."""

import time
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal

import yaml

from llm_finetune.components.shared.progress import ProgressLine

State = Literal["waiting", "running", "done", "cached", "failed"]
EventKind = Literal["started", "succeeded", "failed", "cached"]
PAGE_TYPES = ("system.HTML", "system.Markdown")


@dataclass(frozen=True)
class Card:
    """A card of a compiled pipeline.

    Attributes:
        title: Display name.
        pages: Type (one of PAGE_TYPES) of each output that is a page, by name.
    """

    title: str
    pages: dict[str, str]


@dataclass(frozen=True)
class Page:
    """An HTML page of a card.

    Attributes:
        output: Name of the output.
        title: Title of the page.
        path: HTML file.
    """

    output: str
    title: str
    path: Path


@dataclass
class CardRun:
    """One card of a run.

    Attributes:
        task: Name in the pipeline, such as `load-dataset`.
        title: Display name.
        log: Log file.
        state: Current state.
        started: Start, in seconds of `time.monotonic`.
        seconds: Duration, after the card has ended.
        progress: Latest progress line.
        outputs: Folder or file of each output by name.
        page_types: Type of each output that is a page, by name.
        pages: HTML pages; None until they are written.
    """

    task: str
    title: str
    log: Path
    state: State = "waiting"
    started: float = 0.0
    seconds: float = 0.0
    progress: ProgressLine | None = None
    outputs: dict[str, Path] = field(default_factory=dict)
    page_types: dict[str, str] = field(default_factory=dict)
    pages: list[Page] | None = None

    @property
    def elapsed(self) -> float:
        """Duration in seconds, so far or in total."""
        return time.monotonic() - self.started if self.state == "running" else self.seconds


@dataclass(frozen=True)
class Event:
    """A state change of a card.

    Attributes:
        kind: Kind of the change.
        task: Name of the card in the pipeline.
        cache_key: First digits of the cache entry's name, if the card was taken from the cache.
    """

    kind: EventKind
    task: str
    cache_key: str = ""


class ExitStatus(IntEnum):
    """Exit status of `run` and `submit`."""

    SUCCEEDED = 0
    FAILED = 1
    GATE_CLOSED = 3
    NOT_FOLLOWED = 4


def card_titles(pipeline: Path) -> dict[str, str]:
    """Returns the display names of a compiled pipeline's cards by task name, in execution order."""
    return {task: card.title for task, card in read_cards(pipeline).items()}


def read_cards(pipeline: Path) -> dict[str, Card]:
    """Returns the cards of a compiled pipeline in execution order.

    Args:
        pipeline: Compiled YAML.

    Returns:
        Cards by task name, including those inside conditions.
    """
    # libyaml is ten times as fast; PyYAML may be built without it.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    spec: dict[str, Any] = next(yaml.load_all(pipeline.read_text(encoding="utf-8"), Loader=loader))
    cards: dict[str, Card] = {}

    def visit(tasks: dict[str, Any]) -> None:
        pending = dict(tasks)
        while pending:
            ready = next(
                name for name, task in pending.items() if not set(task.get("dependentTasks", [])) & pending.keys()
            )
            task = pending.pop(ready)
            component = spec["components"][task["componentRef"]["name"]]
            if "dag" in component:
                visit(component["dag"]["tasks"])
            else:
                artifacts = component.get("outputDefinitions", {}).get("artifacts", {})
                types = {name: artifact["artifactType"]["schemaTitle"] for name, artifact in artifacts.items()}
                pages = {name: kind for name, kind in types.items() if kind in PAGE_TYPES}
                cards[ready] = Card(task["taskInfo"]["name"], pages)

    visit(spec["root"]["dag"]["tasks"])
    return cards
