import json
import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kfp import dsl

from llm_finetune.components.data.train_val_split import component, groups, shuffle, step
from llm_finetune.components.data.train_val_split.assign import validation_rows
from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError

DEMO = Path(__file__).parents[4] / "pipelines" / "demo" / "addresses.jsonl"


def row(number: int, **more) -> dict:
    words = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel"]
    text = " ".join(random.Random(number).choices(words, k=20))
    return {"instruction": "Do it", "input": f"{number} {text}", "output": str(number), **more}


def write(path: Path, rows: list[dict]) -> Path:
    table = pa.Table.from_pylist(rows)
    with tables.ShardWriter(path, table.schema) as writer:
        writer.write(table)
    return path


def split(tmp_path: Path, rows: list[dict], **chosen) -> tuple[step.Facts, list[dict], list[dict]]:
    outputs = (tmp_path / "train", tmp_path / "val")
    dataset = write(tmp_path / "rows", rows)
    facts = step.train_val_split(dataset, *outputs, tmp_path / "page.html", step.Settings.of(chosen))
    train, val = ([row for batch in tables.batches(folder) for row in batch.to_pylist()] for folder in outputs)
    assert (facts.train_rows, facts.val_rows) == (len(train), len(val))
    assert sorted(map(json.dumps, train + val)) == sorted(map(json.dumps, rows))
    return facts, train, val


def refused(tmp_path: Path, rows: list[dict], **chosen) -> str:
    shutil.rmtree(tmp_path / "train", ignore_errors=True)
    with pytest.raises(UserError) as caught:
        split(tmp_path, rows, **chosen)
    assert not (tmp_path / "train").exists()
    return str(caught.value)


def test_the_share_is_exact_and_the_order_shuffled(tmp_path):
    rows = [row(i) for i in range(200)]
    facts, train, _ = split(tmp_path, rows)
    assert (facts.train_rows, facts.val_rows, facts.kept_together) == (180, 20, 0)
    numbers = [int(r["output"]) for r in train]
    assert numbers != sorted(numbers)
    assert abs(np.corrcoef(numbers, range(180))[0, 1]) < 0.25


def test_the_demo_gives_93_rows(tmp_path):
    rows = [json.loads(line) for line in DEMO.read_text(encoding="utf-8").splitlines()]
    facts, _, val = split(tmp_path, rows)
    assert (len(rows), facts.val_rows) == (931, 93)
    assert (facts.leakage.same_row, facts.leakage.near_duplicate) == (0, 0)
    assert val[0]["input"] == FIRST_OF_DEMO  # the same on every machine


FIRST_OF_DEMO = "350 W. 22nd St., Lombard, IL 60148"


def test_the_split_does_not_depend_on_the_order_of_rows(tmp_path):
    rows = [row(i) for i in range(60)]
    first = split(tmp_path, rows)
    assert split(tmp_path, rows)[0] == first[0]
    random.Random(1).shuffle(rows)
    assert split(tmp_path, rows)[1:] == first[1:]
    assert split(tmp_path, rows, shuffle_seed=7)[2] != first[2]


def test_duplicates_and_near_duplicates_stay_together(tmp_path):
    rows = []
    for i in range(60):
        base = row(i)
        rows += [base, {**base, "input": base["input"].upper() + "  "}, {**base, "input": base["input"] + " x"}]
    facts, train, val = split(tmp_path, rows, val_ratio=0.2)
    assert not {r["output"] for r in train} & {r["output"] for r in val}
    assert (facts.groups, facts.kept_together, facts.val_rows) == (60, 180, 36)
    assert facts.leakage == step.Leakage(0, 0, 0, 0, 0)
    facts, train, val = split(tmp_path, rows, val_ratio=0.2, near_threshold=0)
    assert {r["output"] for r in train} & {r["output"] for r in val}
    assert facts.leakage.same_row == 0 and facts.leakage.near_duplicate == -1
    assert "Near-duplicates were not searched." in (tmp_path / "page.html").read_text()


