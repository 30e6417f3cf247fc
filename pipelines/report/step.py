"""Report: how a run ended, and why."""

from dataclasses import dataclass
from pathlib import Path

from llm_finetune.components.shared.errors import UserError, told_error
from llm_finetune.components.shared.files import write_text
from llm_finetune.pipelines.report.pods import PodLog, logs_of

GATE_CLOSED = "gate closed: "


@dataclass(frozen=True)
class Ending:
    """How a run ended.

    Attributes:
        state: succeeded, failed or cancelled.
        card: The card that failed or kept the gate closed; empty where none did, or it is not known.
        reason: Why, in words.
    """

    state: str
    card: str
    reason: str


def report(state: str, message: str, run_id: str, end_report: str | Path) -> Ending:
    """Finds out why a run ended as it did, and writes it down.

    Args:
        state: SUCCEEDED, FAILED or CANCELLED.
        message: What the backend says about it; often nothing.
        run_id: The run.
        end_report: Markdown file to write.

    Returns:
        The ending.
    """
    try:
        logs, unknown = logs_of(run_id), ""
    except UserError as error:
        logs, unknown = [], str(error)
    ending = _ending(state.lower(), message, logs)
    lines = [f"# Run {ending.state}", "", f"{ending.reason[:1].upper()}{ending.reason[1:]}"]
    failed = [log for log in logs if log.failed]
    if len(failed) > 1:
        lines += ["", "| card | what it said last |", "|---|---|"]
        lines += [f"| {log.card} | {_in_a_cell(told_error(log.text))} |" for log in failed]
    if unknown:
        lines += ["", f"The cards' own words could not be read: {unknown}."]
    write_text(end_report, "\n".join(lines) + "\n")
    return ending


def _ending(state: str, message: str, logs: list[PodLog]) -> Ending:
    failed = next((log for log in logs if log.failed), None)
    if state == "succeeded":
        closed = next((log for log in logs if log.line_with(GATE_CLOSED)), None)
        if closed:
            return Ending(state, closed.card, f"the gate stayed closed, {closed.line_with(GATE_CLOSED)}")
        return Ending(state, "", "every card that was to run did")
    if failed:
        return Ending(state, failed.card, f"{failed.card} failed: {told_error(failed.text)}")
    return Ending(state, "", message or "the backend gives no reason; look at the logs of the card that is marked red")


def _in_a_cell(text: str) -> str:
    return " ".join(text.replace("|", r"\|").split())
