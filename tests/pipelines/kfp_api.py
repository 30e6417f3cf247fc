"""An API server of Kubeflow Pipelines on this machine: the REST paths that a client uses, held in memory.

Runs and logs are answered as the backend's source has it, 2.5 to 2.17 (backend/src/apiserver/server/api_converter.go and
run_log_server.go, frontend/server/app.ts and handlers/pod-logs.ts): a task has neither `error` nor `pod_name`, its child
is the Argo node of its pod; a log that cannot be read comes with status 200 and an error's JSON; the dashboard's server
passes on v1beta1 and v2beta1 alone, answers other paths with its page, and has logs at a path of its own.
"""

import json
import re
import ssl
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

BASE = "/apis/v2beta1"
WORKFLOW = "llm-finetune-x7s24"
KINDS = {
    "STRING": str, "BOOLEAN": bool, "NUMBER_INTEGER": int, "NUMBER_DOUBLE": (int, float), "STRUCT": dict, "LIST": list,
}  # fmt: skip


class Refusal(Exception):
    """An answer that is no success, as the API words it."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers


@dataclass
class Fault:
    """A gateway's trouble with requests of a kind: it answers with a status, or hangs up (0), before or after they are done."""

    status: int
    method: str
    path: str
    times: int = 1
    done: bool = False


