"""What the pods of a run have printed."""

import os
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from llm_finetune.components.serving.vllm_serve.local import OWNER_VARIABLE
from llm_finetune.components.shared.errors import UserError

CARD_FLAG = "--function_to_execute"  # KFP starts a step with the name of its function behind this flag
LAST_LINES = 60


@dataclass(frozen=True)
class PodLog:
    """The end of what a card printed.

    Attributes:
        card: Name of the card.
        failed: Whether its pod failed.
        text: Its last lines.
    """

    card: str
    failed: bool
    text: str

    def line_with(self, start: str) -> str:
        """Returns the rest of the line that starts so, or an empty string."""
        return next((line.removeprefix(start) for line in self.text.splitlines() if line.startswith(start)), "")


def logs_of(run_id: str) -> list[PodLog]:
    """Reads the end of the logs of a run's cards, of each its last try, the one that ended first at the front.

    Args:
        run_id: The run.

    Returns:
        The logs; none for a local run, which has no pods, wherever it runs.

    Raises:
        UserError: If the service account may not read pods or their logs, or the API does not answer.
    """
    # A notebook in the cluster has the first one too.
    if "KUBERNETES_SERVICE_HOST" not in os.environ or OWNER_VARIABLE in os.environ:
        return []
    # Slow to import, and of no use in a local run.
    import urllib3
    from kubernetes import client

    from llm_finetune.components.serving.vllm_serve.connection import Refused, connect

    api, namespace = connect(pause=1.0)
    pods = client.CoreV1Api(api)
    try:
        found = pods.list_namespaced_pod(namespace, label_selector=f"pipeline/runid={run_id}").items
        ended = sorted((pod for pod in found if pod.status.phase in ("Succeeded", "Failed")), key=_ended)
        last: dict[str, Any] = {}
        for pod in reversed(ended):
            last.setdefault(_card(pod), pod)
        cards = [(name, pod) for name, pod in reversed(last.items()) if name]
        return [PodLog(name, pod.status.phase == "Failed", _log(pods, pod)) for name, pod in cards]
    except client.ApiException as error:
        raise Refused(f"reading the pods of run {run_id} in {namespace}", error) from error
    except urllib3.exceptions.HTTPError as error:
        raise UserError(f"the Kubernetes API is out of reach ({error})") from error


def _card(pod: Any) -> str:
    """Returns the card that a pod ran; empty for the backend's own pods."""
    main = next((container for container in pod.spec.containers if container.name == "main"), None)
    words = [*(main.command or []), *(main.args or [])] if main else []
    return str(words[words.index(CARD_FLAG) + 1]) if CARD_FLAG in words[:-1] else ""


def _ended(pod: Any) -> datetime:
    states = [status.state.terminated for status in pod.status.container_statuses or [] if status.name == "main"]
    times = [state.finished_at for state in states if state and state.finished_at]
    return max(times, default=pod.metadata.creation_timestamp)  # an evicted pod may list no containers


def _log(pods: Any, pod: Any) -> str:
    from kubernetes import client

    if pod.status.reason:  # Evicted, DeadlineExceeded, …: the pod's status says more than its log
        return f"error: {pod.status.reason}: {pod.status.message or 'the pod was ended by the cluster'}"
    try:
        text = pods.read_namespaced_pod_log(
            pod.metadata.name, pod.metadata.namespace, container="main", tail_lines=LAST_LINES
        )
    except client.ApiException as error:
        if error.status not in (400, 404):
            raise
        return "its log is gone, as is its pod"
    return str(text) + _killed(pod)


def _killed(pod: Any) -> str:
    """Returns an error line for a container that was killed, which cannot say so itself."""
    for status in pod.status.container_statuses or []:
        ended = status.state.terminated
        if status.name == "main" and ended and ended.reason == "OOMKilled":
            return "\nerror: killed for memory; give the card's size more (option sizes of llm-finetune compile)"
    return ""
