"""Follows a run on a cluster until it ends."""

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
from llm_finetune.pipelines.run_view.cards import CardRun, Event, EventKind, State, card_titles
from llm_finetune.pipelines.run_view.display import Display
from llm_finetune.pipelines.submit.connection import ApiUnreachable, Connection, NotAuthorized
from llm_finetune.pipelines.submit.logs import read_log_tail

ENDED = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
STATES: dict[str, State] = {"RUNNING": "running", "SUCCEEDED": "done", "FAILED": "failed", "CANCELED": "failed"}
EVENTS: dict[State, EventKind] = {"running": "started", "done": "succeeded", "failed": "failed"}
UNAUTHORIZED_SECONDS = 300.0  # time to replace an expired token in its file
LAST_CARD = "vllm-serve"  # runs only if the gate is open
REPORT = "report"  # exit handler of every run


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Attributes:
        state: SUCCEEDED, FAILED, CANCELED or SKIPPED.
        reason: Reason from the cards, or else from the backend; may be empty.
        deployed: Whether the gate was open and the last card ran; None if unknown.
    """

    state: str
    reason: str
    deployed: bool | None


class RunNotFollowed(UserError):
    """Following a run stopped before the run ended; the run continues."""


class RemoteRun:
    """The cards of a run on a cluster."""

    def __init__(self, compiled: Path) -> None:
        """Reads the cards from the compiled YAML."""
        self.cards = {task: CardRun(task, title, Path()) for task, title in card_titles(compiled).items()}

    @property
    def running(self) -> CardRun | None:
        """A running card, or None."""
        return next((card for card in self.cards.values() if card.state == "running"), None)

    def title(self, task: str) -> str:
        """Returns the display name of a card."""
        return self.cards[task].title if task in self.cards else task

    def update(self, tasks: list[Any]) -> list[Event]:
        """Updates the cards from the backend's list of tasks.

        Args:
            tasks: Task details of the run; tasks that are not cards, such as the backend's drivers, are ignored.

        Returns:
            Changes since the last call.
        """
        events: list[Event] = []
        for task in tasks:
            card, state = self.cards.get(task.display_name), STATES.get(task.state or "")
            if card is None or state is None:
                continue
            seconds = _seconds(task.start_time, task.end_time)
            card.seconds, card.started = seconds, time.monotonic() - seconds
            if state != card.state:
                card.state = state
                events.append(Event(EVENTS[state], card.task))
        return events


def follow_run(
    connection: Connection,
    run_id: str,
    compiled: Path,
    console: Console,
    poll_seconds: float,
    timeout_seconds: float,
    now: Callable[[], float] = time.monotonic,
) -> RunResult:
    """Shows the cards of a run until it ends: live in a terminal, else one line per finished card.

    Args:
        connection: Connection to the API.
        run_id: ID of the run.
        compiled: Compiled YAML of its pipeline.
        console: Console to print to.
        poll_seconds: Seconds between two requests.
        timeout_seconds: Seconds after which to stop following; the run continues.
        now: Clock.

    Returns:
        The result of the run.

    Raises:
        RunNotFollowed: After the timeout, also if the API is unreachable until then, or if the API rejects the
            credentials.
    """
    started, remote, poller = now(), RemoteRun(compiled), _RunPoller(connection, run_id, console, now)
    with Display(console, remote) as display:
        while True:
            run = poller.poll()
            if run:
                tasks = (run.run_details.task_details if run.run_details else None) or []
                for event in remote.update(tasks):
                    display.update(event)
                if run.state in ENDED:
                    return _result(connection, run, tasks, remote)
            if now() - started > timeout_seconds:
                raise poller.last_error or RunNotFollowed(
                    f"the run {run_id} has not finished after {timeout_seconds / 3600:g} hours; it continues"
                )
            time.sleep(poll_seconds)


class _RunPoller:
    """Requests the state of a run, also through outages of the API."""

    def __init__(self, connection: Connection, run_id: str, console: Console, now: Callable[[], float]) -> None:
        self.connection, self.run_id, self.console, self.now = connection, run_id, console, now
        self.failing_since = 0.0
        self.last_error: RunNotFollowed | None = None
        self.error_type: type[UserError] | None = None

    def poll(self) -> Any | None:
        """Returns the run, or None if the API does not answer now."""
        try:
            with self.connection.explain_errors("reading the run"):
                run = self.connection.client.get_run(self.run_id)
        except UserError as error:
            self._on_error(error)
            return None
        self.last_error = self.error_type = None
        return run

    def _on_error(self, error: UserError) -> None:
        self.last_error = RunNotFollowed(f"{error}. The run {self.run_id} is no longer followed; it continues")
        is_new = self.error_type is not type(error)
        if is_new:
            self.error_type, self.failing_since = type(error), self.now()
        expired = isinstance(error, NotAuthorized) and self.now() - self.failing_since >= UNAUTHORIZED_SECONDS
        if expired or not isinstance(error, NotAuthorized | ApiUnreachable):
            raise self.last_error from error
        if is_new:
            self.console.print(Text(f"{error}. The run {self.run_id} continues; retrying", "yellow"), soft_wrap=True)


def _result(connection: Connection, run: Any, tasks: list[Any], remote: RemoteRun) -> RunResult:
    """Takes the reason from the outcome of the card Report, else from logs of failed cards, else from the backend."""
    by_name = {task.display_name: task for task in tasks}
    report = by_name.get(REPORT)
    log = read_log_tail(connection, run.run_id, report) if report else ""
    outcome = read_outcome(log, REPORT)
    deployed = False if outcome.get("gate") == "closed" else _deployed(tasks)
    if run.state == "SUCCEEDED":
        return RunResult(run.state, outcome["reason"] if outcome.get("state") == "succeeded" else "", deployed)
    if outcome.get("card") and outcome.get("state") in ("failed", "cancelled"):
        title = remote.title(str(outcome["card"]).replace("_", "-"))
        return RunResult(run.state, f"{title} failed: {outcome['reason']}", deployed)
    failed = [by_name[name] for name, card in remote.cards.items() if card.state == "failed" and name in by_name]
    reasons = [_describe_failure(connection, run, task, remote) for task in failed]
    backend_error = " ".join(str(run.error.message if run.error else "").split())
    return RunResult(run.state, "; ".join(reasons) or backend_error, deployed)


def _describe_failure(connection: Connection, run: Any, task: Any, remote: RemoteRun) -> str:
    """Returns the name of a failed card and the reason, if it is available."""
    log = "" if task.error and task.error.message else read_log_tail(connection, run.run_id, task)
    reason = last_error(log) if log else str(task.error.message) if task.error else ""
    unknown = f" ({connection.host} returned no log; see the card Report of the run)"
    return f"{remote.title(task.display_name)} failed" + (f": {reason}" if reason else unknown)


def _deployed(tasks: list[Any]) -> bool | None:
    return any(task.display_name == LAST_CARD and task.state == "SUCCEEDED" for task in tasks) if tasks else None


def _seconds(start: datetime | None, end: datetime | None) -> float:
    # The backend sets unknown times to the year 1970.
    if start is None or start.year < 2000:
        return 0.0
    return max(((end if end and end.year >= 2000 else datetime.now(UTC)) - start).total_seconds(), 0.0)
