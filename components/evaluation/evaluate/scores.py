"""Scores of answers against their references."""

import json
import re
from collections.abc import Callable, Sequence

import numpy as np

from llm_finetune.components.evaluation.evaluate.generation import Answer
from llm_finetune.components.evaluation.evaluate.intervals import Ratio
from llm_finetune.components.evaluation.evaluate.settings import Settings
from llm_finetune.components.shared.settings import split_names

Scores = dict[str, float]
"""Scores of one answer by metric."""
TextScorer = Callable[[str, str], float]
REPETITION_WORDS = 4


class Scorer:
    """Scores answers with the metrics that apply to the settings and the references."""

    def __init__(self, settings: Settings, references: Sequence[str]) -> None:
        """Selects the metrics.

        Args:
            settings: Settings of the card.
            references: All references. JSON metrics apply if `answer_format` says so, or with `auto` if every reference
                is a JSON object.
        """
        self._pattern = re.compile(settings.answer_pattern) if settings.answer_pattern else None
        self._json = settings.answer_format == "json" or (
            settings.answer_format == "auto"
            and all(parse_json_object(reference) is not None for reference in references)
        )
        self._text_scorers = {name: TEXT_SCORERS[name]() for name in split_names(settings.text_scores)}

    def score(self, reference: str, answer: Answer) -> Scores:
        """Scores one answer.

        Args:
            reference: Expected answer.
            answer: Answer of a candidate.

        Returns:
            A score between 0 and 1 by metric, except `mean_tokens`; `field_f1` comes with its weight
            `field_f1_weight`, the number of key-value pairs in both objects.
        """
        text = answer.text.strip()
        scores = {
            "exact_match": float(text == reference.strip()),
            "stop_rate": float(answer.stopped),
            "mean_tokens": float(answer.tokens),
            "repetition": repetition(text),
        }
        if self._json:
            scores |= _score_json(reference, text)
        if self._pattern:
            scores["pattern_valid"] = float(self._pattern.fullmatch(text) is not None)
        return scores | {name: score(reference, text) for name, score in self._text_scorers.items()}


def aggregate(scores: Sequence[Scores]) -> dict[str, Ratio]:
    """Returns each metric over all answers as a ratio of sums.

    Args:
        scores: Scores of each answer, at least one.

    Returns:
        Ratios by metric; `field_f1` is micro-averaged over key-value pairs.
    """
    ones = np.ones(len(scores))
    ratios = {}
    for name in scores[0]:
        if name.endswith("_weight"):
            continue
        values = np.array([own[name] for own in scores])
        weight = np.array([own[f"{name}_weight"] for own in scores]) if f"{name}_weight" in scores[0] else ones
        ratios[name] = Ratio(values * weight, weight, 1.0 if weight is not ones else 0.0)
    return ratios


def parse_json_object(text: str) -> dict[str, object] | None:
    """Returns the JSON object in a text, or None if the text is anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def repetition(text: str) -> float:
    """Returns the share of a text's word 4-grams that repeat an earlier one; 0 for shorter texts."""
    words = re.findall(r"\w+|[^\w\s]", text)
    ngrams = [tuple(words[i : i + REPETITION_WORDS]) for i in range(len(words) - REPETITION_WORDS + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def _score_json(reference: str, text: str) -> Scores:
    expected, actual = _fields(parse_json_object(reference)), _fields(parse_json_object(text))
    weight = len(expected) + len(actual)
    return {
        "json_valid": float(parse_json_object(text) is not None),
        "field_f1": 2 * len(expected & actual) / weight if weight else 1.0,
        "field_f1_weight": float(weight),
    }


def _fields(value: dict[str, object] | None) -> set[tuple[str, str]]:
    return {(key, json.dumps(field, sort_keys=True)) for key, field in (value or {}).items()}


class _WordTokenizer:
    """Splits text of any script into words; rouge-score's own tokenizer keeps only a to z and digits."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"[^\W_]+", text.lower())


def _rouge_l() -> TextScorer:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=_WordTokenizer())
    return lambda reference, text: float(scorer.score(reference, text)["rougeL"].fmeasure)


def _chrf() -> TextScorer:
    from sacrebleu.metrics.chrf import CHRF

    scorer = CHRF()
    return lambda reference, text: float(scorer.sentence_score(text, [reference]).score) / 100


TEXT_SCORERS: dict[str, Callable[[], TextScorer]] = {"rouge_l": _rouge_l, "chrf": _chrf}
