"""Load Dataset: downloads that break off, change or lie, and go on or are refused."""

import base64
import gzip
import hashlib
import http.server
import io
import re
import threading
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from load_dataset_sources import lines, load, refused

from llm_finetune.components.data.sources import web

BIG = lines(0, 60_000)  # about 1.3 MB
GZ = gzip.compress(BIG)


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `files`; what `faults` hold for a path is done instead, one after the other."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.requests.append((self.path, dict(self.headers)))
        faults = self.server.faults.get(self.path)
        if faults:
            faults.pop(0)(self)
        else:
            self.whole()

    def whole(self, cut: int | None = None, pause: float = 0.0, ranges: bool = True, **headers):
        content = self.server.files[self.path]
        start, end, status = 0, len(content), 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and ranges and self.headers.get("If-Range", '"v1"') == '"v1"':
            start, end = int(asked[1]), min(int(asked[2] or len(content) - 1) + 1, len(content))
            if start >= len(content):
                self.answer(416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": 0})
                return
            status = 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        accept = {"Accept-Ranges": "bytes", "ETag": '"v1"'} if ranges else {}
        self.answer(status, {"Content-Length": end - start, **accept, **headers})
        body = content[start:end][:cut]
        for at in range(0, len(body), 200_000):
            self.wfile.write(body[at : at + 200_000])
            time.sleep(pause)
        self.close_connection = self.close_connection or cut is not None

    def answer(self, status: int, headers: dict):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, str(value))
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(web, "BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(web, "ATTEMPTS", 4)
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    served.files, served.faults, served.requests = {"/data.jsonl": BIG, "/data.jsonl.gz": GZ}, {}, []
    served.url = f"http://127.0.0.1:{served.server_port}"
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield served
    served.shutdown()
    served.server_close()


def cut(after: int, **more):
    return lambda handler: handler.whole(cut=after, **more)


def status(code: int, **headers):
    return lambda handler: handler.answer(code, {"Content-Length": 0, **headers})


def test_a_broken_download_goes_on_where_it_ended(tmp_path, server):
    server.faults["/data.jsonl"] = [cut(500_000), cut(300_000), status(503), cut(0), status(429, **{"Retry-After": 0})]
    facts, rows = load(tmp_path, f"{server.url}/data.jsonl")
    assert len(rows) == 60_000 and rows[-1]["text"] == "row 59999" and facts.revision == "v1"
    asked = [headers.get("Range") for _, headers in server.requests]
    assert asked[:2] == [None, f"bytes=500000-{len(BIG) - 1}"] and asked[2] == f"bytes=800000-{len(BIG) - 1}"
    assert all(headers.get("If-Range") == '"v1"' for _, headers in server.requests[1:-1])
    assert server.requests[-1][1]["Range"] == f"bytes={len(BIG)}-"  # nothing follows


def test_without_ranges_it_starts_again_and_compares(tmp_path, server):
    server.faults["/data.jsonl.gz"] = [cut(len(GZ) // 2, ranges=False), lambda handler: handler.whole(ranges=False)]
    assert len(load(tmp_path, f"{server.url}/data.jsonl.gz")[1]) == 60_000

    def other(handler):
        server.files["/data.jsonl"] = BIG[:1000].replace(b"row", b"new") + BIG[1000:]
        handler.whole(ranges=False)

    server.faults["/data.jsonl"] = [cut(700_000, ranges=False), other]
    assert "changed while it was read" in refused(tmp_path, f"{server.url}/data.jsonl")


def test_a_file_that_changes_meanwhile_is_refused(tmp_path, server):
    changed = [cut(700_000), lambda handler: handler.whole(ETag='"v2"')]
    server.faults["/data.jsonl"] = changed
    assert "changed while it was read" in refused(tmp_path, f"{server.url}/data.jsonl")
    server.faults["/data.jsonl"] = [cut(700_000), lambda handler: handler.whole(ranges=False)]
    assert "changed while it was read" in refused(tmp_path, f"{server.url}/data.jsonl")


def test_lies_about_length_and_content(tmp_path, server):
    url = f"{server.url}/data.jsonl"
    end_of_a_line = BIG.index(b"\n", 900_000) + 1
    server.faults["/data.jsonl"] = [
        lambda handler: handler.whole(cut=end_of_a_line, **{"Content-Length": end_of_a_line})
    ]
    assert f"is longer than the {end_of_a_line:,} bytes" in refused(tmp_path, url)
    longer = {"Content-Length": len(BIG) + 999}
    server.faults["/data.jsonl"] = [lambda handler: handler.whole(**longer, cut=len(BIG))] * 4
    assert "changed while it was read" in refused(tmp_path, url)
    server.faults["/data.jsonl"] = [cut(0)] * 20
    assert f"the connection ended after 0 of {len(BIG):,} bytes, 4 times in a row" in refused(tmp_path, url)
    message = refused(tmp_path, "http://127.0.0.1:1/data.jsonl?signature=secret")
    assert "could not be read" in message and "secret" not in message
    wrong = base64.b64encode(hashlib.md5(b"other").digest()).decode()
    server.faults["/data.jsonl"] = [lambda handler: handler.whole(**{"Content-MD5": wrong})]
    assert "was damaged in transfer: its md5 is" in refused(tmp_path, url)
    right = base64.b64encode(hashlib.sha256(BIG).digest()).decode()
    server.faults["/data.jsonl"] = [lambda handler: handler.whole(**{"Repr-Digest": f"sha-256=:{right}:"})]
    assert len(load(tmp_path, url)[1]) == 60_000


def endless(handler):
    handler.answer(200, {"Connection": "close"})
    handler.wfile.write(BIG[:900_000])
    handler.close_connection = True


def test_an_unknown_length_needs_a_checksum(tmp_path, server):
    url = f"{server.url}/data.jsonl"
    server.faults["/data.jsonl"] = [endless] * 3
    assert "the server sends no Content-Length" in refused(tmp_path, url)
    assert "has sha256" in refused(tmp_path, url, sha256=hashlib.sha256(BIG).hexdigest())
    assert load(tmp_path, url, sha256=hashlib.sha256(BIG[:900_000]).hexdigest(), max_samples=9)[0].rows == 9


def test_busy_servers_are_waited_for_within_limits(tmp_path, server):
    url = f"{server.url}/data.jsonl"
    server.faults["/data.jsonl"] = [status(429, **{"Retry-After": 1}), status(503)]
    begun = time.monotonic()
    assert len(load(tmp_path, url)[1]) == 60_000
    assert time.monotonic() - begun >= 1
    server.faults["/data.jsonl"] = [status(429)] * 20
    assert "the server returned 429, 4 times in a row" in refused(tmp_path, url)
    server.faults["/data.jsonl"] = [status(401)]
    assert "returned 401: credentials are required" in refused(tmp_path, url)


def test_a_silent_server_is_given_up(tmp_path, server, monkeypatch):
    monkeypatch.setattr(web, "READ_SECONDS", 0.2)
    monkeypatch.setattr(web, "ATTEMPTS", 2)
    server.faults["/data.jsonl"] = [lambda handler: (handler.whole(cut=100), time.sleep(1))] * 3
    assert "connection ended after" in refused(tmp_path, f"{server.url}/data.jsonl")
    server.faults["/data.jsonl"] = [lambda handler: handler.whole(pause=0.05)]  # slow, not silent
    assert len(load(tmp_path, f"{server.url}/data.jsonl")[1]) == 60_000


def test_redirects(tmp_path, server):
    server.faults["/moved"] = [status(302, Location="/data.jsonl.gz")] * 2
    assert len(load(tmp_path, f"{server.url}/moved")[1]) == 60_000
    server.faults["/circle"] = [status(302, Location="/circle")] * 60
    assert "too many redirects" in refused(tmp_path, f"{server.url}/circle")
    server.faults["/away"] = [status(302, Location="file:///etc/passwd")]
    assert "could not be read" in refused(tmp_path, f"{server.url}/away")


def test_parquet_is_read_in_ranges(tmp_path, server):
    buffer = io.BytesIO()
    noise = [hashlib.sha256(str(i).encode()).hexdigest() * 8 for i in range(20_000)]
    pq.write_table(pa.table({"text": noise}), buffer, row_group_size=1000, compression="none")
    server.files["/data.parquet"] = buffer.getvalue()
    _, rows = load(tmp_path, f"{server.url}/data.parquet", max_samples=10)
    assert [row["text"] for row in rows] == noise[:10]
    ranges = [headers["Range"] for _, headers in server.requests if "Range" in headers]
    asked = sum(int(end) - int(start) for start, end in (part.removeprefix("bytes=").split("-") for part in ranges))
    assert asked < len(buffer.getvalue()) / 2
    server.requests.clear()
    server.faults["/data.parquet"] = [lambda handler: handler.whole(), cut(5), status(503), cut(100_000)]
    assert [row["text"] for row in load(tmp_path, f"{server.url}/data.parquet")[1]] == noise


def test_how_the_network_delivers_does_not_show(tmp_path, server):
    once = load(tmp_path, f"{server.url}/data.jsonl")[0].content_hash
    server.faults["/data.jsonl"] = [cut(123_457), cut(1_000), cut(777_777)]
    assert load(tmp_path, f"{server.url}/data.jsonl")[0].content_hash == once
    (tmp_path / "data.jsonl").write_bytes(BIG)
    assert load(tmp_path, str(tmp_path / "data.jsonl"))[0].content_hash == once
