"""Sources beyond one file: several files, patterns, mixtures, object stores, and web servers that misbehave."""

import base64
import gzip
import hashlib
import http.server
import io
import json
import re
import shutil
import threading
import time
from collections import Counter
from pathlib import Path

import object_stores
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from llm_finetune.components.data.load_dataset import locations, mixture, step, web
from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError


def lines(start: int, count: int, **more) -> bytes:
    return "".join(json.dumps({"text": f"row {start + i}", **more}) + "\n" for i in range(count)).encode()


def load(tmp_path: Path, path: str, **more) -> tuple[step.Facts, list[dict]]:
    chosen = step.Settings.of({"source_type": "jsonl_path", "jsonl_path": path, "max_samples": 0, **more})
    shutil.rmtree(tmp_path / "raw", ignore_errors=True)
    facts = step.load_dataset(tmp_path / "raw", tmp_path / "raw.html", chosen)
    return facts, [row for batch in tables.batches(tmp_path / "raw") for row in batch.to_pylist()]


def refused(tmp_path: Path, path: str, **more) -> str:
    (tmp_path / "raw.html").unlink(missing_ok=True)
    with pytest.raises(UserError) as caught:
        load(tmp_path, path, **more)
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(("raw", "tmp"))]
    return str(caught.value)


# Several files


@pytest.fixture
def folder(tmp_path):
    data = tmp_path / "data"
    (data / "deep").mkdir(parents=True)
    (data / "b.jsonl").write_bytes(lines(3, 3))
    (data / "a.jsonl.gz").write_bytes(gzip.compress(lines(0, 3)))
    (data / "deep" / "c.jsonl.zst").write_bytes(zstandard.compress(lines(6, 2)))
    (data / "_SUCCESS").write_bytes(b"")
    (data / ".hidden.jsonl").write_bytes(b"oops")
    return data


def test_files_and_patterns_come_in_order(tmp_path, folder):
    def numbers(path: str) -> list[int]:
        return [int(row["text"].split()[1]) for row in load(tmp_path, path)[1]]

    assert numbers(f"{folder}/*") == list(range(6))
    assert numbers(f"{folder}/**") == list(range(8))
    assert numbers(f"{folder}/b.jsonl, {folder}/a.jsonl.gz") == [3, 4, 5, 0, 1, 2]
    assert numbers(f"{folder}/[ab].jsonl*\nfile://{folder}/deep/c.jsonl.zst") == list(range(8))
    odd = folder / "x, [1]*.jsonl"
    odd.write_bytes(lines(9, 1))
    assert numbers(str(odd)) == [9]
    facts, _ = load(tmp_path, f"{folder}/[ab]*")
    assert facts.source == f"{folder}/a.jsonl.gz and 1 more" and facts.revision == ""
    page = (tmp_path / "raw.html").read_text()
    assert re.search(r"b\.jsonl</td>\s*<td[^>]*>3<", page)


def test_what_files_together_do_wrong(tmp_path, folder):
    assert "did you mean 'b.jsonl'" in refused(tmp_path, f"{folder}/bb.json*")
    assert "matches no file: there is no folder" in refused(tmp_path, f"{folder}/none/*.jsonl")
    assert "named twice" in refused(tmp_path, f"{folder}/*, {folder}/b.jsonl")
    assert "needs jsonl_path" in refused(tmp_path, " , ")
    (folder / "z.jsonl").write_bytes(lines(0, 1, more=1))
    message = refused(tmp_path, f"{folder}/*")
    assert f"{folder}/z.jsonl, line 1 has a column 'more'" in message and "(columns: text)" in message
    (folder / "z.jsonl").write_bytes(b'{"text": 5}\n')
    assert "z.jsonl, line 1: 'text' is a number here and text before" in refused(tmp_path, f"{folder}/*")
    (folder / "z.jsonl").write_bytes(b'{"text": "a"}\n{"text": \n')
    assert f"{folder}/z.jsonl, line 2 is not JSON" in refused(tmp_path, f"{folder}/*")


def test_types_widen_and_formats_mix_across_files(tmp_path):
    (tmp_path / "1.jsonl").write_text('{"a": 1, "b": null, "c": "x"}\n')
    (tmp_path / "2.jsonl").write_text('{"c": "y", "a": 1.5, "b": ["z"]}\n')
    table = pa.table({"a": pa.array([7], pa.int32()), "b": [["w"]], "c": pa.array(["v"], pa.large_string())})
    pq.write_table(table, tmp_path / "3.parquet")
    _, rows = load(tmp_path, f"{tmp_path}/[123].*")
    assert rows == [
        {"a": 1.0, "b": None, "c": "x"},
        {"a": 1.5, "b": ["z"], "c": "y"},
        {"a": 7.0, "b": ["w"], "c": "v"},
    ]


