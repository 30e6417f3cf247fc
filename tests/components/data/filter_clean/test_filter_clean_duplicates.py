"""Filter & Clean: exact and near-duplicates, and what of their texts is compared."""

import re
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from filter_clean_rows import clean, row
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_finetune.components.shared.rows.duplicates import NearDuplicates, SeenHashes, hash_texts, normalize_text


def test_near_duplicates(tmp_path):
    words = [f"word{i}" for i in range(200)]
    rng = np.random.default_rng(0)
    originals = [" ".join(rng.choice(words, 40)) for _ in range(100)]
    copies = [text + " and one more" for text in originals[:30]]
    rows = [row("The same task in every row", text, "done") for text in originals + copies]
    exact, _, _ = clean(tmp_path, rows)
    assert exact.rows == 130
    facts, _, dropped = clean(tmp_path, rows, dedup="near")
    assert facts.dropped == {"near_duplicate": 30}
    assert [r["input"] for r in dropped] == copies
    assert clean(tmp_path, rows, dedup="near", near_threshold=1.0)[0].rows == 130


def planted_pairs(count: int) -> tuple[list[str], dict[tuple[int, int], float]]:
    """Returns texts, the second half variants of the first, and how alike each pair truly is."""
    rng = np.random.default_rng(1)
    vocabulary = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), rng.integers(3, 9))) for _ in range(2000)]
    originals = [list(rng.choice(vocabulary, 60)) for _ in range(count)]
    variants = [list(words) for words in originals]
    for words in variants:
        for place in rng.choice(60, rng.integers(0, 12), replace=False):
            words[place] = rng.choice(vocabulary)
    texts = [" ".join(words) for words in originals + variants]
    shingles = [{text[i : i + 5] for i in range(len(text) - 4)} for text in texts]
    return texts, {
        (i, i + count): len(shingles[i] & shingles[i + count]) / len(shingles[i] | shingles[i + count])
        for i in range(count)
    }


def test_near_duplicates_are_found_and_nothing_else():
    texts, similarity = planted_pairs(150)
    wanted = {pair for pair, true in similarity.items() if true >= 0.8}
    assert 40 < len(wanted) < 110  # the set has pairs on both sides of the threshold
    near, found = NearDuplicates(0.8), {}
    for number, sketch in enumerate(near.sketches(normalize_text(pa.array(texts)))):
        found |= {(other, number): alike for other, alike in near.similar(sketch, 0.8)}
        near.insert(number, sketch)
    recall, precision = len(wanted & set(found)) / len(wanted), len(wanted & set(found)) / len(found)
    print(f"recall {recall:.3f}, precision {precision:.3f} at Jaccard 0.8")
    assert recall >= 0.95 and precision >= 0.98
    assert all(alike == pytest.approx(similarity[pair]) for pair, alike in found.items())


def test_near_pairs_are_shown(tmp_path):
    text = "a text that is long enough to be compared with others of its kind"
    clean(tmp_path, [row(text, "", "yes"), row(text + "s", "", "yes")], dedup="near")
    page = (tmp_path / "page.html").read_text()
    assert "the rows kept instead" in page and f"{text}s → yes" in page


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=20))
def test_normalisation_is_that_of_python(texts):
    got = normalize_text(pa.array(texts, pa.string())).to_pylist()
    for text, value in zip(texts, got, strict=True):
        assert re.sub("[\t\n\x0b\x0c\r ]+", " ", value) == value
        if text.isascii():
            assert value == re.sub("[\t\n\x0b\x0c\r ]+", " ", text.lower())
        else:
            folded = unicodedata.normalize("NFKC", text)
            assert value == normalize_text(pa.array([folded])).to_pylist()[0]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcdefghij"), max_size=8), max_size=12))
def test_seen_hashes_is_a_set(batches):
    seen, known = SeenHashes(), set()
    for batch in batches:
        again = seen.add(hash_texts(pa.array(batch, pa.string())))
        for text, was in zip(batch, again, strict=True):
            assert was == (text in known)
            known.add(text)
