"""Reads cards' logs through the API of Kubeflow Pipelines, whose list of tasks holds no reasons.

What the API gives (backend/src/apiserver/server/api_converter.go, api/v2beta1, 2.5 to 2.17): a task's `error` and
`pod_name` are left empty; `child_tasks` name Argo's nodes below it. A card's node has one child, that of its pod.
"""

import json
import re
from collections import deque
from typing import Any

from llm_finetune.components.shared.errors import UserError
from llm_finetune.pipelines.submit.connection import Connection

# Argo names a pod after workflow, template and the last part of its node's name; in its older format, as the node.
TEMPLATE = "system-container-impl"
NODE = re.compile(r"(.+)-(\d+)")
LAST_LINES = 400


def end_of_log(connection: Connection, run_id: str, task: Any) -> str:
    """Returns the end of what a card printed.

    Args:
        connection: Connection to the API.
        run_id: The run.
        task: The card's entry in the run's list of tasks.

    Returns:
        Its last lines; empty where they are not to be had: the card was tried several times, its pod is gone, or who
        asks may not read it.
    """
    for child in task.child_tasks or []:
        node = NODE.fullmatch(child.pod_name or "")
        for pod in (f"{node[1]}-{TEMPLATE}-{node[2]}", child.pod_name) if node else ():
            for path, query in _ways(connection, run_id, pod):
                try:
                    with connection.doing("reading a log"):
                        log = _text(connection, path, query)
                except UserError:
                    continue  # the run has ended, which is told without its logs too
                if not _is_refusal(log):
                    return log
    return ""


def _ways(connection: Connection, run_id: str, pod: str) -> list[tuple[str, dict[str, str]]]:
    """Returns the API server's own path, and that of the dashboard's server, which passes the former not on."""
    place = {"podnamespace": connection.namespace} if connection.namespace else {}
    return [
        (f"/apis/v1alpha1/runs/{run_id}/nodes/{pod}/log", {}),
        ("/k8s/pod/logs", {"podname": pod, "runid": run_id} | place),
    ]


def _text(connection: Connection, path: str, query: dict[str, str]) -> str:
    api = connection.client._healthz_api.api_client
    answer = api.call_api(
        path, "GET", query_params=list(query.items()), auth_settings=["Bearer"], _preload_content=False,
        _return_http_data_only=True,
    )  # fmt: skip
    return b"".join(deque(answer, LAST_LINES)).decode(errors="replace")


def _is_refusal(log: str) -> bool:
    """Tells the answers that are no logs, which come with status 200 too: an error's JSON, the dashboard's page."""
    if log.lstrip()[:15].lower().startswith(("<!doctype html", "<html")):
        return True
    try:
        said = json.loads(log.splitlines()[-1] if log.strip() else "")
    except ValueError:
        return not log.strip()
    return isinstance(said, dict) and "error_message" in said
