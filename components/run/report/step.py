"""Report: result of a run, and its reason."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_finetune.components.run.report.pods import Pods, in_cluster, pods_of
from llm_finetune.components.shared.files import write_text
from llm_finetune.components.shared.markdown import table

STATES = {
    # States in KFP's documentation of PipelineTaskFinalStatus and in its local runner.
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
    "CANCELLED": "cancelled",
    # States of the backend: that of the exit handler's DAG in the metadata store (backend/src/v2/driver/resolve.go).
    # RUNNING is the usual state both after a closed gate and after a killed pod, so it means unknown, as SKIPPED does.
    "COMPLETE": "succeeded",
    "CACHED": "succeeded",
    "CANCELED": "cancelled",
}
UNKNOWN = "unknown"


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Attributes:
        state: succeeded, failed, cancelled or unknown.
        card: Card that failed or kept the gate closed; empty if none or unknown.
        reason: Reason.
        gate: open or closed; empty if the gate was not reached, or unknown.
        deployment: Name of the deployment; empty without one.
        base_url: URL of the deployment.
        namespace: Namespace of the deployment.
    """

    state: str
    card: str
    reason: str
    gate: str = ""
    deployment: str = ""
    base_url: str = ""
    namespace: str = ""

    def __str__(self) -> str:
        """Returns the result in one sentence."""
        return f"{self.card} failed: {self.reason}" if self.card and self.state != "succeeded" else self.reason


def report(state: str, message: str, run_id: str, end_report: str | Path) -> RunResult:
    """Determines the result of a run and writes the report.

    Args:
        state: State of the other cards, from the backend.
        message: Message of the backend; often empty.
        run_id: ID of the run.
        end_report: Markdown file to write.

    Returns:
        The result.
    """
    pods = pods_of(run_id) if in_cluster() else Pods()
    result = _result(state, message, pods)
    write_text(end_report, _page(result, pods))
    return result


def _result(backend_state: str, message: str, pods: Pods) -> RunResult:
    state = STATES.get(backend_state.upper(), UNKNOWN)
    if state == "failed" and pods.retried:
        state = UNKNOWN  # the backend may keep this state after a successful retry
    stopped = pods.first("failed") or (pods.first("waiting") if state != "succeeded" else None)
    if stopped:
        return RunResult("cancelled" if state == "cancelled" else "failed", stopped.card, stopped.reason)
    gate, served = pods.outcome("quality_gate"), pods.outcome("vllm_serve")
    if state in ("succeeded", UNKNOWN) and gate.get("open") is False:
        return RunResult("succeeded", "quality_gate", f"the gate stayed closed: {gate.get('reason', '')}", "closed")
    if state in ("succeeded", UNKNOWN) and served:
        return _deployed(served)
    if state == "succeeded":
        return RunResult(state, "", _describe_success(pods), "open" if gate else "")
    if message:
        return RunResult(state, "", message)
    if state == UNKNOWN:
        return RunResult(
            state, "", f"the backend reports the state {backend_state or '(empty)'}. {_explain_unknown(pods)}"
        )
    return RunResult(state, "", "the backend reports no reason; see the logs of the failed card")


def _deployed(served: dict[str, Any]) -> RunResult:
    name, url, namespace = (str(served.get(key, "")) for key in ("deployment_name", "base_url", "namespace"))
    if served.get("target") == "manifest":
        reason = f"the manifests of {name} are on the page of vLLM Serve; nothing was deployed"
        return RunResult("succeeded", "", reason, "open")
    where = f" in namespace {namespace}" if namespace else ""
    return RunResult("succeeded", "", f"{name} is deployed{where}: {url}", "open", name, url, namespace)


def _describe_success(pods: Pods) -> str:
    if not pods.cards:
        return "all cards that ran succeeded; see the page of Quality Gate for its decision"
    return "all cards that ran succeeded"


def _explain_unknown(pods: Pods) -> str:
    if pods.error:
        return "See the cards: this is the state after a closed gate, but also after a killed pod"
    return "No pod failed, and the logs contain neither a closed gate nor a deployment; see the cards"


def _page(result: RunResult, pods: Pods) -> str:
    title = "Run ended with unknown result" if result.state == UNKNOWN else f"Run {result.state}"
    lines = [f"# {title}", ""]
    if result.card and result.state != "succeeded":
        # A code block, so that markup in the error is not rendered.
        lines += [f"The card `{result.card}` failed:", "", *(f"    {line}" for line in result.reason.splitlines())]
    else:
        lines.append(f"{result.reason[:1].upper()}{result.reason[1:]}")
    not_succeeded = [pod for pod in pods.cards if pod.state != "succeeded"]
    if len(not_succeeded) > 1:
        lines += ["", *table(("card", "error"), [(pod.card, pod.reason) for pod in not_succeeded])]
    if pods.error:
        lines += ["", f"The logs of the cards could not be read: {pods.error}."]
    return "\n".join(lines) + "\n"
