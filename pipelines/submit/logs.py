"""Reads logs of cards through the API of Kubeflow Pipelines.

The API's list of tasks contains no failure reasons: `error` and `pod_name` of a task are empty, and `child_tasks` name
the Argo nodes below it (backend/src/apiserver/server/api_converter.go, api/v2beta1, 2.5 to 2.17). The node of a card
has one child, the node of its pod.
"""

import json
import re
from collections import deque
from typing import Any

from llm_finetune.components.shared.errors import UserError
from llm_finetune.pipelines.submit.connection import Connection

# Argo's pod name consists of workflow, template and the last part of the node name; older versions use the node name.
TEMPLATE = "system-container-impl"
NODE = re.compile(r"(.+)-(\d+)")
LAST_LINES = 400


def read_log_tail(connection: Connection, run_id: str, task: Any) -> str:
    """Returns the last lines of a card's log.

    Args:
        connection: Connection to the API.
        run_id: ID of the run.
        task: Entry of the card in the run's list of tasks.

    Returns:
        The last lines; empty if the log is not available: the card was retried, its pod was deleted, or the user may
        not read it.
    """
    for child in task.child_tasks or []:
        node = NODE.fullmatch(child.pod_name or "")
        for pod in (f"{node[1]}-{TEMPLATE}-{node[2]}", child.pod_name) if node else ():
            for path, query in _log_requests(connection, run_id, pod):
                try:
                    with connection.explain_errors("reading a log"):
                        log = _request_text(connection, path, query)
                except UserError:
                    continue  # the result of the run is reported without its logs too
                if not _is_error_page(log):
                    return log
    return ""


def _log_requests(connection: Connection, run_id: str, pod: str) -> list[tuple[str, dict[str, str]]]:
    """Returns path and query of the API server's log endpoint, and of the dashboard's, which does not proxy it."""
    namespace = {"podnamespace": connection.namespace} if connection.namespace else {}
    return [
        (f"/apis/v1alpha1/runs/{run_id}/nodes/{pod}/log", {}),
        ("/k8s/pod/logs", {"podname": pod, "runid": run_id} | namespace),
    ]


def _request_text(connection: Connection, path: str, query: dict[str, str]) -> str:
    api = connection.client._healthz_api.api_client
    response = api.call_api(
        path, "GET", query_params=list(query.items()), auth_settings=["Bearer"], _preload_content=False,
        _return_http_data_only=True,
    )  # fmt: skip
    return b"".join(deque(response, LAST_LINES)).decode(errors="replace")


def _is_error_page(log: str) -> bool:
    """Returns whether a response with status 200 is not a log but an error in JSON or the dashboard's page."""
    if log.lstrip()[:15].lower().startswith(("<!doctype html", "<html")):
        return True
    try:
        content = json.loads(log.splitlines()[-1] if log.strip() else "")
    except ValueError:
        return not log.strip()
    return isinstance(content, dict) and "error_message" in content
