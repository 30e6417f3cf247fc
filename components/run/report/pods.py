"""States, outcomes and errors of cards, read from the pods of a run."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from llm_finetune.components.serving.vllm_serve.local.server import OWNER_VARIABLE
from llm_finetune.components.shared.card_logs import OUT_OF_MEMORY, last_error, read_outcome
from llm_finetune.components.shared.errors import UserError

CARD_FLAG = "--function_to_execute"  # precedes the name of the card's function in the command of a pod
NODE_NAME = "workflows.argoproj.io/node-name"  # annotation: path of a step, such as wf.root.tokenize-driver
DRIVER = "-driver"
OWN_CARD = "report"
LAST_LINES = 400
STARTING = ("ContainerCreating", "PodInitializing")

State = Literal["succeeded", "failed", "waiting"]


@dataclass(frozen=True)
class CardPod:
    """The last pod of a card, or of the driver that prepares the card.

    Attributes:
        card: Name of the card.
        state: Result of the pod; `waiting` if it never started.
        reason: Reason why it failed or waits.
        outcome: Recorded outcome of the card.
    """

    card: str
    state: State
    reason: str
    outcome: dict[str, Any]


@dataclass(frozen=True)
class Pods:
    """The pods of a run.

    Attributes:
        cards: The last pod of each card, in the order in which they ended.
        retried: Whether a card was retried.
        error: Reason why pods or logs could not be read; empty if all were read.
    """

    cards: tuple[CardPod, ...] = ()
    retried: bool = False
    error: str = ""

    def first(self, state: State) -> CardPod | None:
        """Returns the first card in a state, or None."""
        return next((pod for pod in self.cards if pod.state == state), None)

    def outcome(self, card: str) -> dict[str, Any]:
        """Returns the recorded outcome of a card, or an empty mapping."""
        return next((pod.outcome for pod in self.cards if pod.card == card), {})


def in_cluster() -> bool:
    """Returns whether this process runs in a pod."""
    return "KUBERNETES_SERVICE_HOST" in os.environ and OWNER_VARIABLE not in os.environ


def pods_of(run_id: str) -> Pods:
    """Reads the pods of a run and the last lines of their logs.

    Args:
        run_id: ID of the run.

    Returns:
        The pods; `error` is set if the service account may not read them.
    """
    # Slow imports that a local run does not need.
    import urllib3
    from kubernetes import client

    from llm_finetune.components.shared.kubernetes_api import ApiError, connect

    try:
        api, namespace = connect(retry_delay=1.0)
        core_api = client.CoreV1Api(api)
        found = core_api.list_namespaced_pod(namespace, label_selector=f"pipeline/runid={run_id}").items
        return _read(_Logs(core_api, f"reading the logs of run {run_id} in {namespace}"), found)
    except client.ApiException as error:
        return Pods(error=str(ApiError(f"reading the pods of run {run_id} in {namespace}", error)))
    except urllib3.exceptions.HTTPError as error:
        return Pods(error=f"cannot connect to the Kubernetes API ({error})")
    except UserError as error:
        return Pods(error=str(error))


class _Logs:
    """Reads logs of pods; stores the last error."""

    def __init__(self, api: Any, action: str) -> None:
        self.api, self.action, self.error = api, action, ""

    def tail(self, pod: Any) -> str | None:
        """Returns the last lines of a pod's log, or None if the log is not available."""
        from kubernetes import client

        from llm_finetune.components.shared.kubernetes_api import ApiError

        try:
            return str(
                self.api.read_namespaced_pod_log(
                    pod.metadata.name, pod.metadata.namespace, container="main", tail_lines=LAST_LINES
                )
            )
        except client.ApiException as error:
            if error.status not in (400, 404):
                self.error = str(ApiError(self.action, error))
            return None


def _read(logs: _Logs, found: list[Any]) -> Pods:
    last: dict[tuple[str, str], Any] = {}
    retried = False
    for pod in sorted(found, key=_end_time):
        key = _card_and_runner(pod)
        if pod.status.phase in ("Succeeded", "Failed", "Pending") and key[0] not in ("", OWN_CARD):
            retried |= key in last
            last.pop(key, None)
            last[key] = pod
    cards = tuple(_card_pod(logs, card, runner, pod) for (card, runner), pod in last.items())
    return Pods(cards, retried, logs.error)


def _card_and_runner(pod: Any) -> tuple[str, str]:
    """Returns the card of a pod and what ran in it, launcher or driver; empty strings for other pods."""
    main = next((container for container in pod.spec.containers if container.name == "main"), None)
    words = [*(main.command or []), *(main.args or [])] if main else []
    if CARD_FLAG in words[:-1]:
        return str(words[words.index(CARD_FLAG) + 1]), "launcher"
    task = (pod.metadata.annotations or {}).get(NODE_NAME, "").rpartition(".")[2]
    return (task.removesuffix(DRIVER).replace("-", "_"), "driver") if task.endswith(DRIVER) else ("", "")


def _end_time(pod: Any) -> datetime:
    states = [status.state.terminated for status in pod.status.container_statuses or [] if status.state]
    times = [state.finished_at for state in states if state and state.finished_at]
    created: datetime = pod.metadata.creation_timestamp
    return max(times, default=created)  # an evicted pod may have no container statuses


def _card_pod(logs: _Logs, card: str, runner: str, pod: Any) -> CardPod:
    if pod.status.phase == "Succeeded":
        log = logs.tail(pod) if runner == "launcher" else None
        return CardPod(card, "succeeded", "", read_outcome(log or "", card))
    reason = next(_cluster_reasons(pod), "")
    if pod.status.phase == "Pending":
        return CardPod(card, "waiting", f"the card did not start: {reason or 'its pod is still pending'}", {})
    if not reason:
        log = logs.tail(pod)
        reason = "its log cannot be read" if log is None else last_error(log, runner)
    return CardPod(card, "failed", reason, {})


def _cluster_reasons(pod: Any) -> Iterator[str]:
    """Yields reasons from the status of a pod, which the card's log cannot contain."""
    status = pod.status
    if status.reason:  # Evicted, DeadlineExceeded, …
        yield f"{status.reason}: {status.message or 'the cluster terminated the pod'}"
    containers = [*(status.container_statuses or []), *(status.init_container_statuses or [])]
    for container in sorted(containers, key=lambda container: container.name != "main"):
        waiting = container.state and container.state.waiting
        ended = container.state and container.state.terminated
        if waiting and waiting.reason and waiting.reason not in STARTING:
            yield f"container {container.name} cannot start: {_reason_and_message(waiting)}"
        elif ended and ended.reason == "OOMKilled":
            yield OUT_OF_MEMORY
        elif ended and ended.exit_code and ended.reason not in (None, "Error"):
            yield f"container {container.name} was terminated: {_reason_and_message(ended)}"
        elif ended and ended.exit_code and container.name == "main":
            return  # the log contains the error
        elif ended and ended.exit_code:
            yield f"container {container.name} exited with status {ended.exit_code}: {ended.message or 'no message'}"
    for condition in status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            yield f"the pod cannot be scheduled: {condition.message or condition.reason or 'no reason given'}"


def _reason_and_message(state: Any) -> str:
    return ": ".join(filter(None, [state.reason, state.message]))
