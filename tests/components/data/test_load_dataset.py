import bz2
import gzip
import hashlib
import http.server
import inspect
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kfp import dsl

from llm_finetune.components.data.load_dataset import component, jsonl, step, web
from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError

ROWS = [{"instruction": f"do {i}", "input": "", "output": f"ütf {i}"} for i in range(50)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def load(tmp_path: Path, path: Path | str, **more) -> tuple[step.Facts, list[dict]]:
    kind = "jsonl_url" if "://" in str(path) else "jsonl_path"
    chosen = step.Settings.of({"source_type": kind, kind: str(path), "max_samples": 0, **more})
    facts = step.load_dataset(tmp_path / "raw", tmp_path / "raw.html", chosen)
    return facts, [row for batch in tables.batches(tmp_path / "raw") for row in batch.to_pylist()]


def refused(tmp_path: Path, path: Path | str, **more) -> str:
    shutil.rmtree(tmp_path / "raw", ignore_errors=True)
    with pytest.raises(UserError) as caught:
        load(tmp_path, path, **more)
    assert not (tmp_path / "raw").exists() and not (tmp_path / "raw.partial").exists()
    return str(caught.value)


def file(tmp_path: Path, content: bytes, name: str = "data.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def parquet() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), buffer)
    return buffer.getvalue()


def as_csv() -> bytes:
    lines = ["instruction,input,output", *(f'{row["instruction"]},,"{row["output"]}"' for row in ROWS)]
    return "\n".join(lines).encode()


FILES = {
    "data.jsonl": LINES,
    "data.txt": LINES,
    "bom.jsonl": b"\xef\xbb\xbf" + LINES,
    "windows.jsonl": LINES.replace(b"\n", b"\r\n"),
    "blank.jsonl": b"\n" + LINES.replace(b"\n", b"\n\n").rstrip(b"\n"),
    "data.json": json.dumps(ROWS, indent=2, ensure_ascii=False).encode(),
    "data.jsonl.gz": gzip.compress(LINES[:1000]) + gzip.compress(LINES[1000:]),
    "data.jsonl.zst": zstandard.compress(LINES),
    "unnamed": gzip.compress(json.dumps(ROWS).encode()),
    "data.parquet": parquet(),
    "data.csv": as_csv(),
    "data.csv.gz": gzip.compress(as_csv()),
    "data.tsv": as_csv().replace(b",", b"\t"),
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_rows(tmp_path, name):
    facts, rows = load(tmp_path, file(tmp_path, FILES[name], name))
    assert rows == ROWS
    assert (facts.rows, facts.columns) == (50, ["instruction", "input", "output"])
    assert facts.source.endswith(name)


def test_stops_reading_at_max_samples(tmp_path):
    broken_later = file(tmp_path, LINES * 2000 + b"no json at all")
    facts, rows = load(tmp_path, broken_later, max_samples=7)
    assert rows == ROWS[:7] and facts.rows == 7
    assert "not JSON" in refused(tmp_path, broken_later, max_samples=0)


def test_a_seed_draws_rows_that_are_spread_out_and_the_same_again(tmp_path):
    many = file(tmp_path, b"".join(b'{"number": %d}\n' % i for i in range(20_000)))
    drawn = [row["number"] for row in load(tmp_path, many, max_samples=500, seed=3)[1]]
    assert len(set(drawn)) == 500 and drawn == sorted(drawn)
    assert 9_000 < sum(drawn) / 500 < 11_000
    assert drawn == [row["number"] for row in load(tmp_path, many, max_samples=500, seed=3)[1]]
    assert drawn != [row["number"] for row in load(tmp_path, many, max_samples=500, seed=4)[1]]
    assert drawn[:5] == DRAWN  # on every machine


DRAWN = [2, 42, 46, 119, 137]


def test_types_widen_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "FIRST_BLOCK", 64)
    monkeypatch.setattr(jsonl, "BLOCK", 64)
    rows = [{"a": 1, "b": None, "c": {"x": 1}, "d": []} for _ in range(20)]
    rows += [{"a": 1.5, "b": "text", "c": {"x": 2, "y": "new"}, "d": ["item"]}]
    path = file(tmp_path, "".join(json.dumps(row) + "\n" for row in rows).encode())
    _, loaded = load(tmp_path, path)
    assert loaded[-1] == rows[-1]
    assert loaded[0] == {"a": 1.0, "b": None, "c": {"x": 1, "y": None}, "d": []}


def test_text_that_looks_like_a_date_stays_text(tmp_path):
    rows = [{"day": "2024-01-02"}, {"day": "2024-01-02T10:00:00Z"}, {"day": "tomorrow"}]
    path = file(tmp_path, "".join(json.dumps(row) + "\n" for row in rows[:2]).encode())
    assert load(tmp_path, path)[1] == rows[:2]


BAD = {
    "not JSON": (LINES + b'{"instruction": "a", "input": oops, "output": "b"}\n', ["line ", "not JSON", "oops"]),
    "cut off": (LINES + b'{"instruction": "a", "inp', ["line 51", "not JSON"]),
    "list": (LINES + b"[1, 2]\n", ["line 51", "a list"]),
    "missing column": (LINES + b'{"instruction": "a", "input": "b"}\n', ["line 51", "no column 'output'"]),
    "missing column early": (b'{"a": "x"}\n{"a": "x", "b": "y"}\n', ["line 1", "no column 'b'"]),
    "new column": (
        LINES * 400 + b'{"instruction": "a", "input": "b", "outputs": "c"}\n',
        ["line 20001", "'outputs'", "'output'"],
    ),
    "changed type": (LINES + b'{"instruction": "a", "input": 5, "output": "c"}\n', ["line 51", "'input'", "a number"]),
    "changed type late": (LINES * 400 + b'{"instruction": [], "input": "", "output": ""}\n', ["line 20001", "a list"]),
    "twice": (LINES + b'{"instruction": "a", "instruction": "b", "input": "", "output": "c"}\n', ["line 51", "twice"]),
    "not UTF-8": (
        LINES + b'{"instruction": "caf\xe9", "input": "", "output": ""}\n',
        ["line 51", "0xe9", "UTF-8", "caf"],
    ),
    "surrogate": (LINES + b'{"instruction": "\\ud800", "input": "", "output": ""}\n', ["line 51", "surrogate"]),
    "deep": (LINES + b'{"instruction": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", ["line 51", "deeply"]),
    "empty": (b" \n\n", ["is empty"]),
    "web page": (b"<!DOCTYPE html><html><body>Sign in</body>", ["web page", "/resolve/"]),
    "no columns": (b"{}\n{}\n", ["no columns"]),
    "UTF-16": ("\ufeff{}".encode("utf-16-le"), ["UTF-16"]),
    "bzip2": (bz2.compress(LINES), ["bzip2"]),
    "two in a line": (b'{"a": 1} {"a": 2}\n', ["line 1", "not JSON"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_lines_are_named(tmp_path, name):
    content, parts = BAD[name]
    message = refused(tmp_path, file(tmp_path, content))
    assert "data.jsonl" in message
    for part in parts:
        assert part in message
    assert len(message) < 700


def test_bad_array_names_the_element(tmp_path):
    good = json.dumps(ROWS)
    assert "element 51 is not JSON" in refused(tmp_path, file(tmp_path, (good[:-1] + ", {oops}]" + " " * 99).encode()))
    assert "cut off" in refused(tmp_path, file(tmp_path, good[:-1].encode()))
    assert "more text" in refused(tmp_path, file(tmp_path, (good + "[]").encode()))
    assert "has no rows" in refused(tmp_path, file(tmp_path, b"[]"))
    assert "element 2 has no column 'b'" in refused(tmp_path, file(tmp_path, b'[{"a": 1, "b": 2}, {"a": 1}]'))


def test_other_bad_files(tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("data.jsonl", LINES)
    assert "zip archive" in refused(tmp_path, file(tmp_path, packed.getvalue(), "data.zip"))
    assert "Truncated" in refused(tmp_path, file(tmp_path, gzip.compress(LINES)[:-20], "cut.jsonl.gz"))
    assert "Truncated" in refused(tmp_path, file(tmp_path, zstandard.compress(LINES)[:-20], "cut.jsonl.zst"))
    assert "damaged" in refused(tmp_path, file(tmp_path, parquet()[:-20], "cut.parquet"))
    assert "Expected 3 columns, got 2" in refused(tmp_path, file(tmp_path, as_csv() + b"\na,b", "ragged.csv"))
    assert "there twice" in refused(tmp_path, file(tmp_path, b"a,b,a\n1,2,3\n", "twice.csv"))
    (tmp_path / "here.jsonl").write_bytes(LINES)
    assert "did you mean 'here.jsonl'?" in refused(tmp_path, tmp_path / "heer.jsonl")
    assert "there is no folder" in refused(tmp_path, tmp_path / "none" / "data.jsonl")
    assert "is a folder" in refused(tmp_path, tmp_path)


def test_a_file_of_one_endless_line_is_refused_in_flat_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "LONGEST_LINE", 1 << 20)
    path = file(tmp_path, b'{"a": "')
    with path.open("r+b") as sparse:
        sparse.truncate(50 << 30)
    assert "longer than 1 MiB" in refused(tmp_path, path)


def test_settings_are_checked(tmp_path):
    for wrong, part in [
        ({"source_type": "jsonl"}, "source_type = 'jsonl'"),
        ({"max_samples": -1}, "max_samples = -1"),
        ({"sha256": "abc"}, "64 hexadecimal digits"),
        ({"settings": {"hf_splits": "x"}}, "did you mean 'hf_split'?"),
    ]:
        with pytest.raises(UserError, match=part):
            step.Settings.of(wrong)
    assert "needs jsonl_path" in refused(tmp_path, "")
    with pytest.raises(UserError, match="is no URL"):
        step.load_dataset(
            tmp_path / "raw", tmp_path / "p", step.Settings(source_type="jsonl_url", jsonl_url="/a/b.jsonl")
        )


def test_checksum(tmp_path):
    path = file(tmp_path, LINES)
    right = hashlib.sha256(LINES).hexdigest()
    assert load(tmp_path, path, sha256=right)[0].revision == f"sha256:{right}"
    message = refused(tmp_path, path, sha256="0" * 64)
    assert right in message and "0" * 64 in message


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
    monkeypatch.setattr(web, "BACKOFF", 0.001)
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
    assert "web page" in refused(tmp_path, f"{server.url}/page")
    message = refused(tmp_path, f"{server.url}/cut.jsonl?token=secret")
    assert "the connection ended after" in message and f" of {len(LINES) + 1000:,} bytes" in message
    assert "secret" not in message
    assert "the connection ended" in refused(tmp_path, f"{server.url}/cut.parquet")
    assert "answered 403" in refused(tmp_path, f"{server.url}/private")
    assert "answered 500" in refused(tmp_path, f"{server.url}/broken")
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
    assert "ftpx:// is not a place" in refused(tmp_path, "ftpx://host/data.jsonl")


HUB_CASES = [
    {"hf_dataset": "org/alpaca"},
    {"hf_dataset": "org/alpaca", "hf_revision": "v1", "max_samples": 3, "hf_split": "test"},
    {"hf_dataset": "org/lines", "max_samples": 1500},
    {"source_type": "jsonl_path", "jsonl_path": "hf://datasets/org/lines/train.jsonl", "max_samples": 0},
    {"hf_dataset": "org/alpaca", "hf_split": "dev"},
    {"hf_dataset": "org/alpaca", "hf_config": "large"},
    {"hf_dataset": "org/none"},
    {"hf_dataset": "org/gated"},
    {"hf_dataset": "org/alpaca", "hf_revision": "v9"},
    {"hf_dataset": "a b"},
]
HUB_SCRIPT = """
import json, sys
from llm_finetune.components.data.load_dataset import step
from llm_finetune.components.shared.errors import UserError
for i, case in enumerate(json.loads(sys.argv[1])):
    try:
        facts = step.load_dataset(f"{sys.argv[2]}/{i}", f"{sys.argv[2]}/{i}.html", step.Settings.of(case))
        print(json.dumps(facts.metadata()))
    except UserError as error:
        print(json.dumps(str(error)))
print(json.dumps([name for name in ("torch", "transformers") if name in sys.modules]))
"""


def on_hub(hub, folder: Path, cases: list[dict], token: str = "") -> list:
    folder.mkdir()
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "HF_TOKEN": token}
    command = [sys.executable, "-c", HUB_SCRIPT, json.dumps(cases), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_hub(tmp_path):
    sys.path.insert(0, str(Path(__file__).parent))
    from fake_datasets_hub import TOKEN, FakeHub

    hub = FakeHub()
    test_split = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS[:5]), test_split)
    files = {"data/train-0.parquet": parquet(), "data/test-0.parquet": test_split.getvalue(), "README.md": b"# hi"}
    first = hub.add("org/alpaca", files, branch="v1")
    second = hub.add("org/alpaca", {**files, "README.md": b"# changed"})
    lines = hub.add("org/lines", {"train.jsonl": LINES * 60})
    gated = hub.add("org/gated", {"train.jsonl": LINES}, gated=True)
    with hub.serving():
        *answers, heavy = on_hub(hub, tmp_path / "a", HUB_CASES)
        assert heavy == []
        whole, pinned, part, by_path, split, config, none, refusal, revision, name = answers
        assert (whole["rows"], whole["revision"], whole["source"]) == (50, second, "org/alpaca train")
        assert (pinned["rows"], pinned["revision"]) == (3, first)
        assert (part["rows"], part["revision"]) == (1500, lines)
        assert by_path["rows"] == 3000
        assert [row for batch in tables.batches(tmp_path / "a" / "0") for row in batch.to_pylist()] == ROWS
        assert "Available splits: ['train', 'test']" in split
        assert "'large' not found" in config
        assert "there is no dataset 'org/none'" in none
        assert "org/gated is gated" in refusal and "HF_TOKEN" in refusal
        assert "no revision 'v9'" in revision
        assert "'a b'" in name
        assert TOKEN not in hub.tokens_seen
        assert on_hub(hub, tmp_path / "b", [{"hf_dataset": "org/gated"}], TOKEN)[0]["revision"] == gated
        assert "is gated" in on_hub(hub, tmp_path / "c", [{"hf_dataset": "org/gated"}], "hf_other")[0]
    assert "could not be" in on_hub(hub, tmp_path / "d", [{"hf_dataset": "org/alpaca"}])[0]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.dictionaries(st.sampled_from(["a", "b", "ü"]), json_values), min_size=1, max_size=6))
def test_any_rows_load_or_are_refused_by_name(tmp_path, rows):
    path = file(tmp_path, "".join(json.dumps(row) + "\n" for row in rows).encode())
    try:
        _, loaded = load(tmp_path, path)
    except UserError as error:
        assert "data.jsonl" in str(error)
        return
    assert all(row.keys() == rows[0].keys() for row in rows)
    for row, got in zip(rows, loaded, strict=True):
        for key, value in row.items():
            if isinstance(value, str | bool | int | None):
                assert got[key] == value


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300) | st.builds(lambda a, b: a + b, st.just(LINES), st.binary(max_size=40)))
def test_any_bytes_end_in_rows_or_one_message(tmp_path, content):
    try:
        facts, rows = load(tmp_path, file(tmp_path, content))
        assert facts.rows == len(rows) > 0
    except UserError as error:
        assert "data.jsonl" in str(error)


