"""Load Dataset: a file in every format, how many of its rows are read, and their types."""

import hashlib
import inspect
import json
import subprocess
import sys

import pytest
from kfp import dsl
from load_dataset_file import FILES, LINES, ROWS, file, load, refused

from llm_finetune.components.data.load_dataset import component, step
from llm_finetune.components.data.sources import jsonl
from llm_finetune.components.shared.errors import UserError


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
    monkeypatch.setattr(jsonl, "FIRST_BLOCK_BYTES", 64)
    monkeypatch.setattr(jsonl, "BLOCK_BYTES", 64)
    rows = [{"a": 1, "b": None, "c": {"x": 1}, "d": []} for _ in range(20)]
    rows += [{"a": 1.5, "b": "text", "c": {"x": 2, "y": "new"}, "d": ["item"]}]
    path = file(tmp_path, "".join(json.dumps(row) + "\n" for row in rows).encode())
    _, loaded = load(tmp_path, path)
    assert loaded[-1] == rows[-1] | {"a": "1.5"}
    assert loaded[0] == {"a": "1", "b": None, "c": {"x": 1, "y": None}, "d": []}


def test_text_that_looks_like_a_date_stays_text(tmp_path):
    rows = [{"day": "2024-01-02"}, {"day": "2024-01-02T10:00:00Z"}, {"day": "tomorrow"}]
    path = file(tmp_path, "".join(json.dumps(row) + "\n" for row in rows[:2]).encode())
    assert load(tmp_path, path)[1] == rows[:2]


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
    with pytest.raises(UserError, match="is not a URL"):
        step.load_dataset(
            tmp_path / "raw", tmp_path / "p", step.Settings(source_type="jsonl_url", jsonl_url="/a/b.jsonl")
        )


def test_checksum(tmp_path):
    path = file(tmp_path, LINES)
    right = hashlib.sha256(LINES).hexdigest()
    assert load(tmp_path, path, sha256=right)[0].revision == f"sha256:{right}"
    message = refused(tmp_path, path, sha256="0" * 64)
    assert right in message and "0" * 64 in message


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
    assert defaults.pop("partition", {}) == {}
    fields = importlib.import_module(f"{package}.step").Settings.model_fields
    assert defaults == {key: field.default for key, field in fields.items()}


def test_no_step_imports_torch():
    names = ("load_dataset", "filter_clean", "train_val_split", "format_sft")
    imports = "; ".join(f"import llm_finetune.components.data.{name}.step" for name in names)
    heavy = ("torch", "transformers", "datasets", "pandas", "kfp")
    script = f"import sys; {imports}; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize("in_blocks", [False, True])
@pytest.mark.parametrize(
    "values",
    [
        [[None, None]],
        [[None, None], None, [], [None, None, None]],
        [[[None, None], []], [], [[None]], None],
        [{"b": [None, None]}, {"b": None}, None, {"b": [None]}],
        [[{"b": [None, None]}, None], []],
        [[None, None], [None], ["x", None]],
        [["x"], *[[None, None]] * 9],
    ],
)
def test_lists_of_nothing_but_null_are_kept(tmp_path, monkeypatch, values, in_blocks):
    if in_blocks:
        monkeypatch.setattr(jsonl, "FIRST_BLOCK_BYTES", 16)
        monkeypatch.setattr(jsonl, "BLOCK_BYTES", 16)
    lines = "".join(json.dumps({"a": value}) + "\n" for value in values)
    _, rows = load(tmp_path, file(tmp_path, lines.encode()))
    assert rows == [{"a": value} for value in values]
    assert load(tmp_path, file(tmp_path, json.dumps(rows).encode(), "data.json"))[1] == rows
