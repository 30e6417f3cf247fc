import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_finetune.components.tokens.tokenize.packing import pack


@given(st.lists(st.integers(1, 64), max_size=200))
def test_every_document_lies_whole_in_exactly_one_row_that_it_fits_into(lengths):
    rows = pack(lengths, 64)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in row) <= 64 for row in rows)


@given(st.lists(st.integers(1, 64), min_size=1, max_size=200))
def test_never_more_rows_than_best_fit_decreasing_guarantees(lengths):
    # Best-fit decreasing uses at most 11/9 of the optimum plus one row (Johnson 1974); the optimum holds all tokens.
    optimum = -(-sum(lengths) // 64)
    large = sum(length > 32 for length in lengths)
    assert len(pack(lengths, 64)) <= 11 / 9 * max(optimum, large) + max(large, optimum) + 1


def test_the_example_of_the_docstring():
    assert pack([5, 3, 7, 2, 4], 8) == [[2], [0, 1], [4, 3]]


def test_the_fullest_row_that_still_fits_is_taken():
    assert pack([6, 5, 2, 3], 8) == [[0, 2], [1, 3]]


@pytest.mark.parametrize("length", [0, 9])
def test_a_document_that_is_empty_or_too_long_is_refused(length):
    with pytest.raises(ValueError, match="document 1 has"):
        pack([4, length], 8)
