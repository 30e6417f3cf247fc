"""Follows a run on the cluster card by card."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from llm_finetune.components.shared.card_logs import last_error, read_outcome
from llm_finetune.components.shared.errors import UserError
from llm_finetune.pipelines.run_view.cards import CardRun, Event, State, card_titles
from llm_finetune.pipelines.run_view.display import Display
from llm_finetune.pipelines.submit.connection import Connection, NotLetIn, OutOfReach
from llm_finetune.pipelines.submit.logs import end_of_log

ENDED = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
STATES: dict[str, State] = {"RUNNING": "running", "SUCCEEDED": "done", "FAILED": "failed", "CANCELED": "failed"}
REFUSED_SECONDS = 300.0  # in which a new token may be put into its file
LAST_CARD = "vllm-serve"  # runs only behind an open gate
REPORT = "report"  # runs at the end of every run


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        state: SUCCEEDED, FAILED, CANCELED or SKIPPED.
        reason: Why, in the words of the cards or else of the backend; may be empty.
        deployed: Whether the gate was open and the last card ran; None where it is not known.
    """

    state: str
    reason: str
    deployed: bool | None


class LostSight(UserError):
    """A run was not followed to its end; it goes on."""


class RemoteRun:
    """The cards of a run on the cluster."""

    def __init__(self, compiled: Path) -> None:
        """Lists the pipeline's cards, from its compiled YAML."""
        self.cards = {task: CardRun(task, title, Path()) for task, title in card_titles(compiled).items()}

    @property
    def running(self) -> CardRun | None:
        """A card that runs, if one does."""
        return next((card for card in self.cards.values() if card.state == "running"), None)

    def title(self, task: str) -> str:
        """Returns a card's name in the dashboard."""
        return self.cards[task].title if task in self.cards else task

    def update(self, tasks: list[Any]) -> list[Event]:
        """Takes in the backend's list of tasks.

        Args:
            tasks: Task details of the run; other tasks than cards, such as the backend's drivers, are passed over.

        Returns:
            What happened to cards since the last time.
        """
        events = []
        for task in tasks:
            card, state = self.cards.get(task.display_name), STATES.get(task.state or "")
            if card is None or state is None:
                continue
            seconds = _seconds(task.start_time, task.end_time)
            card.seconds, card.started = seconds, time.monotonic() - seconds
            if state != card.state:
                card.state = state
                kind = {"running": "started", "done": "succeeded"}.get(state, "failed")
                events.append(Event(kind, card.task))  # type: ignore[arg-type]
        return events


def follow(
    connection: Connection,
    run_id: str,
    compiled: Path,
    console: Console,
    poll_seconds: float,
    timeout_seconds: float,
    now: Callable[[], float] = time.monotonic,
) -> Ended:
    """Shows a run's cards until it ends: live in a terminal, else a line per card that ends.

    Args:
        connection: Connection to the API.
        run_id: The run.
        compiled: Its compiled YAML.
        console: Where to show it.
        poll_seconds: Seconds between two looks.
        timeout_seconds: Seconds after which to stop looking; the run goes on.
        now: Clock.

    Returns:
        How it ended.

    Raises:
        LostSight: If it takes longer than that, the API stays out of reach so long, or who asks is let in no more.
    """
    started, remote, lookout = now(), RemoteRun(compiled), _Lookout(connection, run_id, console, now)
    with Display(console, remote) as display:
        while True:
            run = lookout.look()
            if run:
                tasks = (run.run_details.task_details if run.run_details else None) or []
                for event in remote.update(tasks):
                    display.update(event)
                if run.state in ENDED:
                    return _ended(connection, run, tasks, remote)
            if now() - started > timeout_seconds:
                raise lookout.trouble or LostSight(
                    f"the run {run_id} is not done after {timeout_seconds / 3600:g} hours; it goes on"
                )
            time.sleep(poll_seconds)


class _Lookout:
    """Looks at a run, which does not end where the API or its gateway has an outage."""

    def __init__(self, connection: Connection, run_id: str, console: Console, now: Callable[[], float]) -> None:
        self.connection, self.run_id, self.console, self.now = connection, run_id, console, now
        self.since = 0.0
        self.trouble: LostSight | None = None
        self.kind: type[UserError] | None = None

    def look(self) -> Any | None:
        """Returns the run, or None where nothing is to be seen for now."""
        try:
            with self.connection.doing("looking at the run"):
                run = self.connection.client.get_run(self.run_id)
        except UserError as error:
            self._bear(error)
            return None
        self.trouble = self.kind = None
        return run

    def _bear(self, error: UserError) -> None:
        self.trouble = LostSight(f"{error}. Lost sight of the run {self.run_id}, which goes on")
        begins = self.kind is not type(error)
        if begins:
            self.kind, self.since = type(error), self.now()
        refused = isinstance(error, NotLetIn) and self.now() - self.since >= REFUSED_SECONDS
        if refused or not isinstance(error, NotLetIn | OutOfReach):
            raise self.trouble from error
        if begins:
            self.console.print(
                Text(f"{error}. The run {self.run_id} goes on; looking for it until it is seen again", "yellow"),
                soft_wrap=True,
            )


def _ended(connection: Connection, run: Any, tasks: list[Any], remote: RemoteRun) -> Ended:
    """Asks the card Report, which has asked the pods, then the cards that failed, then the backend."""
    by_name = {task.display_name: task for task in tasks}
    report = by_name.get(REPORT)
    log = end_of_log(connection, run.run_id, report) if report else ""
    said = read_outcome(log, REPORT)
    deployed = False if said.get("gate") == "closed" else _deployed(tasks)
    if run.state == "SUCCEEDED":
        return Ended(run.state, said["reason"] if said.get("state") == "succeeded" else "", deployed)
    if said.get("card") and said.get("state") in ("failed", "cancelled"):
        title = remote.title(str(said["card"]).replace("_", "-"))
        return Ended(run.state, f"{title} failed: {said['reason']}", deployed)
    failed = [by_name[name] for name, card in remote.cards.items() if card.state == "failed" and name in by_name]
    told = [_told(connection, run, task, remote) for task in failed]
    return Ended(run.state, "; ".join(told) or " ".join(str(run.error.message if run.error else "").split()), deployed)


def _told(connection: Connection, run: Any, task: Any, remote: RemoteRun) -> str:
    """Returns that a card has failed, with its reason if one is to be had."""
    log = "" if task.error and task.error.message else end_of_log(connection, run.run_id, task)
    reason = last_error(log) if log else str(task.error.message) if task.error else ""
    unknown = f" (no log to be had from {connection.host}; the card Report of the run says why)"
    return f"{remote.title(task.display_name)} failed" + (f": {reason}" if reason else unknown)


def _deployed(tasks: list[Any]) -> bool | None:
    return any(task.display_name == LAST_CARD and task.state == "SUCCEEDED" for task in tasks) if tasks else None


def _seconds(start: datetime | None, end: datetime | None) -> float:
    # The backend writes the year 1970 for what has not begun or ended.
    if start is None or start.year < 2000:
        return 0.0
    return max(((end if end and end.year >= 2000 else datetime.now(UTC)) - start).total_seconds(), 0.0)
