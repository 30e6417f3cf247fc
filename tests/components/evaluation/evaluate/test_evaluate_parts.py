import math
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_finetune.components.evaluation.evaluate import comparison, intervals, rows
from llm_finetune.components.evaluation.evaluate.batching import TokenBudget
from llm_finetune.components.evaluation.evaluate.generation import Answer, prepend_examples
from llm_finetune.components.evaluation.evaluate.intervals import Ratio
from llm_finetune.components.evaluation.evaluate.loss import Losses, length_buckets
from llm_finetune.components.evaluation.evaluate.page import forest, histogram
from llm_finetune.components.evaluation.evaluate.rows import Prompt
from llm_finetune.components.evaluation.evaluate.scores import Scorer, aggregate, repetition
from llm_finetune.components.evaluation.evaluate.settings import Settings
from llm_finetune.components.evaluation.evaluate.word_diff import Piece, word_diff
from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError


def scored(references, texts, stopped=True, **chosen):
    scorer = Scorer(Settings(**{"text_scores": "", **chosen}), references)
    pairs = zip(references, texts, strict=True)
    found = aggregate([scorer.score(reference, Answer(text, 3, stopped)) for reference, text in pairs])
    return {name: ratio.value for name, ratio in found.items()}


def test_json_answers_are_compared_field_by_field():
    references = ['{"a": "1", "b": "2"}', '{"a": "3"}']
    assert scored(references, ['{"b": "2", "a": "x"}', "no object"]) == {
        "exact_match": 0.0,
        "stop_rate": 1.0,
        "mean_tokens": 3.0,
        "repetition": 0.0,
        "json_valid": 0.5,
        "field_f1": 2 * 1 / (3 + 2),
    }
    perfect = scored(references, [' {"a": "1", "b": "2"}', '{"a": "3"}'], stopped=False)
    assert (perfect["exact_match"], perfect["field_f1"], perfect["json_valid"], perfect["stop_rate"]) == (1, 1, 1, 0)


def test_which_metrics_apply_follows_from_references_and_settings():
    always = {"exact_match", "stop_rate", "mean_tokens", "repetition"}
    assert set(scored(["12"], ["12"])) == always
    assert set(scored(["{}"], ["{}"], answer_format="text")) == always
    assert scored(["12"], ['{"a": 1}'], answer_format="json")["json_valid"] == 1
    cron = scored(["* * * * *"] * 2, ["0 12 * * 1", "at noon"], answer_pattern=r"[\d*/,-]+( [\d*/,-]+){4}")
    assert cron["pattern_valid"] == 0.5


def test_text_scores_are_those_of_the_libraries():
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import CHRF

    reference, text = "The quick brown fox jumps over the lazy dog", "A quick, brown dog jumped over the lazy fox"
    found = scored([reference], [text], text_scores="rouge_l, chrf")
    assert found["rouge_l"] == RougeScorer(["rougeL"]).score(reference, text)["rougeL"].fmeasure
    assert found["chrf"] == CHRF().sentence_score(text, [reference]).score / 100
    # rouge-score by itself finds no word in these and would say 0.
    assert scored(["Доброе утро, Москва"], ["доброе утро"], text_scores="rouge_l")["rouge_l"] == pytest.approx(0.8)


def test_repetition_counts_runs_of_four_words():
    assert repetition("one two three") == 0
    assert repetition("a b c d e f g") == 0
    assert repetition("go on go on go on go on") == pytest.approx(1 - 2 / 5)


def losses_of(base, tuned, tokens):
    count = len(base)
    return Losses(
        np.arange(count), np.full(count, 10), np.array(tokens), {"base": np.array(base), "tuned": np.array(tuned)}
    )


