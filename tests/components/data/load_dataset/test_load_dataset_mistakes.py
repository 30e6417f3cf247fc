"""Load Dataset: files that it can't read, and the place that its message names."""

import bz2
import gzip
import io
import json
import zipfile

import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from load_dataset_file import LINES, ROWS, as_csv, file, load, parquet, refused

from llm_finetune.components.data.sources import jsonl
from llm_finetune.components.shared.errors import UserError

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
    "web page": (b"<!DOCTYPE html><html><body>Sign in</body>", ["HTML page", "/resolve/"]),
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
    assert "ends after element" in refused(tmp_path, file(tmp_path, good[:-1].encode()))
    assert "text after the end of the array" in refused(tmp_path, file(tmp_path, (good + "[]").encode()))
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
    assert "occurs twice" in refused(tmp_path, file(tmp_path, b"a,b,a\n1,2,3\n", "twice.csv"))
    (tmp_path / "here.jsonl").write_bytes(LINES)
    assert "did you mean 'here.jsonl'?" in refused(tmp_path, tmp_path / "heer.jsonl")
    assert "does not exist: folder" in refused(tmp_path, tmp_path / "none" / "data.jsonl")
    assert "is a folder" in refused(tmp_path, tmp_path)


def test_a_file_of_one_endless_line_is_refused_in_flat_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 1 << 20)
    path = file(tmp_path, b'{"a": "')
    with path.open("r+b") as sparse:
        sparse.truncate(50 << 30)
    assert "longer than 1 MiB" in refused(tmp_path, path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.dictionaries(st.sampled_from(["a", "b", "ü"]), json_values), min_size=1, max_size=6))
@example(rows=[{"a": [None, {}]}])
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