def test_leakage_that_is_left_is_measured():
    content = np.arange(8, dtype=np.uint64).reshape(4, 2)
    prompt = np.array([[1, 1], [1, 1], [2, 2], [3, 3]], np.uint64)
    pairs = np.array([[0, 1], [2, 0], [1, 0]])
    rows = groups.RowKeys(
        content, prompt, np.array([5, 6, 5, 7], np.uint64), np.array([True] * 4), pairs, pairs[:0], True
    )
    is_val = np.array([True, False, False, False])
    assert step.leakage(rows, is_val) == step.Leakage(0, 1, 0, 1, 1)
    content[1] = content[0]
    assert step.leakage(rows, is_val) == step.Leakage(1, 1, 0, 0, 1)


def test_groups_stay_together(tmp_path):
    rows = [row(i, user=f"u{i % 12}" if i % 5 else None) for i in range(240)]
    facts, train, val = split(tmp_path, rows, group_key="user")
    assert not {r["user"] for r in train if r["user"]} & {r["user"] for r in val}
    assert facts.val_rows == 24 and facts.leakage.same_group == 0
    assert "did you mean 'user'?" in refused(tmp_path, rows, group_key="users")


def test_large_groups_come_as_near_as_they_can(tmp_path):
    rows = [row(i, book=book) for i, book in enumerate("a" * 40 + "b" * 31 + "c" * 17 + "d" * 12)]
    facts, _, val = split(tmp_path, rows, group_key="book", val_ratio=0.3)
    assert (facts.val_rows, {r["book"] for r in val}) in [(29, {"c", "d"}), (31, {"b"})]
    facts, _, _ = split(tmp_path, rows, group_key="book", val_ratio=0.01)
    assert facts.val_rows == 12
    assert "sizes allow no closer share" in (tmp_path / "page.html").read_text()


def test_both_sides_have_a_row_or_there_is_an_error(tmp_path):
    assert split(tmp_path, [row(0), row(1)], val_ratio=0.01)[0].val_rows == 1
    assert split(tmp_path, [row(0), row(1)], val_ratio=0.99)[0].train_rows == 1
    assert "at least two are needed" in refused(tmp_path, [row(0)])
    assert "near_threshold = 0" in refused(tmp_path, [row(0), row(0)])
    for ratio in (0, 1, -0.1, 1.5):
        with pytest.raises(UserError, match="val_ratio"):
            step.Settings.of({"val_ratio": ratio})


def test_other_columns(tmp_path):
    rows = [{"text": f"number {i} of the others, {i * i}", "extra": [i]} for i in range(20)]
    assert split(tmp_path, rows, near_threshold=0)[0].val_rows == 2
    chats = [
        {"messages": [{"role": "user", "content": f"{i} {i * i}"}, {"role": "assistant", "content": "a"}]}
        for i in range(20)
    ]
    assert split(tmp_path, chats, chat_key="messages", near_threshold=0)[0].val_rows == 2


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=10),
    ratio=st.floats(0.01, 0.99),
    seed=st.integers(0, 99),
)
def test_whole_groups_as_near_as_possible(sizes, ratio, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    content = np.stack([np.arange(len(labels)), np.arange(len(labels))], axis=1).astype(np.uint64)
    is_val = validation_rows(labels, content, ratio, seed)
    for group in range(len(sizes)):
        assert len(set(is_val[labels == group])) == 1
    target = min(max(int(len(labels) * ratio + 0.5), 1), len(labels) - 1)
    sums = {0}
    for size in sizes:
        sums |= {total + size for total in sums}
    best = min(abs(total - target) for total in sums if 0 < total < len(labels))
    assert abs(int(is_val.sum()) - target) == best


def test_other_layouts_are_read_by_their_own_columns(tmp_path):
    asked = [{"prompt": f"Ask {i // 2}", "completion": f"Answer {i}", "id": i} for i in range(60)]
    facts, _, val = split(tmp_path, asked, near_threshold=0)
    others = {r["prompt"] for r in asked} - {r["prompt"] for r in val}
    assert facts.leakage.same_prompt == 2 * (30 - len(others)) - len(val)  # the rest of each pair is in training
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    facts, train, val = split(tmp_path, [{"messages": said, "id": i % 2} for i in range(4)] + [
        {"messages": [{"role": "user", "content": "Bye"}, said[1]], "id": 9}], near_threshold=0)  # fmt: skip
    assert facts.groups == 2 and facts.kept_together == 4 and {len(train), len(val)} == {4, 1}


def test_buckets_give_what_one_piece_gives(tmp_path, monkeypatch):
    rows = [row(i) for i in range(500)] + [row(3)]
    whole = split(tmp_path, rows)[1:]
    monkeypatch.setattr(shuffle, "BUCKET_BYTES", 4096)
    assert split(tmp_path, rows)[1:] == whole
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("tmp")]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), min_size=2, max_size=20))
def test_any_rows_split_or_are_refused(tmp_path, texts):
    rows = [{"instruction": text, "input": None, "output": ""} for text in texts]
    try:
        facts, _, _ = split(tmp_path, rows)
    except UserError as error:
        assert "near-duplicates of each other" in str(error)
        return
    assert facts.leakage.same_row == facts.leakage.near_duplicate == 0


