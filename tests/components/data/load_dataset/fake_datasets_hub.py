"""A small Hugging Face Hub on the loopback interface: the requests that streaming a dataset makes, and no others."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_of_the_test"


class FakeHub:
    """Repositories by name: their commits, the files of each, and whether they ask for a token."""

    def __init__(self) -> None:
        self.refs: dict[str, dict[str, str]] = {}
        self.files: dict[tuple[str, str], dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.cards: dict[str, dict] = {}
        self.tokens_seen: set[str] = set()
        self.unknown: list[str] = []
        self.url = ""

    def add(self, name: str, files: dict[str, bytes], branch: str = "main", gated: bool = False) -> str:
        """Commits files to a branch and returns the commit."""
        digest = hashlib.sha1(name.encode())
        for path, content in sorted(files.items()):
            digest.update(path.encode() + content)
        commit = digest.hexdigest()
        self.refs.setdefault(name, {})[branch] = commit
        self.files[name, commit] = files
        if gated:
            self.gated.add(name)
        return commit

    @contextlib.contextmanager
    def serving(self) -> Iterator["FakeHub"]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.answer()

            def do_GET(self) -> None:
                self.answer()

            def do_POST(self) -> None:
                self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.answer()

            def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
                self.send_response(status)
                for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def refuse(self, status: int, code: str, message: str) -> None:
                body = json.dumps({"error": message}).encode()
                self.send(status, body, {"X-Error-Code": code, "X-Error-Message": message})

            def answer(self) -> None:
                path = unquote(urlsplit(self.path).path)
                token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
                hub.tokens_seen.add(token)
                kind, _, rest = (
                    path.removeprefix("/api/").partition("/") if path.startswith("/api/") else ("", "", path)
                )
                name = "/".join((rest if kind else path.removeprefix("/datasets/")).split("/")[:2])
                if kind not in ("", "datasets") or name not in hub.refs:
                    hub.unknown.append(f"{self.command} {self.path}")
                    self.refuse(404, "RepoNotFound", "Repository not found")
                elif name in hub.gated and token != TOKEN:
                    self.refuse(401 if not token else 403, "GatedRepo", f"Access to dataset {name} is restricted")
                elif kind:
                    self.answer_api(name, rest.removeprefix(name).strip("/"))
                else:
                    self.answer_file(name, path.removeprefix(f"/datasets/{name}/"))

            def answer_api(self, name: str, rest: str) -> None:
                action, _, more = rest.partition("/")
                if not action:
                    action, more = "revision", "main"
                revision, _, folder = more.partition("/")
                commit = hub.refs[name].get(revision, revision)
                files = hub.files.get((name, commit))
                if files is None:
                    self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
                elif action == "revision":
                    siblings = [{"rfilename": path} for path in files]
                    facts = {"_id": "1", "id": name, "sha": commit, "private": False, "gated": False, "disabled": False}
                    self.send_json(
                        {
                            **facts,
                            "downloads": 0,
                            "likes": 0,
                            "tags": [],
                            "siblings": siblings,
                            "cardData": hub.cards.get(name),
                        }
                    )
                elif action == "tree":
                    recursive = (
                        "recursive" in self.path and parse_qs(urlsplit(self.path).query)["recursive"][0] != "False"
                    )
                    listed = self.listed(files, folder, recursive)
                    if folder and not listed:
                        self.refuse(404, "EntryNotFound", "Entry not found")
                    else:
                        self.send_json(listed)
                elif action == "paths-info":
                    text = self.body.decode()
                    wanted = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text).get("paths", [])
                    known = {entry["path"]: entry for entry in self.listed(files, "", True)}
                    self.send_json([known[path] for path in wanted if path in known])
                else:
                    hub.unknown.append(f"{self.command} {self.path}")
                    self.refuse(404, "EntryNotFound", "Entry not found")

            def listed(self, files: dict[str, bytes], folder: str, recursive: bool) -> list[dict]:
                entries: dict[str, dict] = {}
                prefix = f"{folder}/" if folder else ""
                for path, content in files.items():
                    if not path.startswith(prefix):
                        continue
                    parts = path.removeprefix(prefix).split("/")
                    for depth in range(1, len(parts) if recursive else min(2, len(parts))):
                        directory = prefix + "/".join(parts[:depth])
                        entries[directory] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": directory}
                    if recursive or len(parts) == 1:
                        oid = hashlib.sha1(content).hexdigest()
                        entries[path] = {"type": "file", "oid": oid, "size": len(content), "path": path}
                return list(entries.values())

            def answer_file(self, name: str, rest: str) -> None:
                _, _, rest = rest.partition("resolve/")
                revision, _, path = rest.partition("/")
                commit = hub.refs[name].get(revision, revision)
                files = hub.files.get((name, commit))
                if files is None:
                    self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
                elif path not in files:
                    self.refuse(404, "EntryNotFound", "Entry not found")
                else:
                    self.send_file(files[path], commit)

            def send_file(self, content: bytes, commit: str) -> None:
                headers = {
                    "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
                    "X-Repo-Commit": commit,
                    "Accept-Ranges": "bytes",
                }
                wanted = (self.headers.get("Range") or "").removeprefix("bytes=")
                if not wanted:
                    self.send(200, content, headers)
                    return
                first, _, last = wanted.partition("-")
                start, end = int(first), min(int(last or len(content) - 1), len(content) - 1)
                headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
                self.send(206, content[start : end + 1], headers)

            def send_json(self, value: object) -> None:
                self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        return Handler
