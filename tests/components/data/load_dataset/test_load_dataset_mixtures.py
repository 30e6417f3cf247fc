"""Load Dataset: mixtures of several datasets by weight."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from load_dataset_sources import lines, load, refused

from llm_finetune.components.data.load_dataset import mixture, step
from llm_finetune.components.shared.errors import UserError


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


def test_licenses_are_those_of_all_sources(tmp_path, two):
    facts, _ = mixed(tmp_path, [{**two[0], "license": "mit"}, two[1]])
    assert (facts.license, [source["license"] for source in facts.sources]) == ("mit and unknown", ["mit", "unknown"])
    assert facts.origin()["dataset_license"] == "mit and unknown"
    assert load(tmp_path, f"{tmp_path}/many.jsonl", license="cc0-1.0")[0].license == "cc0-1.0"
    with pytest.raises(UserError, match="license cannot be combined with mixture"):
        mixed(tmp_path, two, license="mit")


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
    assert "exactly one of hf_dataset and path" in wrong({"hf_dataset": "org/data"})
    assert "set a different name for each" in wrong({"name": "many"})
    assert "mixture.1.columns.text = 'qq': 'few' has no such column; did you mean 'q'" in wrong(
        {"columns": {"text": "qq"}}
    )
    assert "has a column 'q'" in wrong({"columns": {}}) and "can be selected and renamed with `columns`" in wrong(
        {"columns": {}}
    )
    assert "column 'text' of 'few' is int64, but string" in wrong({"columns": {"text": "id"}})
    assert "jsonl_path cannot be combined with mixture" in refused(tmp_path, "x.jsonl", mixture=two)
    assert "a column 'text': set source_column" in wrong({}, source_column="text")
    assert "the mixture has no room for a row of 'few'" in wrong({"weight": 0.001})
    assert "none.jsonl does not exist" in wrong({"path": f"{tmp_path}/none.jsonl"})


@given(
    parts=st.lists(st.tuples(st.integers(1, 10_000), st.floats(0.01, 100)), min_size=1, max_size=6),
    most=st.integers(0, 20_000),
)
def test_counts_are_the_largest_that_the_shares_allow(parts, most):
    available, weights = [rows for rows, _ in parts], [weight for _, weight in parts]
    taken = mixture.rows_per_source(available, weights, most)
    total = sum(taken)
    assert all(0 <= count <= rows for count, rows in zip(taken, available, strict=True))
    assert not most or total <= most
    for count, weight in zip(taken, weights, strict=True):
        assert abs(count - total * weight / sum(weights)) <= 2
    most_possible = min(rows * sum(weights) / weight for rows, weight in parts)
    assert total >= min(most_possible, most or most_possible) - len(parts) - 1


def test_the_old_name_of_license_is_accepted_with_a_warning(tmp_path, two, capsys):
    facts, _ = mixed(tmp_path, [{**two[0], "licence": "mit"}, two[1]])
    assert facts.license == "mit and unknown"
    warning = "warning: mixture.licence was renamed to license; the next version no longer accepts licence\n"
    assert warning in capsys.readouterr().out
    settings = {"settings": {"licence": "mit"}}
    assert step.Settings.of(settings).license == "mit"
    assert "warning: licence was renamed to license" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"mixture.licence is the old name of mixture.license: set only license"):
        mixed(tmp_path, [{**two[0], "licence": "mit", "license": "mit"}, two[1]])