def test_a_checksum_for_each_file(tmp_path, folder):
    sums = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("a.jsonl.gz", "b.jsonl")]
    facts, rows = load(tmp_path, f"{folder}/[ab]*", sha256=", ".join(sums))
    assert len(rows) == 6 and facts.revision.startswith("sha256:")
    assert f"{folder}/a.jsonl.gz has sha256 {sums[0]}" in refused(
        tmp_path, f"{folder}/[ab]*", sha256=",".join(sums[::-1])
    )
    assert "1 checksums for 2 files" in refused(tmp_path, f"{folder}/[ab]*", sha256=sums[0])


# Mixtures


def mixed(tmp_path: Path, members: list[dict], **more) -> tuple[step.Facts, list[dict]]:
    return load(tmp_path, "", mixture=members, **more)


@pytest.fixture
def two(tmp_path):
    (tmp_path / "many.jsonl").write_bytes(lines(0, 1000))
    (tmp_path / "few.jsonl").write_text("".join(json.dumps({"q": f"few {i}", "id": i}) + "\n" for i in range(100)))
    return [
        {"name": "many", "path": f"{tmp_path}/many.jsonl", "weight": 3},
        {"name": "few", "path": f"{tmp_path}/few.jsonl", "weight": 1.0, "columns": {"text": "q"}},
    ]


def test_weights_are_shares(tmp_path, two):
    facts, rows = mixed(tmp_path, two)
    assert Counter(row["source"] for row in rows) == {"many": 300, "few": 100}
    assert rows[0] == {"text": "row 0", "source": "many"} and rows[-1] == {"text": "few 99", "source": "few"}
    assert [(s["name"], s["rows_read"], s["rows"]) for s in facts.sources] == [("many", 1000, 300), ("few", 100, 100)]
    assert facts.source == "many + few" and facts.rows == 400
    page = (tmp_path / "raw.html").read_text()
    assert "75.00 %" in page and "by weight, the first rows" in page
    facts, rows = mixed(tmp_path, two, max_samples=40, source_column="from")
    assert Counter(row["from"] for row in rows) == {"many": 30, "few": 10}
    assert facts.sources[0]["rows_read"] == 30  # no more was read than needed
    assert set(mixed(tmp_path, two, source_column="")[1][0]) == {"text"}


def test_a_seeded_mixture_is_the_same_again(tmp_path, two):
    first = mixed(tmp_path, two, max_samples=40, seed=3)
    assert mixed(tmp_path, two, max_samples=40, seed=3) == first
    texts = {row["text"] for row in first[1]}
    assert len(texts) == 40 and any(f"row {i}" in texts for i in range(30, 1000))
    assert {row["text"] for row in mixed(tmp_path, two, max_samples=40, seed=4)[1]} != texts


def test_what_mixtures_do_wrong(tmp_path, two):
    def wrong(change: dict, **more) -> str:
        return refused(tmp_path, "", mixture=[two[0], {**two[1], **change}], **more)

    assert "mixture.1.weight" in wrong({"weight": 0})
    assert "did you mean 'weight'" in wrong({"weigth": 1})
    assert "either hf_dataset or path" in wrong({"hf_dataset": "org/data"})
    assert "give each a name" in wrong({"name": "many"})
    assert "mixture.1.columns.text = 'qq': no row of 'few' has it; did you mean 'q'" in wrong(
        {"columns": {"text": "qq"}}
    )
    assert "has a column 'q'" in wrong({"columns": {}}) and "can be chosen and renamed with `columns`" in wrong(
        {"columns": {}}
    )
    assert "column 'text' of 'few' is int64, and string" in wrong({"columns": {"text": "id"}})
    assert "put jsonl_path into one of them" in refused(tmp_path, "x.jsonl", mixture=two)
    assert "a column 'text': name another one" in wrong({}, source_column="text")
    assert "no row of 'few' fits into the mixture" in wrong({"weight": 0.001})
    assert "none.jsonl does not exist" in wrong({"path": f"{tmp_path}/none.jsonl"})


@given(
    parts=st.lists(st.tuples(st.integers(1, 10_000), st.floats(0.01, 100)), min_size=1, max_size=6),
    most=st.integers(0, 20_000),
)
def test_counts_are_the_largest_that_the_shares_allow(parts, most):
    available, weights = [rows for rows, _ in parts], [weight for _, weight in parts]
    taken = mixture.counts(available, weights, most)
    total = sum(taken)
    assert all(0 <= count <= rows for count, rows in zip(taken, available, strict=True))
    assert not most or total <= most
    for count, weight in zip(taken, weights, strict=True):
        assert abs(count - total * weight / sum(weights)) <= 2
    most_possible = min(rows * sum(weights) / weight for rows, weight in parts)
    assert total >= min(most_possible, most or most_possible) - len(parts) - 1


