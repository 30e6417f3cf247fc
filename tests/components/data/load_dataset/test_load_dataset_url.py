"""Load Dataset: a file from a web server, and what servers do wrong."""

import hashlib
import http.server
import socket
import threading

import pytest
from load_dataset_file import FILES, LINES, ROWS, load, parquet, refused

from llm_finetune.components.data.sources import web


class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        status, headers, body = self.server.answers.get(self.path.partition("?")[0], (404, {}, b"none"))
        self.send_response(status)
        for key, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(web, "BACKOFF_SECONDS", 0.001)
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.answers = {}
    served.url = f"http://127.0.0.1:{served.server_port}"
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    yield served
    served.shutdown()
    served.server_close()


@pytest.mark.parametrize("name", FILES)
def test_every_format_from_a_server(tmp_path, server, name):
    server.answers[f"/files/{name}"] = (200, {"ETag": '"v1"'}, FILES[name])
    facts, rows = load(tmp_path, f"{server.url}/files/{name}")
    assert rows == ROWS
    assert facts.revision == "v1"


def test_what_servers_do_wrong(tmp_path, server):
    server.answers = {
        "/page": (200, {"Content-Type": "text/html"}, b"<html>Sign in"),
        "/cut.jsonl": (200, {"Content-Length": len(LINES) + 1000}, LINES),
        "/cut.parquet": (200, {"Content-Length": len(parquet()) + 1000}, parquet()),
        "/private": (403, {}, b"no"),
        "/broken": (500, {}, b"oh"),
        "/empty.jsonl": (200, {}, b""),
        "/moved": (302, {"Location": "/good.jsonl"}, b""),
        "/good.jsonl": (200, {}, LINES),
    }
    assert "does not exist" in refused(tmp_path, f"{server.url}/none.jsonl")
    assert "HTML page" in refused(tmp_path, f"{server.url}/page")
    message = refused(tmp_path, f"{server.url}/cut.jsonl?token=secret")
    assert "the connection ended after" in message and f" of {len(LINES) + 1000:,} bytes" in message
    assert "secret" not in message
    assert "the connection ended" in refused(tmp_path, f"{server.url}/cut.parquet")
    assert "returned 403" in refused(tmp_path, f"{server.url}/private")
    assert "returned 500" in refused(tmp_path, f"{server.url}/broken")
    assert "is empty" in refused(tmp_path, f"{server.url}/empty.jsonl")
    assert "sha256" in refused(tmp_path, f"{server.url}/good.jsonl", sha256="0" * 64)
    assert "the connection ended" in refused(tmp_path, f"{server.url}/cut.jsonl", sha256="0" * 64)
    assert load(tmp_path, f"{server.url}/moved")[1] == ROWS
    assert load(tmp_path, f"{server.url}/good.jsonl", sha256=hashlib.sha256(LINES).hexdigest())[1] == ROWS


def test_nobody_answers(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        message = refused(tmp_path, f"http://127.0.0.1:{taken.getsockname()[1]}/data.jsonl")
    assert "could not be read" in message
    assert "ftpx:// is not a supported URL scheme" in refused(tmp_path, "ftpx://host/data.jsonl")