def test_preview_escapes_and_cuts(tmp_path):
    rows = [{"a": "<script>alert(1)</script>", "b": "x" * 300}] * 30
    path = file(tmp_path, "".join(json.dumps(row) + "\n" for row in rows).encode())
    load(tmp_path, path)
    page = (tmp_path / "raw.html").read_text()
    assert "<script>" not in page and page.count("&lt;script&gt;") == 20
    assert "x" * 199 + "…" in page and "x" * 201 not in page


def test_card(tmp_path, capsys):
    raw, preview = dsl.Dataset(uri=str(tmp_path / "raw")), dsl.HTML(uri=str(tmp_path / "raw.html"))
    path = file(tmp_path, LINES)
    run = component.load_dataset.python_func
    run(raw, preview, source_type="jsonl_path", jsonl_path=str(path), settings={"max_samples": 4.0, "seed": 1})
    assert raw.metadata["rows"] == 4 and raw.metadata["seed"] == 1
    assert raw.metadata["content_hash"].startswith("sha256:") and raw.metadata["inputs"] == {}
    json.dumps(raw.metadata, allow_nan=False)
    with pytest.raises(SystemExit):
        run(raw, preview, source_type="jsonl_path", jsonl_path=str(tmp_path / "none.jsonl"))
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("name", ["load_dataset", "filter_clean", "train_val_split", "format_sft"])
def test_defaults_of_the_card_are_those_of_its_settings(name):
    import importlib

    package = f"llm_finetune.components.data.{name}"
    face = getattr(importlib.import_module(f"{package}.component"), name).python_func
    defaults = {key: p.default for key, p in inspect.signature(face).parameters.items() if p.default is not p.empty}
    assert defaults.pop("settings") == {} and defaults.pop("package_version") == ""
    fields = importlib.import_module(f"{package}.step").Settings.model_fields
    assert defaults == {key: field.default for key, field in fields.items()}


def test_no_step_imports_torch():
    names = ("load_dataset", "filter_clean", "train_val_split", "format_sft")
    imports = "; ".join(f"import llm_finetune.components.data.{name}.step" for name in names)
    heavy = ("torch", "transformers", "datasets", "pandas", "kfp")
    script = f"import sys; {imports}; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "[]"
