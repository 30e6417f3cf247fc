"""An OpenAI-compatible server for all services of the fake cluster, with a path per service."""

import json
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Serving:
    """Responses of the pods of one revision.

    Attributes:
        names: Names of the models, including the name of the InferenceService.
        text: Text of the answer.
        finish: finish_reason of the answer.
        refuses: HTTP status of all responses; 200 for normal responses.
    """

    names: tuple[str, ...] = ()
    text: str = "Paris."
    finish: str = "stop"
    refuses: int = 200


class Models:
    """The server; `routes` maps paths to responses."""

    def __init__(self) -> None:
        self.routes: dict[str, Serving] = {}
        self.asked: list[tuple[str, str]] = []
        models = self

        class Bound(_Handler):
            owner = models

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
        self._server.daemon_threads = True
        threading.Thread(target=lambda: self._server.serve_forever(0.01), daemon=True).start()

    def url(self, route: str) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/{route}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    owner: Models

    def do_GET(self) -> None:
        serving = self._serving()
        if serving and serving.refuses == 200 and self.path.endswith("/v1/models"):
            self._send(200, json.dumps({"object": "list", "data": [{"id": name} for name in serving.names]}).encode())
        else:
            self._refuse(serving)

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        serving = self._serving()
        if not serving or serving.refuses != 200 or request["model"] not in serving.names:
            return self._refuse(serving)
        self.owner.asked.append((self.path, request["model"]))
        deltas = [({"content": serving.text}, None), ({}, serving.finish)]
        events: list[dict[str, Any]] = [
            {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]} for delta, finish in deltas
        ]
        events.append({"choices": [], "usage": {"completion_tokens": 2}})
        body = b"".join(f"data: {json.dumps(event)}\n\n".encode() for event in events) + b"data: [DONE]\n\n"
        return self._send(200, body, "text/event-stream")

    def log_message(self, *_: Any) -> None:
        pass

    def _serving(self) -> Serving | None:
        return self.owner.routes.get(self.path.split("/v1/")[0].strip("/"))

    def _refuse(self, serving: Serving | None) -> None:
        status = serving.refuses if serving and serving.refuses != 200 else 404
        self._send(status, b"RBAC: access denied" if status == 403 else b"no healthy upstream")

    def _send(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