def test_card(tmp_path, capsys):
    write(tmp_path / "rows", [row(i) for i in range(30)])
    clean = dsl.Dataset(uri=str(tmp_path / "rows"), metadata={"content_hash": "sha256:in", "source": "here"})
    outputs = [dsl.Dataset(uri=str(tmp_path / name)) for name in ("train", "val")]
    run = component.train_val_split.python_func
    run(clean, *outputs, dsl.HTML(uri=str(tmp_path / "p.html")), shuffle_seed=5)
    train, val = (output.metadata for output in outputs)
    assert (train["rows"], val["rows"], val["share"]) == (27, 3, 0.1)
    assert train["source"] == "here" and val["seed"] == 5 and val["inputs"] == {"clean_dataset": "sha256:in"}
    json.dumps([train, val], allow_nan=False)
    with pytest.raises(SystemExit):
        run(clean, *outputs, dsl.HTML(uri=str(tmp_path / "p.html")), val_ratio=2.0)
    assert "error: val_ratio = 2.0" in capsys.readouterr().err


def test_each_kind_has_its_share(tmp_path):
    rows = [row(i, kind="rare" if i % 20 == 0 else "often" if i % 3 else None) for i in range(400)]
    facts, train, val = split(tmp_path, rows, stratify_key="kind", near_threshold=0)
    assert facts.val_rows == 40 and facts.strata == {"": (114, 13), "often": (228, 25), "rare": (18, 2)}
    assert sum(r["kind"] == "rare" for r in val) == 2
    page = (tmp_path / "page.html").read_text()
    assert "By kind" in page and "10.00 %" in page and "(empty)" in page
    random.Random(1).shuffle(rows)
    assert split(tmp_path, rows, stratify_key="kind", near_threshold=0)[1:] == (train, val)


def test_kinds_and_groups_together(tmp_path):
    rows = [row(i, kind="ab"[i % 2], user=f"u{i // 10}") for i in range(200)]
    facts, train, val = split(tmp_path, rows, stratify_key="kind", group_key="user", val_ratio=0.2)
    assert not {r["user"] for r in train} & {r["user"] for r in val}
    assert facts.leakage.same_group == 0 and facts.val_rows == 40
    assert "did you mean 'kind'?" in refused(tmp_path, rows, stratify_key="kinds")
    many = [row(i, kind=str(i)) for i in range(1001)]
    assert "1,001 different values" in refused(tmp_path, many, stratify_key="kind", near_threshold=0)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), min_size=8, max_size=80),
    ratio=st.floats(0.1, 0.5),
    seed=st.integers(0, 99),
)
def test_kinds_of_single_rows_are_exact(rows, ratio, seed):
    strata = np.array([kind for _, kind in rows])
    content = np.stack([np.arange(len(rows)), np.arange(len(rows))], axis=1).astype(np.uint64)
    is_val = validation_rows(np.arange(len(rows)), content, ratio, seed, strata)
    target = min(max(int(len(rows) * ratio + 0.5), 1), len(rows) - 1)
    assert is_val.sum() == target
    for kind in set(strata):
        assert abs(is_val[strata == kind].sum() - target * (strata == kind).mean()) < 1
