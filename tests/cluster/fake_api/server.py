"""The fake cluster: a Kubernetes API on a local port, with faults and missing permissions for tests."""

import contextlib
import socket
import threading
import time
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from cluster.fake_api.handler import Fault, Handler
from cluster.fake_api.schema import Schemas
from cluster.fake_api.store import Store


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
        """Removes a permission; a subresource is written as `pods/log`."""
        self.denied.add((verb, group, resource))

    def restart(self, down: float) -> None:
        """Closes all connections and restarts after the given seconds."""
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
                """Ignores closed connections, which tests cause."""

            def get_request(self) -> Any:
                connection, address = super().get_request()
                cluster._sockets.add(connection)
                return connection, address

        class Bound(Handler):
            api = cluster

        server = Server(("127.0.0.1", port), Bound)
        threading.Thread(target=lambda: server.serve_forever(0.01), daemon=True).start()
        return server
