"""Load Dataset: numbers reach the model as they are written, whatever other rows hold, and types widen in one pass."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from load_dataset_file import file, load, refused

from llm_finetune.components.data.sources import column_types, formats, jsonl
from llm_finetune.components.shared.rows.columns import as_text

BIG = 2**53 + 1
HUGE = 12345678901234567890


@pytest.fixture(params=["one block", "many blocks"])
def blocks(request, monkeypatch):
    if request.param == "many blocks":
        monkeypatch.setattr(jsonl, "FIRST_BLOCK_BYTES", 32)
        monkeypatch.setattr(jsonl, "BLOCK_BYTES", 32)


def outputs(tmp_path, *values, **more) -> list:
    path = file(tmp_path, "".join(f'{{"output": {value}, "n": 1.5}}\n' for value in values).encode())
    _, rows = load(tmp_path, path, **more)
    assert all(row["n"] == 1.5 for row in rows)
    return [row["output"] for row in rows]


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ([42, *[7] * 9, 3.5], ["42", *["7"] * 9, "3.5"]),
        ([3.5, *[2.5] * 9, 42, "null"], ["3.5", *["2.5"] * 9, "42", None]),
        ([BIG, *[7] * 9, 3.5], [str(BIG), *["7"] * 9, "3.5"]),
        ([*[7] * 9, HUGE], [*["7"] * 9, str(HUGE)]),
        ([HUGE, -1, "1e3", "NaN"], [str(HUGE), "-1", "1000.0", None]),
        ([1, "null", -(2**63), 2**63 - 1], [1, None, -(2**63), 2**63 - 1]),
        ([1.0, *["2.0"] * 9, 3.5], [1.0, *[2.0] * 9, 3.5]),
        (["[1]", "[]", "[2.5, 1.0]"], ["[1]", "[]", "[2.5, 1.0]"]),
        (['{"x": {"y": 1}}', *['{"x": {"z": "é"}}'] * 3, '{"x": {"y": 1.5}}'],
         ['{"x": {"y": 1}}', *['{"x": {"z": "é"}}'] * 3, '{"x": {"y": 1.5}}']),
    ],
)  # fmt: skip
def test_numbers_are_kept_as_they_are_written(tmp_path, blocks, written, kept):
    assert outputs(tmp_path, *written) == kept


def test_a_fraction_reads_the_same_with_and_without_whole_numbers_beside_it(tmp_path):
    fractions = ["1.50", "1e3", "0.1", "-2.0", "1e-7"]
    alone = as_text(pa.array(outputs(tmp_path, *fractions))).to_pylist()
    assert outputs(tmp_path, *fractions, 42) == [*alone, "42"]


def test_a_column_of_numbers_as_text_takes_no_other_kind(tmp_path, blocks):
    for values, message in [
        ([1, 2.5, *[3] * 9, '"x"'], "line 12: column 'output' is text here, but a number in earlier rows"),
        (
            ["[1]", "[2.5]", *["[3]"] * 9, '{"a": 1}'],
            "line 12: column 'output' is an object here, but a list in earlier rows",
        ),
        ([2.5, "1" * 5000], "line 2 contains a number with more than 4,300 digits"),
    ]:
        content = "".join(f'{{"output": {value}}}\n' for value in values).encode()
        assert message in refused(tmp_path, file(tmp_path, content))


def test_numbers_of_several_files_meet_as_text(tmp_path):
    pq.write_table(pa.table({"a": pa.array([7], pa.int32()), "b": [{"x": 1}]}), tmp_path / "1.parquet")
    (tmp_path / "2.jsonl").write_text('{"a": 2.5, "b": {"x": 0.5}}\n')
    rows = load(tmp_path, f"{tmp_path}/[12].*")[1]
    assert rows == [{"a": "7", "b": '{"x": 1}'}, {"a": "2.5", "b": '{"x": 0.5}'}]
    (tmp_path / "3.jsonl").write_text('{"a": "text", "b": {"x": 1}}\n')
    message = refused(tmp_path, f"{tmp_path}/[123].*")
    assert "3.jsonl" in message and "a number" in message


def test_numbers_of_a_mixture_meet_as_text(tmp_path):
    (tmp_path / "both.jsonl").write_text('{"a": 1}\n{"a": 2.5}\n')
    (tmp_path / "whole.jsonl").write_text('{"a": 3}\n{"a": 4}\n')
    members = [{"name": name, "path": f"{tmp_path}/{name}.jsonl"} for name in ("both", "whole")]
    rows = load(tmp_path, "", mixture=members)[1]
    assert [row["a"] for row in rows] == ["1", "2.5", "3", "4"]


def test_a_source_is_read_twice_at_most_however_often_its_types_widen(tmp_path, monkeypatch, blocks):
    opened = []
    rows = formats.read_rows
    monkeypatch.setattr(formats, "read_rows", lambda *a: opened.append(a) or rows(*a))
    content = "".join(json.dumps({"meta": {f"key {i}": i}}) + "\n" for i in range(40)).encode()
    loaded = load(tmp_path, file(tmp_path, content))[1]
    assert loaded[39]["meta"] == {f"key {i}": 39 if i == 39 else None for i in range(40)}
    assert len(opened) <= 2
    opened.clear()
    broken_later = content[: content.index(b"\n", 900) + 1] + b"no JSON"
    assert len(load(tmp_path, file(tmp_path, broken_later), max_samples=5)[1]) == 5
    assert len(opened) <= 2


def test_objects_of_ever_new_keys_become_text(tmp_path, monkeypatch, blocks):
    monkeypatch.setattr(column_types, "MAX_STRUCT_FIELDS", 20)
    monkeypatch.setattr(jsonl, "INFERENCE_BYTES", 256)
    values = [{"same": "x", f"id {i}": {"n": i}} for i in range(60)]
    content = "".join(json.dumps({"a": value, "b": [value]}) + "\n" for value in values).encode()
    loaded = load(tmp_path, file(tmp_path, content))[1]
    assert [(json.loads(row["a"]), json.loads(row["b"])) for row in loaded] == [(value, [value]) for value in values]
