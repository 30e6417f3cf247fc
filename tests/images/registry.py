"""A registry on this machine that keeps what is pushed in memory, as far as the OCI distribution API asks for a push."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType


class Registry:
    """Serves while its block runs.

    Args:
        refuses: Whether it answers every request with 403 Forbidden.
    """

    def __init__(self, refuses: bool = False) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}  # by `repository:tag` and `repository@digest`
        self.refuses = refuses
        registry = self

        class Handler(_Handler):
            store = registry

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"localhost:{self.server.server_port}"

    def __enter__(self) -> "Registry":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.server.shutdown()
        self.server.server_close()


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: Registry

    def log_message(self, *words: object) -> None:
        """Keeps quiet."""

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _dispatch(self) -> None:
        body = self._body()
        path = self.path.partition("?")[0]
        if self.store.refuses:
            error = json.dumps({"errors": [{"code": "DENIED", "message": "requested access is denied"}]}).encode()
            return self._answer(403, error, Content_Type="application/json")
        if path == "/v2/":
            return self._answer(200)
        if match := re.fullmatch(r"/v2/(.+)/manifests/(.+)", path):
            return self._manifest(match[1], match[2], body)
        if re.fullmatch(r"/v2/.+/blobs/uploads/.*", path):
            return self._upload(path, body)
        if match := re.fullmatch(r"/v2/.+/blobs/(.+)", path):
            return self._found(self.store.blobs.get(match[1]))
        return self._answer(404)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = _dispatch

    def _manifest(self, repository: str, reference: str, body: bytes) -> None:
        by_digest = reference.startswith("sha256:")
        key = f"{repository}{'@' if by_digest else ':'}{reference}"
        if self.command != "PUT":
            return self._found(self.store.manifests.get(key))
        digest = digest_of(body)
        self.store.manifests |= {key: body, f"{repository}@{digest}": body}
        return self._answer(201, Docker_Content_Digest=digest, Location=self.path)

    def _found(self, content: bytes | None) -> None:
        if content is None:
            return self._answer(404)
        media = "application/octet-stream"
        if content.startswith(b"{"):
            media = json.loads(content).get("mediaType", media)
        return self._answer(200, content, Docker_Content_Digest=digest_of(content), Content_Type=media)

    def _upload(self, path: str, body: bytes) -> None:
        if self.command == "POST":
            name = f"{path}{len(self.store.blobs)}-{threading.get_ident()}"
            self.store.blobs[name] = b""
            return self._answer(202, Location=name, Docker_Upload_UUID="1", Range="0-0")
        held = self.store.blobs[path] = self.store.blobs.get(path, b"") + body
        if self.command == "PATCH":
            return self._answer(202, Location=path, Range=f"0-{len(held)}")
        self.store.blobs[digest_of(held)] = self.store.blobs.pop(path)
        return self._answer(201, Docker_Content_Digest=digest_of(held))
