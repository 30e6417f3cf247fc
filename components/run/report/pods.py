"""What the pods of a run tell of its end."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from llm_finetune.components.shared.card_logs import OUT_OF_MEMORY, last_error, read_outcome
from llm_finetune.components.shared.errors import UserError

CARD_FLAG = "--function_to_execute"  # KFP starts a step with the name of its function behind this flag
NODE_NAME = "workflows.argoproj.io/node-name"  # annotation: the whole path of a step, such as wf.root.tokenize-driver
DRIVER = "-driver"
OWN = "report"
LAST_LINES = 400
STARTING = ("ContainerCreating", "PodInitializing")

State = Literal["succeeded", "failed", "waiting"]


@dataclass(frozen=True)
class CardPod:
    """The last pod of a card, or of the driver of Kubeflow Pipelines that prepares one.

    Attributes:
        card: Name of the card.
        state: How it ended; `waiting` never started.
        reason: Why it failed or waits.
        outcome: What the card recorded.
    """

    card: str
    state: State
    reason: str
    outcome: dict[str, Any]


@dataclass(frozen=True)
class Pods:
    """The pods of a run.

    Attributes:
        cards: The last pod of each card, the one that ended first at the front.
        tried_again: Whether a card that failed was tried again.
        trouble: Why not all could be read; empty if all could.
    """

    cards: tuple[CardPod, ...] = ()
    tried_again: bool = False
    trouble: str = ""

    def first(self, state: State) -> CardPod | None:
        """Returns the first card in a state, or None."""
        return next((pod for pod in self.cards if pod.state == state), None)

    def outcome(self, card: str) -> dict[str, Any]:
        """Returns what a card recorded, or an empty mapping."""
        return next((pod.outcome for pod in self.cards if pod.card == card), {})


def in_cluster() -> bool:
    """Tells whether this process runs in a pod; a local run has none."""
    return "KUBERNETES_SERVICE_HOST" in os.environ


def pods_of(run_id: str) -> Pods:
    """Reads the pods of a run and the ends of their logs.

    Args:
        run_id: The run.

    Returns:
        What they tell; where the service account may not read it, `trouble` says so.
    """
    # Slow to import, and of no use in a local run.
    import urllib3
    from kubernetes import client

    from llm_finetune.components.shared.kubernetes_api import Refused, connect

    try:
        api, namespace = connect(pause=1.0)
        pods = client.CoreV1Api(api)
        found = pods.list_namespaced_pod(namespace, label_selector=f"pipeline/runid={run_id}").items
        return _read(_Logs(pods, f"reading the logs of run {run_id} in {namespace}"), found)
    except client.ApiException as error:
        return Pods(trouble=str(Refused(f"reading the pods of run {run_id} in {namespace}", error)))
    except urllib3.exceptions.HTTPError as error:
        return Pods(trouble=f"the Kubernetes API is out of reach ({error})")
    except UserError as error:
        return Pods(trouble=str(error))


class _Logs:
    """Reads logs, as long as that is allowed."""

    def __init__(self, pods: Any, doing: str) -> None:
        self.pods, self.doing, self.trouble = pods, doing, ""

    def end_of(self, pod: Any) -> str | None:
        """Returns the end of a pod's log, or None where there is none to be had."""
        from kubernetes import client

        from llm_finetune.components.shared.kubernetes_api import Refused

        try:
            return str(
                self.pods.read_namespaced_pod_log(
                    pod.metadata.name, pod.metadata.namespace, container="main", tail_lines=LAST_LINES
                )
            )
        except client.ApiException as error:
            if error.status not in (400, 404):
                self.trouble = str(Refused(self.doing, error))
            return None


def _read(logs: _Logs, found: list[Any]) -> Pods:
    last: dict[tuple[str, str], Any] = {}
    tried_again = False
    for pod in sorted(found, key=_ended):
        whose = _whose(pod)
        if pod.status.phase in ("Succeeded", "Failed", "Pending") and whose[0] not in ("", OWN):
            tried_again |= whose in last
            last.pop(whose, None)
            last[whose] = pod
    cards = tuple(_card_pod(logs, card, runner, pod) for (card, runner), pod in last.items())
    return Pods(cards, tried_again, logs.trouble)


def _whose(pod: Any) -> tuple[str, str]:
    """Returns the card that a pod belongs to and what ran in it, launcher or driver; empty for other pods."""
    main = next((container for container in pod.spec.containers if container.name == "main"), None)
    words = [*(main.command or []), *(main.args or [])] if main else []
    if CARD_FLAG in words[:-1]:
        return str(words[words.index(CARD_FLAG) + 1]), "launcher"
    task = (pod.metadata.annotations or {}).get(NODE_NAME, "").rpartition(".")[2]
    return (task.removesuffix(DRIVER).replace("-", "_"), "driver") if task.endswith(DRIVER) else ("", "")


def _ended(pod: Any) -> datetime:
    states = [status.state.terminated for status in pod.status.container_statuses or [] if status.state]
    times = [state.finished_at for state in states if state and state.finished_at]
    return max(times, default=pod.metadata.creation_timestamp)  # an evicted pod may list no containers


def _card_pod(logs: _Logs, card: str, runner: str, pod: Any) -> CardPod:
    if pod.status.phase == "Succeeded":
        log = logs.end_of(pod) if runner == "launcher" else None
        return CardPod(card, "succeeded", "", read_outcome(log or "", card))
    said = next(_told_by_cluster(pod), "")
    if pod.status.phase == "Pending":
        return CardPod(card, "waiting", f"it was never started: {said or 'its pod is still pending'}", {})
    if not said:
        log = logs.end_of(pod)
        said = "its log cannot be read" if log is None else last_error(log, runner)
    return CardPod(card, "failed", said, {})


def _told_by_cluster(pod: Any) -> Iterator[str]:
    """Yields what a pod's status says of its end that the card's log cannot say."""
    status = pod.status
    if status.reason:  # Evicted, DeadlineExceeded, …
        yield f"{status.reason}: {status.message or 'the pod was ended by the cluster'}"
    containers = [*(status.container_statuses or []), *(status.init_container_statuses or [])]
    for container in sorted(containers, key=lambda container: container.name != "main"):
        waiting = container.state and container.state.waiting
        ended = container.state and container.state.terminated
        if waiting and waiting.reason and waiting.reason not in STARTING:
            yield f"its container {container.name} cannot start: {_words(waiting)}"
        elif ended and ended.reason == "OOMKilled":
            yield OUT_OF_MEMORY
        elif ended and ended.exit_code and ended.reason not in (None, "Error"):
            yield f"its container {container.name} was ended: {_words(ended)}"
        elif ended and ended.exit_code and container.name == "main":
            return  # the log says why
        elif ended and ended.exit_code:
            yield f"its container {container.name} ended with status {ended.exit_code}: {ended.message or 'no message'}"
    for condition in status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            yield f"no node takes it: {condition.message or condition.reason or 'no reason given'}"


def _words(state: Any) -> str:
    return ": ".join(filter(None, [state.reason, state.message]))