def test_the_interval_is_that_of_a_plain_bootstrap_with_the_same_draws(monkeypatch):
    generator = np.random.default_rng(0)
    tokens = generator.integers(1, 50, 200)
    base = tokens * generator.normal(2, 0.3, 200)
    tuned = base - tokens * generator.normal(0.1, 0.4, 200)
    losses = losses_of(base, tuned, tokens)
    metrics = comparison.loss_metrics(losses, seed=1)
    draws = np.random.default_rng(1).integers(0, 200, (2000, 200))
    plain = [tuned[drawn].sum() / tokens[drawn].sum() - base[drawn].sum() / tokens[drawn].sum() for drawn in draws]
    assert metrics["loss_delta"] == pytest.approx((tuned.sum() - base.sum()) / tokens.sum())
    assert metrics["loss_delta_ci_low"] == pytest.approx(np.quantile(plain, 0.025), abs=1e-12)
    assert metrics["loss_delta_ci_high"] == pytest.approx(np.quantile(plain, 0.975), abs=1e-12)
    monkeypatch.setattr(intervals, "DRAWS_PER_BATCH", 1000)
    assert comparison.loss_metrics(losses, seed=1) == pytest.approx(metrics, abs=1e-12)


def test_the_interval_of_one_row_is_its_value():
    found = intervals.bootstrap_intervals({"mean": Ratio(np.array([3.0]), np.ones(1))}, {"zero": ("mean", "mean")}, 0)
    assert found == {"mean": intervals.Interval(3.0, 3.0), "zero": intervals.Interval(0.0, 0.0)}


def test_intervals_take_the_same_memory_for_more_rows(monkeypatch):
    def peak(rows):
        ratio = Ratio(np.ones(rows), np.ones(rows))
        tracemalloc.start()
        intervals.bootstrap_intervals({"mean": ratio}, {}, 0)
        high = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return high

    monkeypatch.setattr(intervals, "DRAWS_PER_BATCH", 40_000)
    monkeypatch.setattr(intervals, "RESAMPLES", 200)
    assert peak(8_000) < 1.5 * peak(2_000)


def test_an_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(5)
    hits = 0
    for seed in range(60):
        values = generator.normal(0.3, 1.0, 80)
        found = intervals.bootstrap_intervals({"mean": Ratio(values, np.ones(80))}, {}, seed)["mean"]
        hits += found.low <= 0.3 <= found.high
    assert 51 <= hits <= 60  # 57 expected


def test_slices_add_up_and_small_ones_do_not_count_as_the_worst():
    losses = losses_of([2.0] * 12 + [1.0], [1.0] * 12 + [5.0], [1] * 13)
    found = comparison.compare_slices(losses, {"source": ["web"] * 12 + ["odd"]}, seed=0)
    assert [(one.name, one.rows, one.delta) for one in found] == [("odd", 1, 4.0), ("web", 12, -1.0)]
    assert comparison.worst_slice(found) == {"worst_slice_loss_delta": -1.0}
    assert comparison.worst_slice(found[:1]) == {}


def test_length_slices_are_powers_of_two_so_that_runs_compare():
    assert length_buckets(np.array([1, 64, 65, 128, 129, 1024])) == [
        "1-64 tokens", "1-64 tokens", "65-128 tokens", "65-128 tokens", "129-256 tokens", "513-1024 tokens"
    ]  # fmt: skip
    by_length = comparison.compare_slices(
        losses_of([1.0] * 3, [1.0] * 3, [1] * 3), {"length": length_buckets(np.array([1000, 70, 3]))}, 0
    )
    assert [one.name for one in by_length] == ["1-64 tokens", "65-128 tokens", "513-1024 tokens"]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(1, 200), st.integers(60, 300))
def test_every_item_is_done_once_within_memory_and_budget(lengths, tokens, memory):
    done = []

    def work(group):
        used = max(lengths[i] for i in group) * len(group)
        if used > memory:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        done.extend(group)

    budget = TokenBudget(tokens)
    budget.run("loss", lengths, work)
    assert sorted(done) == list(range(len(lengths)))
    assert bool(budget.notes) == (budget.tokens < tokens)