# Object stores


@pytest.fixture(scope="module", params=[object_stores.s3_store, object_stores.gcs_store], ids=["s3", "gs"])
def store(request, tmp_path_factory):
    with request.param(tmp_path_factory.mktemp("store")) as running:
        yield running


def test_object_stores(tmp_path, store):
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": [f"row {i}" for i in range(9, 12)]}), buffer)
    store.put("in/b.jsonl.gz", gzip.compress(lines(5, 4)))
    store.put("in/a.jsonl", lines(0, 5))
    store.put("in/c.parquet", buffer.getvalue())
    store.put("in/_SUCCESS", b"")
    facts, rows = load(tmp_path, store.url("in/*"))
    assert [row["text"] for row in rows] == [f"row {i}" for i in range(12)]
    assert facts.source == f"{store.url('in/a.jsonl')} and 2 more" and facts.revision.startswith("sha256:")
    assert len(load(tmp_path, store.url("in/a.jsonl") + "," + store.url("in/c.parquet"), max_samples=6)[1]) == 6
    checksum = hashlib.sha256(lines(0, 5)).hexdigest()
    assert load(tmp_path, store.url("in/a.jsonl"), sha256=checksum)[0].revision == f"sha256:{checksum}"
    assert "has sha256" in refused(tmp_path, store.url("in/a.jsonl"), sha256="0" * 64)
    assert "matches no file" in refused(tmp_path, store.url("out/*.jsonl"))
    assert "does not exist" in refused(tmp_path, store.url("in/none.jsonl"))
    assert "does not exist" in refused(tmp_path, f"{store.scheme}://nobucket/a.jsonl")


def test_wrong_credentials(tmp_path, store):
    if store.scheme != "s3":
        pytest.skip("fake-gcs-server knows no credentials")
    store.put("private.jsonl", lines(0, 1))
    with object_stores.set_environment({"AWS_SECRET_ACCESS_KEY": "wrong"}):
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        message = refused(tmp_path, store.url("private.jsonl"))
    s3fs.S3FileSystem.clear_instance_cache()
    assert "Check the path and the credentials" in message or "could not be read" in message
    assert "wrong" not in message


# Web servers that misbehave

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
    monkeypatch.setattr(web, "BACKOFF", 0.001)
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
    assert "came damaged: its md5 is" in refused(tmp_path, url)
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
    assert "does not say how long the file is" in refused(tmp_path, url)
    assert "has sha256" in refused(tmp_path, url, sha256=hashlib.sha256(BIG).hexdigest())
    assert load(tmp_path, url, sha256=hashlib.sha256(BIG[:900_000]).hexdigest(), max_samples=9)[0].rows == 9


def test_busy_servers_are_waited_for_within_limits(tmp_path, server):
    url = f"{server.url}/data.jsonl"
    server.faults["/data.jsonl"] = [status(429, **{"Retry-After": 1}), status(503)]
    begun = time.monotonic()
    assert len(load(tmp_path, url)[1]) == 60_000
    assert time.monotonic() - begun >= 1
    server.faults["/data.jsonl"] = [status(429)] * 20
    assert "the server answered 429, 4 times in a row" in refused(tmp_path, url)
    server.faults["/data.jsonl"] = [status(401)]
    assert "answered 401: it wants credentials" in refused(tmp_path, url)


def test_a_silent_server_is_given_up(tmp_path, server, monkeypatch):
    monkeypatch.setattr(web, "SILENCE_SECONDS", 0.2)
    monkeypatch.setattr(web, "ATTEMPTS", 2)
    server.faults["/data.jsonl"] = [lambda handler: (handler.whole(cut=100), time.sleep(1))] * 3
    assert "connection ended after" in refused(tmp_path, f"{server.url}/data.jsonl")
    server.faults["/data.jsonl"] = [lambda handler: handler.whole(pause=0.05)]  # slow, not silent
    assert len(load(tmp_path, f"{server.url}/data.jsonl")[1]) == 60_000


def test_redirects(tmp_path, server):
    server.faults["/moved"] = [status(302, Location="/data.jsonl.gz")] * 2
    assert len(load(tmp_path, f"{server.url}/moved")[1]) == 60_000
    server.faults["/circle"] = [status(302, Location="/circle")] * 60
    assert "redirects in a circle" in refused(tmp_path, f"{server.url}/circle")
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


def test_locations_of_any_text_are_files_or_refused():
    for text in ("https://host/a*b?c=[1]", "hf://datasets/org/name/x.jsonl", "a,b", "/a\n/b"):
        assert all(source.location for source in locations.files(text))