@dataclass
class KfpApi:
    """What the server knows and what it has seen.

    Attributes:
        multi_user: Whether it belongs to a Kubeflow with profiles.
        namespaces: Profiles of the user.
        token: Token that lets in; empty lets anyone in.
        cookie: Cookie that lets in; without it a browser's way is answered: a redirect to a login page.
        story: Task states of a run at each look: (state of the run, states by task, error of the tasks that failed,
            which no backend up to 2.17 tells).
        logs: What the pod of a card has printed, by task.
        dashboard: Whether the dashboard's server stands before it.
        pod_names: Argo's format of the names of pods, v1 or v2.
    """

    multi_user: bool = False
    namespaces: set[str] = field(default_factory=set)
    token: str = ""
    cookie: str = ""
    forgotten: str = ""
    faults: list[Fault] = field(default_factory=list)
    story: list[tuple[str, dict[str, str], str]] = field(default_factory=list)
    logs: dict[str, str] = field(default_factory=dict)
    dashboard: bool = False
    pod_names: str = "v2"
    requests: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    store: dict[str, list[dict[str, Any]]] = field(
        default_factory=lambda: {kind: [] for kind in ("pipelines", "versions", "experiments", "runs", "recurringruns")}
    )
    url: str = ""

    def answer(self, method: str, path: str, query: dict[str, str], headers: Any, body: bytes) -> Any:
        self.requests.append(f"{method} {path}")
        self.headers.append(dict(headers))
        fault = next((f for f in self.faults if f.method == method and re.fullmatch(f.path, path) and f.times), None)
        if fault:
            fault.times -= 1
            if fault.done:
                self._carry_out(method, path, query, headers, body)
            raise Refusal(fault.status, "upstream connect error or disconnect/reset before headers")
        return self._carry_out(method, path, query, headers, body)

    def _carry_out(self, method: str, path: str, query: dict[str, str], headers: Any, body: bytes) -> Any:
        if self.token and headers.get("Authorization") != f"Bearer {self.token}":
            raise Refusal(401, "Unauthenticated: the token has expired")
        if self.cookie and headers.get("Cookie") != self.cookie:
            raise Refusal(302, "", Location="/dex/auth?client_id=kubeflow")
        parts = path.removeprefix(BASE).strip("/").split("/")
        asked = re.fullmatch(r"/apis/v1alpha1/runs/[^/]+/nodes/([^/]+)/log", path)
        if not self.dashboard and asked:
            return self._log(asked[1]) or {
                "error_message": f"Failed to read logs from pod {asked[1]}",
                "error_details": "",
            }
        if self.dashboard and path == "/k8s/pod/logs":
            return self._log_of_dashboard(query)
        if not path.startswith(BASE):
            if self.dashboard:
                return "<!doctype html><html></html>"
            raise Refusal(404, "Not Found")
        if method == "GET":
            return self._read(parts, query)
        return self._write(parts, query, headers, body)

    def _read(self, parts: list[str], query: dict[str, str]) -> Any:
        if parts == ["healthz"]:
            return {"multi_user": self.multi_user}
        if parts[0] == "experiments":
            self._may(query.get("namespace", ""))
        if parts[:2] == ["pipelines", "names"]:
            found = self._pipelines_of(parts[2])
            if not found:
                raise Refusal(404, f"Namespace/Pipeline {parts[2]} not found")
            return found[0]
        if parts[0] == "pipelines" and parts[2:] == ["versions"]:
            return {"pipeline_versions": self._named("versions", query, pipeline_id=parts[1])}
        if len(parts) == 1:
            return {parts[0].replace("recurringruns", "recurringRuns"): self._named(parts[0], query)}
        if parts[0] == "runs":
            return self._look_at(parts[1])
        return next(entry for entry in self.store[parts[0]] if parts[1] in entry.values())

    def _write(self, parts: list[str], query: dict[str, str], headers: Any, body: bytes) -> Any:
        if parts == ["pipelines", "upload_version"]:
            return self._upload(query, headers, body)
        wanted = json.loads(body)
        if parts[0] in ("runs", "recurringruns"):
            self._check_parameters(wanted)
        self._may(wanted.get("namespace", "") if parts[0] == "experiments" else next(iter(self.namespaces), ""))
        if parts[0] == "pipelines":
            wanted = {"name": wanted["display_name"]} | wanted
            if self._pipelines_of(wanted["name"]):
                raise Refusal(409, f"Failed to create a new pipeline. The name {wanted['name']} already exists")
        number = {"pipelines": "pipeline_id", "experiments": "experiment_id", "runs": "run_id"}.get(
            parts[0], "recurring_run_id"
        )
        return self._keep(parts[0], wanted | {number: f"{parts[0]}-{len(self.store[parts[0]])}"})

    def _upload(self, query: dict[str, str], headers: Any, body: bytes) -> Any:
        boundary = headers["Content-Type"].split("boundary=")[1].encode()
        content = body.split(b"--" + boundary)[1].split(b"\r\n\r\n", 1)[1]
        spec = next(yaml.load_all(content, Loader=yaml.CSafeLoader))
        if self._named("versions", {}, pipeline_id=query["pipelineid"], display_name=query["name"]):
            raise Refusal(
                409, f"Failed to create a pipeline version: Already exist error: The name {query['name']} already exist"
            )
        return self._keep("versions", {
            "pipeline_id": query["pipelineid"], "pipeline_version_id": f"version-{len(self.store['versions'])}",
            "display_name": query["name"], "pipeline_spec": spec,
        })  # fmt: skip

    def _keep(self, kind: str, entry: dict[str, Any]) -> dict[str, Any]:
        self.store[kind].append(entry)
        return entry

    def _named(self, kind: str, query: dict[str, str], **also: str) -> list[dict[str, Any]]:
        wanted = dict(also)
        if "filter" in query:
            wanted["display_name"] = json.loads(query["filter"])["predicates"][0]["stringValue"]
        return [entry for entry in self.store[kind] if wanted.items() <= entry.items()]

    def _pipelines_of(self, name: str) -> list[dict[str, Any]]:
        return [entry for entry in self.store["pipelines"] if entry["name"] == name]

    def _may(self, namespace: str) -> None:
        if self.multi_user and namespace not in self.namespaces:
            raise Refusal(
                403, f"Failed to authorize with API: PermissionDenied: User is not authorized in namespace {namespace}"
            )

    def _check_parameters(self, wanted: dict[str, Any]) -> None:
        if "pipeline_spec" in wanted:
            spec = wanted["pipeline_spec"]["pipeline_spec"]
        else:
            chosen = wanted["pipeline_version_reference"]["pipeline_version_id"]
            spec = next(v["pipeline_spec"] for v in self.store["versions"] if v["pipeline_version_id"] == chosen)
        declared = dict(spec["root"]["inputDefinitions"]["parameters"])
        declared.pop(self.forgotten, None)
        for name, value in wanted["runtime_config"]["parameters"].items():
            if name not in declared:
                raise Refusal(400, f"Failed to create a run: InvalidInputError: unknown parameter {name} provided")
            kind = declared[name]["parameterType"]
            if not isinstance(value, KINDS[kind]) or (isinstance(value, bool) and kind != "BOOLEAN"):
                raise Refusal(400, f"Failed to create a run: InvalidInputError: parameter {name} is not of type {kind}")

    def _log(self, pod: str) -> str:
        template = {"v1": "", "v2": "-system-container-impl"}[self.pod_names]
        return next((log for task, log in self.logs.items() if pod == f"{WORKFLOW}{template}-{_number(task)}"), "")

    def _log_of_dashboard(self, query: dict[str, str]) -> str:
        if self.multi_user and "podnamespace" not in query:
            raise Refusal(422, "podnamespace argument is required")
        log = self._log(query["podname"])
        if not log:
            raise Refusal(500, "Could not get main container logs: pod not found")
        return log

    def _look_at(self, run_id: str) -> dict[str, Any]:
        run = next(entry for entry in self.store["runs"] if entry["run_id"] == run_id)
        state, tasks, error = self.story.pop(0) if len(self.story) > 1 else self.story[0]
        details = [
            {"display_name": name, "state": task_state, "child_tasks": [{"pod_name": f"{WORKFLOW}-{_number(name)}"}],
             "start_time": "2026-01-01T10:00:00Z",
             "end_time": "2026-01-01T10:01:05Z" if task_state in ("SUCCEEDED", "FAILED") else "1970-01-01T00:00:00Z",
             **({"error": {"code": 13, "message": error}} if error and task_state == "FAILED" else {})}
            for name, task_state in [("root-driver", "SUCCEEDED"), *tasks.items()]
        ]  # fmt: skip
        return run | {"state": state, "run_details": {"task_details": details}}


def _number(task: str) -> int:
    return zlib.crc32(task.encode())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: KfpApi

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._send(lambda: self.api.answer(self.command, url.path, query, self.headers, body))

    do_POST = do_GET

    def _send(self, answer: Callable[[], Any]) -> None:
        try:
            status, headers, content = 200, {}, answer()
        except Refusal as refusal:
            if not refusal.status:
                self.close_connection = True
                return
            status, headers = refusal.status, refusal.headers
            content = {"error": str(refusal), "code": 3, "message": str(refusal), "details": []}
        kind = "text/plain" if isinstance(content, str) else "application/json"
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[KfpApi]:
    """Runs the server for the block, on a free port of this machine."""
    api = KfpApi()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"api": api}))
    api.url = f"http{'s' * bool(tls)}://127.0.0.1:{server.server_address[1]}"
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
