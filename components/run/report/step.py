"""Report: how a run ended, and why."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_finetune.components.run.report.pods import Pods, in_cluster, pods_of
from llm_finetune.components.shared.files import write_text
from llm_finetune.components.shared.markdown import table

STATES = {
    # What KFP's documentation of PipelineTaskFinalStatus names, and its local runner says.
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
    "CANCELLED": "cancelled",
    # What its backend says: the word of the metadata store for the handler's tasks as a whole
    # (backend/src/v2/driver/resolve.go). RUNNING, the usual word after a closed gate and after a pod that was killed,
    # says nothing; nor does SKIPPED.
    "COMPLETE": "succeeded",
    "CACHED": "succeeded",
    "CANCELED": "cancelled",
}
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Ending:
    """How a run ended.

    Attributes:
        state: succeeded, failed, cancelled or unknown.
        card: The card that failed or kept the gate closed; empty where none did, or it is not known.
        reason: Why, in words.
        gate: open or closed; empty where the gate was not reached, or it is not known.
        deployment: Name of what was deployed; empty where nothing was.
        base_url: Where it answers.
        namespace: Its namespace.
    """

    state: str
    card: str
    reason: str
    gate: str = ""
    deployment: str = ""
    base_url: str = ""
    namespace: str = ""

    def __str__(self) -> str:
        """Returns the ending in one sentence."""
        return f"{self.card} failed: {self.reason}" if self.card and self.state != "succeeded" else self.reason


def report(state: str, message: str, run_id: str, end_report: str | Path) -> Ending:
    """Finds out why a run ended as it did, and writes it down.

    Args:
        state: The backend's word for the end of the other cards.
        message: What the backend says about it; often nothing.
        run_id: The run.
        end_report: Markdown file to write.

    Returns:
        The ending.
    """
    pods = pods_of(run_id) if in_cluster() else Pods()
    ending = _ending(state, message, pods)
    write_text(end_report, _page(ending, pods))
    return ending


def _ending(word: str, message: str, pods: Pods) -> Ending:
    state = STATES.get(word.upper(), UNKNOWN)
    if state == "failed" and pods.tried_again:
        state = UNKNOWN  # the backend may leave this word where a card failed at first and was tried again
    stopped = pods.first("failed") or (pods.first("waiting") if state != "succeeded" else None)
    if stopped:
        return Ending("cancelled" if state == "cancelled" else "failed", stopped.card, stopped.reason)
    gate, served = pods.outcome("quality_gate"), pods.outcome("vllm_serve")
    if state in ("succeeded", UNKNOWN) and gate.get("open") is False:
        return Ending("succeeded", "quality_gate", f"the gate stayed closed: {gate.get('reason', '')}", "closed")
    if state in ("succeeded", UNKNOWN) and served:
        return _deployed(served)
    if state == "succeeded":
        return Ending(state, "", _all_ran(pods), "open" if gate else "")
    if message:
        return Ending(state, "", message)
    if state == UNKNOWN:
        return Ending(state, "", f"the backend's word for it is {word or 'empty'}. {_nothing_known(pods)}")
    return Ending(state, "", "the backend gives no reason; look at the logs of the card that is marked red")


def _deployed(served: dict[str, Any]) -> Ending:
    name, url, namespace = (str(served.get(key, "")) for key in ("deployment_name", "base_url", "namespace"))
    if served.get("target") == "manifest":
        reason = f"the manifests of {name} are written (deployment_page of vLLM Serve); nothing was deployed"
        return Ending("succeeded", "", reason, "open")
    place = f" in namespace {namespace}" if namespace else ""
    return Ending("succeeded", "", f"{name} is deployed{place}: {url}", "open", name, url, namespace)


def _all_ran(pods: Pods) -> str:
    if not pods.cards:
        return "every card that was to run did; the gate's verdict is on the page of Quality Gate"
    return "every card that was to run did"


def _nothing_known(pods: Pods) -> str:
    if pods.trouble:
        return "Look at the cards: it says so where the gate stayed closed, but also where a card's pod was killed"
    return "No card's pod failed, and neither a closed gate nor a deployment is on record; look at the cards"


def _page(ending: Ending, pods: Pods) -> str:
    title = "Run ended, but it is not known how" if ending.state == UNKNOWN else f"Run {ending.state}"
    lines = [f"# {title}", ""]
    if ending.card and ending.state != "succeeded":
        # A code block, since nothing in a card's words is meant as markup.
        lines += [f"The card `{ending.card}` failed:", "", *(f"    {line}" for line in ending.reason.splitlines())]
    else:
        lines.append(f"{ending.reason[:1].upper()}{ending.reason[1:]}")
    stopped = [pod for pod in pods.cards if pod.state != "succeeded"]
    if len(stopped) > 1:
        lines += ["", *table(("card", "what it said last"), [(pod.card, pod.reason) for pod in stopped])]
    if pods.trouble:
        lines += ["", f"The cards' own words could not be read: {pods.trouble}."]
    return "\n".join(lines) + "\n"
