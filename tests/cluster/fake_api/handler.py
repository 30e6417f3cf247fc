"""HTTP handler of the fake cluster: objects, watches, access reviews, logs and injected faults."""

import json
import re
import socket
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import yaml
from cluster.fake_api import discovery
from cluster.fake_api.store import Problem, key_of

if TYPE_CHECKING:
    from cluster.fake_api.server import FakeCluster


@dataclass
class Fault:
    """A fault that replaces a response.

    Attributes:
        status: HTTP status; 0 closes the connection.
        times: Number of responses.
        method: Method of the request; empty for any.
        path: Regular expression for the path of the request.
        after: Whether the request is processed, so that only the response is lost.
    """

    status: int
    times: int = 1
    method: str = ""
    path: str = ""
    after: bool = False


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    api: "FakeCluster"

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
            return self._send_fault(fault)
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
            return self._send_fault(fault)
        if answer is not None:
            self._send(200, answer)
        return None

    def _fault(self, method: str, path: str) -> Fault | None:
        for fault in self.api.faults:
            if fault.times and fault.method in ("", method) and re.search(fault.path, path):
                fault.times -= 1
                return fault
        return None

    def _send_fault(self, fault: Fault) -> None:
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
            return discovery.groups(self.api.hidden)
        if found := re.fullmatch(r"/openapi/v3/apis/(.+)/(.+)", path):
            return self.api.schemas.document(found[1], found[2])
        if found := re.fullmatch(r"/api/(v1)|/apis/([^/]+/[^/]+)", path):
            return discovery.resources(found[1] or found[2], self.api.hidden)
        pattern = r"/(?:api/(v1)|apis/([^/]+/[^/]+))(?:/namespaces/([^/]+))?/([a-z]+)(?:/([^/]+))?(?:/([a-z]+))?"
        found = re.fullmatch(pattern, path)
        version, namespace, plural, name, sub = (found[1] or found[2], *found.groups()[2:]) if found else (None,) * 5
        kind = next((k for v, k, p, _ in discovery.known(self.api.hidden) if (v, p) == (version, plural)), None)
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
                raise Problem(415, "UnsupportedMediaType", "only server-side apply is implemented")
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
