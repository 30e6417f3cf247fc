"""A small Hugging Face Hub on this machine: repositories are folders, everything else is the real client's doing."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """What the server knows and what it has seen.

    Attributes:
        repos: Folder of each model by Hub id.
        gated: Ids that need a token.
        tokens: Tokens that open the gated ones.
        requests: Method and path of every request so far.
        sent: Bytes of file content sent so far.
        uploads: Files of every commit made, by Hub id.
        broken: Status that every request gets instead of an answer; 0 for none.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Path] = {}
        self.gated: set[str] = set()
        self.tokens: set[str] = set()
        self.requests: list[str] = []
        self.sent = 0
        self.created: dict[str, dict] = {}
        self.uploads: dict[str, dict[str, bytes]] = {}
        self.broken = 0
        self.url = ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: object, status: int = 200, **headers: str) -> None:
        self._answer(status, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def _refused(self, repo: str, revision: str = COMMIT) -> bool:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if repo not in self.hub.repos and repo not in self.hub.created:
            self._json({}, 404 if token else 401, X_Error_Code="RepoNotFound")
        elif repo in self.hub.gated and token not in self.hub.tokens:
            self._json({}, 403 if token else 401, X_Error_Code="GatedRepo")
        elif revision not in ("main", COMMIT):
            self._json({}, 404, X_Error_Code="RevisionNotFound")
        else:
            return False
        return True

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.broken:
            return self._json({}, self.hub.broken)
        if path == "/api/whoami-v2":
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            return self._json({"name": "someone"}) if token in self.hub.tokens else self._json({}, 401)
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            repo, rest = "/".join(parts[2:4]), parts[4:]
            revision = rest[1] if len(rest) > 1 else "main"
            if self._refused(repo, revision):
                return None
            return self._tree(repo) if rest[:1] == ["tree"] else self._info(repo)
        if len(parts) > 4 and parts[2] == "resolve":
            repo, revision, name = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
            return None if self._refused(repo, revision) else self._file(self._content(repo, name))
        return self._json({}, 404)

    def _info(self, repo: str) -> None:
        files = [file for file in self.hub.repos[repo].rglob("*") if file.is_file()]
        siblings = [
            {"rfilename": file.relative_to(self.hub.repos[repo]).as_posix(), "size": file.stat().st_size}
            for file in files
        ]
        self._json({"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings, "tags": [], "downloads": 0,
                    "likes": 0, "private": False, "gated": False, "disabled": False})  # fmt: skip

    def _tree(self, repo: str) -> None:
        root = self.hub.repos.get(repo)
        files = {file.relative_to(root).as_posix(): file.read_bytes() for file in root.rglob("*") if file.is_file()} \
            if root else self.hub.uploads.get(repo, {})  # fmt: skip
        self._json([
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for path, content in files.items()
        ])  # fmt: skip

    def _content(self, repo: str, name: str) -> bytes | None:
        if repo not in self.hub.repos:
            return self.hub.uploads.get(repo, {}).get(name)
        file = self.hub.repos[repo] / name
        return file.read_bytes() if file.is_file() else None

    def _file(self, body: bytes | None) -> None:
        if body is None:
            return self._json({}, 404, X_Error_Code="EntryNotFound")
        etag = f'"{hashlib.sha1(body).hexdigest()}"'
        wanted = self.headers.get("Range")
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            body = body[int(first) : int(last) + 1 if last else None]
        if self.command != "HEAD":
            self.hub.sent += len(body)
        return self._answer(206 if wanted else 200, body, ETag=etag, X_Repo_Commit=COMMIT)

    def do_POST(self) -> None:
        path = unquote(urlparse(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.requests.append(f"POST {path}")
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in self.hub.tokens:
            return self._json({"error": "no"}, 403)
        parts = path.strip("/").split("/")
        if path == "/api/repos/create":
            wanted = json.loads(body)
            repo = f"{wanted.get('organization') or 'someone'}/{wanted['name']}"
            self.hub.created[repo] = wanted
            return self._json({"url": f"{self.hub.url}/{repo}"})
        repo = "/".join(parts[2:4])
        if "preupload" in parts:
            files = json.loads(body)["files"]
            return self._json(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        if "commit" in parts:
            return self._commit(repo, body)
        return self._json({"ok": True, "query": parse_qs(path)})

    def _commit(self, repo: str, body: bytes) -> None:
        import base64

        stored = self.hub.uploads.setdefault(repo, {})
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                stored[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "deletedFile":
                del stored[entry["value"]["path"]]
        self._json({"success": True, "commitOid": COMMIT, "commitUrl": f"{self.hub.url}/{repo}/commit/{COMMIT}",
                    "hookOutput": "", "pullRequestUrl": None})  # fmt: skip


@contextmanager
def serving() -> Iterator[FakeHub]:
    """Runs the server for the block, on a free port of this machine."""
    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
