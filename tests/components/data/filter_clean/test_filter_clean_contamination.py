"""Filter & Clean: rows of evaluation sets among the training rows."""

import json
import re
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from filter_clean_rows import clean, refused, row
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_finetune.components.data.filter_clean import contamination, step
from llm_finetune.components.shared.errors import UserError

QUESTION = "A train leaves the station at nine and travels at sixty miles per hour; when does it arrive in the city?"


def test_rows_of_evaluation_sets_are_dropped(tmp_path):
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(json.dumps(r) + "\n" for r in (
        {"question": QUESTION, "choices": ["at ten", "one two three four five six seven eight nine ten eleven twelve thirteen"]},
        {"question": "Too short to tell", "choices": ["yes"]},
    )))  # fmt: skip
    rows = [
        row("Solve this: " + QUESTION.upper().replace(" ", " , "), "", "noon"),
        row("A train leaves the station at nine and travels at sixty miles", "", "noon"),
        row("Count:", "", "One, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen!"),
        row("Something else altogether", "", "yes"),
    ]
    facts, kept, _ = clean(tmp_path, rows, eval_sets=[str(held_out)])
    assert kept == [rows[1], rows[3]] and facts.dropped == {"contaminated": 2}
    named = {"source_type": "jsonl_path", "jsonl_path": str(held_out)}
    assert clean(tmp_path, rows, eval_sets=[named], eval_words=8)[0].rows == 1
    message = refused(tmp_path / "none", rows, eval_sets=[str(held_out)], eval_words=50)
    assert "has 50 words" in message and "reduce eval_words" in message
    assert "nowhere.jsonl" in refused(tmp_path / "none", rows, eval_sets=["./nowhere.jsonl"])
    with pytest.raises(UserError, match="jsonl_pathh"):
        step.Settings.of({"eval_sets": [{"jsonl_pathh": "x"}]})


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text("abc .,Ä", max_size=20), max_size=8), st.integers(2, 4))
def test_runs_of_words_are_those_of_python(texts, length):
    _, row = contamination.word_ngrams(pa.array(texts, pa.string()), length)
    words = [re.findall(r"\w+", unicodedata.normalize("NFKC", text)) for text in texts]
    assert np.bincount(row, minlength=len(texts)).tolist() == [max(len(w) - length + 1, 0) for w in words]