def test_other_errors_are_not_taken_for_memory():
    def work(group):
        raise RuntimeError("CUDA error: device-side assert triggered")

    with pytest.raises(RuntimeError, match="device-side assert"):
        TokenBudget(10).run("loss", [1, 2], work)


def test_a_real_allocation_that_fails_is_taken_for_memory():
    def work(group):
        torch.empty(1 << 50)

    with pytest.raises(UserError, match="out of memory with a single row of 7 tokens"):
        TokenBudget(10).run("loss", [7], work)


def test_examples_are_whole_documents_and_begin_the_sequence_once():
    prompt = Prompt(0, [1, 30, 31], "x")
    shown = prepend_examples([prompt], [[1, 10, 2], [1, 20, 2]], bos=1)
    assert shown[0].input_ids == [1, 10, 2, 20, 2, 30, 31]
    turns = prepend_examples([prompt], [[1, 10, 1, 11, 2]], bos=1)  # ChatML: the token opens every turn
    assert turns[0].input_ids == [1, 10, 1, 11, 2, 1, 30, 31]


def test_examples_come_from_packed_rows_document_by_document(inputs):
    found = rows.sample_examples(inputs["train_tokens"], 6, 10, seed=0)
    assert sorted(found) == [[4 + i, 5 + i, 6 + i, 2] for i in range(6)]
    assert rows.sample_examples(inputs["train_tokens"], 7, 10, seed=0) == []
    assert rows.sample_examples(inputs["train_tokens"], 2, 3, seed=0) == []


def test_reading_rows_takes_the_same_memory_for_more_rows(tmp_path):
    def peak(count):
        lists = pa.array([[5] * 100] * count, pa.list_(pa.int32()))
        table = pa.table({"input_ids": lists, "labels": lists, "row": pa.array(range(count), pa.int64())})
        with tables.ShardWriter(tmp_path / str(count), table.schema) as writer:
            writer.write(table)
        del table, lists
        chosen = rows.sample_rows(tmp_path / str(count), 0, 0)
        tracemalloc.start()
        seen = 0
        for window in rows.read_windows(tmp_path / str(count), chosen):
            seen += len(window)
        high = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert seen == count
        return high

    assert peak(20_000) < 1.3 * peak(5_000)


def test_differences_mark_words_of_the_answer_and_of_the_reference():
    assert word_diff('{"city": "Rome"}', '{"city": "Oslo"}') == [
        Piece("same", '{"city": "'), Piece("missing", "Rome"), Piece("added", "Oslo"), Piece("same", '"}')
    ]  # fmt: skip
    assert word_diff("same text", " same text ") == [Piece("same", "same text")]
    assert word_diff("alpha beta", "something else entirely, at length") == [
        Piece("same", "something else entirely, at length")
    ]


def test_the_drawings_show_every_row_and_hold_all_intervals():
    losses = losses_of([2.0] * 10, [1.0] * 9 + [3.0], [1] * 10)
    drawn = histogram(losses)
    assert (drawn.better, drawn.rows, sum(count for _, count in drawn.counts)) == (9, 10, 10)
    outlier = histogram(losses_of([2.0] * 400, [1.0] * 399 + [9.0], [1] * 400))
    assert sum(count for at, count in outlier.counts if at < -1e-9) == outlier.better == 399
    metrics = comparison.loss_metrics(losses, 0)
    lines = forest(comparison.compare_slices(losses, {"length": ["a"] * 5 + ["b"] * 5}, 0), metrics)
    assert [line.slice.by for line in lines] == ["all rows", "length", "length"]
    assert all(-1e-3 <= at <= 100.001 for line in lines for at in (line.x, line.start, line.end, line.zero))
    same = comparison.loss_metrics(losses_of([1.0], [1.0], [1]), 0)
    (line,) = forest([], same)
    assert all(math.isfinite(at) for at in (line.x, line.start, line.end, line.zero))
