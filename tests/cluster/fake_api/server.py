"""The HTTP side of the fake cluster: discovery, objects, watches, access reviews, logs and injected faults."""

import contextlib
import json
import re
import socket
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from cluster.fake_api.schema import Schemas
from cluster.fake_api.store import Problem, Store, key_of

CORE = [("Pod", "pods"), ("Secret", "secrets"), ("ServiceAccount", "serviceaccounts"), ("Event", "events"),
        ("ConfigMap", "configmaps"), ("ResourceQuota", "resourcequotas"),
        ("PersistentVolumeClaim", "persistentvolumeclaims"), ("Service", "services")]  # fmt: skip
KINDS = [
    *(("v1", kind, plural, True) for kind, plural in CORE),
    ("v1", "Node", "nodes", False),
    ("apps/v1", "Deployment", "deployments", True),
    ("authorization.k8s.io/v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews", False),
    ("serving.kserve.io/v1beta1", "InferenceService", "inferenceservices", True),
    ("serving.kserve.io/v1alpha1", "ServingRuntime", "servingruntimes", True),
    ("serving.kserve.io/v1alpha1", "ClusterServingRuntime", "clusterservingruntimes", False),
    ("serving.knative.dev/v1", "Service", "services", True),
    ("serving.knative.dev/v1", "Revision", "revisions", True),
    ("gateway.networking.k8s.io/v1", "HTTPRoute", "httproutes", True),
    ("karpenter.sh/v1", "NodePool", "nodepools", False),
]
VERBS = ["get", "list", "watch", "create", "update", "patch", "delete"]


@dataclass
class Fault:
    """An answer that is given instead of the real one, so many times.

    Attributes:
        status: HTTP status; 0 breaks the connection, before the request is carried out.
        times: How often.
        method: Of the request.
        path: Regular expression that its path has to match.
        after: Carries the request out first, so that only the answer is lost.
    """

    status: int
    times: int = 1
    method: str = ""
    path: str = ""
    after: bool = False


class FakeCluster:
    """A Kubernetes API on a local port."""

    def __init__(self, generation: str = "0.20", groups: set[str] | None = None, schemas: str = "") -> None:
        self.store, self.faults, self.denied = Store(), list[Fault](), set[tuple[str, str, str]]()
        self.hidden = {"karpenter.sh", "gateway.networking.k8s.io", *(groups or set())}
        self.schemas = Schemas(generation, schemas)
        self.store.admission.append(self.schemas.check)
        self.logs: dict[tuple[str, str, bool], str] = {}
        self.requests: list[tuple[str, str]] = []
        self._sockets: set[socket.socket] = set()
        self._server = self._listen(0)
        self.port = self._server.server_port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def kubeconfig(self, path: Path, namespace: str = "team") -> Path:
        """Writes a kubeconfig that leads here."""
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
            "users": [{"name": "me", "user": {"token": "t"}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "me", "namespace": namespace}}],
            "current-context": "fake",
        }
        path.write_text(yaml.safe_dump(content))
        return path

    def fail(self, status: int, times: int = 1, method: str = "", path: str = "", after: bool = False) -> None:
        self.faults.append(Fault(status, times, method, path, after))

    def deny(self, verb: str, group: str, resource: str) -> None:
        """Takes a right away; `pods/log` is written as such."""
        self.denied.add((verb, group, resource))

    def restart(self, down: float) -> None:
        """Breaks every connection and is away for so many seconds."""
        self.stop()
        time.sleep(down)
        self._server = self._listen(self.port)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._sockets):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._sockets.clear()

    def _listen(self, port: int) -> ThreadingHTTPServer:
        cluster = self

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False
            allow_reuse_address = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Broken connections are part of the play."""

            def get_request(self) -> Any:
                connection, address = super().get_request()
                cluster._sockets.add(connection)
                return connection, address

        class Bound(Handler):
            api = cluster

        server = Server(("127.0.0.1", port), Bound)
        threading.Thread(target=lambda: server.serve_forever(0.01), daemon=True).start()
        return server


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    api: FakeCluster

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def do_PATCH(self) -> None:
        self._answer("PATCH")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, method: str) -> None:
        parts = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        length = int(self.headers.get("Content-Length") or 0)
        body = yaml.safe_load(self.rfile.read(length)) if length else None
        self.api.requests.append((method, self.path))
        fault = self._fault(method, parts.path)
        if fault and not fault.after:
            return self._broken(fault)
        try:
            answer = self._route(method, parts.path, query, body)
        except Problem as problem:
            details = {"causes": problem.causes} if problem.causes else {}
            answer = {
                "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": problem.reason,
                "message": problem.message, "details": details, "code": problem.status,
            }  # fmt: skip
            self._send(problem.status, answer)
            return None
        if fault:
            return self._broken(fault)
        if answer is not None:
            self._send(200, answer)
        return None

    def _fault(self, method: str, path: str) -> Fault | None:
        for fault in self.api.faults:
            if fault.times and fault.method in ("", method) and re.search(fault.path, path):
                fault.times -= 1
                return fault
        return None

    def _broken(self, fault: Fault) -> None:
        if fault.status:
            message = {429: "slow down", 500: "etcdserver: leader changed"}.get(fault.status, "not now")
            self._send(fault.status, {"kind": "Status", "message": message, "code": fault.status})
        else:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, status: int, body: Any) -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(body, str) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        if status == 429:
            self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(data)

    def _route(self, method: str, path: str, query: dict[str, str], body: Any) -> Any:
        if path == "/version":
            return {"major": "1", "minor": "33", "gitVersion": "v1.33.0"}
        if path == "/apis":
            return self._groups()
        if found := re.fullmatch(r"/openapi/v3/apis/(.+)/(.+)", path):
            return self.api.schemas.document(found[1], found[2])
        if found := re.fullmatch(r"/api/(v1)|/apis/([^/]+/[^/]+)", path):
            return self._resources(found[1] or found[2])
        pattern = r"/(?:api/(v1)|apis/([^/]+/[^/]+))(?:/namespaces/([^/]+))?/([a-z]+)(?:/([^/]+))?(?:/([a-z]+))?"
        found = re.fullmatch(pattern, path)
        version, namespace, plural, name, sub = (found[1] or found[2], *found.groups()[2:]) if found else (None,) * 5
        kind = next((k for v, k, p, _ in self._known() if (v, p) == (version, plural)), None)
        if found is None or kind is None:
            raise Problem(404, "NotFound", "the server could not find the requested resource")
        return self._object(method, (version, kind, namespace or "", name or ""), plural, sub, query, body)

    def _object(
        self,
        method: str,
        key: tuple[str, str, str, str],
        plural: str,
        sub: str | None,
        query: dict[str, str],
        body: Any,
    ) -> Any:
        store, (version, kind, namespace, name) = self.api.store, key
        if kind == "SelfSubjectAccessReview":
            asked = body["spec"]["resourceAttributes"]
            full = "/".join(filter(None, [asked["resource"], asked.get("subresource")]))
            return body | {"status": {"allowed": (asked["verb"], asked.get("group", ""), full) not in self.api.denied}}
        group = version.rpartition("/")[0]
        verb = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}.get(method, "")
        verb = verb or ("get" if name else "watch" if query.get("watch") in ("true", "True") else "list")
        if (verb, group, "/".join(filter(None, [plural, sub]))) in self.api.denied:
            raise Problem(403, "Forbidden", f'{plural} is forbidden: User "me" cannot {verb} resource "{plural}"')
        if sub == "log":
            store.read(key)
            logged = (name, query.get("container", ""), query.get("previous", "") in ("true", "True"))
            if logged not in self.api.logs:
                raise Problem(400, "BadRequest", f"container {logged[1]} in pod {name} is waiting to start")
            return "\n".join(self.api.logs[logged].split("\n")[-int(query.get("tailLines", 100)) :])
        if verb == "watch":
            return self._watch(key, query)
        if verb == "list":
            with store.changed:
                items = [store.read(k) for k in store.objects if _fits(k, store.objects[k], key, query)]
                listed = {"resourceVersion": str(store.version)}
            return {"kind": f"{kind}List", "apiVersion": version, "metadata": listed, "items": items}
        if verb == "get":
            return store.read(key)
        if verb == "delete":
            store.delete(key)
            return {"kind": "Status", "status": "Success"}
        body["metadata"].setdefault("namespace", namespace)
        manager = query.get("fieldManager", "unknown")
        if sub == "status":
            if body["metadata"].get("resourceVersion") not in (None, store.read(key)["metadata"]["resourceVersion"]):
                raise Problem(409, "Conflict", "the object has been modified")
            store.status(key, body.get("status") or {})
            return store.read(key)
        body.pop("status", None)
        if verb == "patch":
            if self.headers["Content-Type"] != "application/apply-patch+yaml":
                raise Problem(415, "UnsupportedMediaType", "only server-side apply is played here")
            force, dry_run = query.get("force") in ("true", "True"), query.get("dryRun") == "All"
            return store.apply(body, manager, force, dry_run)
        if verb == "create" and key_of(body) in store.objects:
            raise Problem(409, "AlreadyExists", f'{plural} "{body["metadata"]["name"]}" already exists')
        return store.put(body, manager)

    def _watch(self, key: tuple[str, str, str, str], query: dict[str, str]) -> None:
        store, since = self.api.store, int(query.get("resourceVersion") or 0)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        deadline = time.monotonic() + int(query.get("timeoutSeconds", 30))
        if since < store.oldest:
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            self._chunk(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
            return self._chunk(b"")
        while time.monotonic() < deadline:
            with store.changed:
                entries = [entry for entry in store.log if entry[0] > since and _fits(entry[2], entry[3], key, query)]
                if not entries:
                    store.changed.wait(min(0.2, max(0.0, deadline - time.monotonic())))
                    continue
            for number, kind, _, obj in entries:
                since = number
                self._chunk(json.dumps({"type": kind, "object": obj}).encode() + b"\n")
        return self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _known(self) -> list[tuple[str, str, str, bool]]:
        return [entry for entry in KINDS if entry[0].rpartition("/")[0] not in self.api.hidden]

    def _groups(self) -> dict[str, Any]:
        groups: dict[str, list[str]] = {}
        for version, *_ in self._known():
            if "/" in version and version not in groups.setdefault(version.split("/")[0], []):
                groups[version.split("/")[0]].append(version)
        listed = []
        for name, versions in groups.items():
            told = [{"groupVersion": v, "version": v.split("/")[1]} for v in versions]
            listed.append({"name": name, "versions": told, "preferredVersion": told[0]})
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}

    def _resources(self, version: str) -> dict[str, Any]:
        listed = [
            {"name": plural, "singularName": kind.lower(), "namespaced": spaced, "kind": kind, "verbs": VERBS}
            for v, kind, plural, spaced in self._known()
            if v == version
        ]
        if not listed:
            raise Problem(404, "NotFound", "the server could not find the requested resource")
        return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": listed}


def _fits(key: Any, obj: Any, asked: Any, query: dict[str, str]) -> bool:
    if key[:2] != asked[:2] or (asked[2] and key[2] != asked[2]):
        return False
    labels = obj["metadata"].get("labels") or {}
    for term in filter(None, query.get("labelSelector", "").split(",")):
        name, _, value = term.partition("=")
        if labels.get(name) != value:
            return False
    for term in filter(None, query.get("fieldSelector", "").split(",")):
        name, _, value = term.partition("=")
        if str({"metadata.name": obj["metadata"]["name"]}.get(name, obj.get(name))) != value:
            return False
    return True
