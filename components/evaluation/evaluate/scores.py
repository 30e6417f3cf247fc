"""How answers compare with their references."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from llm_finetune.components.evaluation.evaluate.generation import Answer
from llm_finetune.components.evaluation.evaluate.intervals import Ratio
from llm_finetune.components.evaluation.evaluate.settings import Settings
from llm_finetune.components.shared.settings import split_names

Scored = dict[str, float]
REPEATED_WORDS = 4


class Scorer:
    """Scores answers by everything that the settings and the references call for."""

    def __init__(self, settings: Settings, references: Sequence[str]) -> None:
        """Finds out which figures apply.

        Args:
            settings: Formats and scores.
            references: All references; JSON figures apply when each of them is a JSON object, or by setting.
        """
        self._pattern = re.compile(settings.answer_pattern) if settings.answer_pattern else None
        self._json = settings.answer_format == "json" or (
            settings.answer_format == "auto" and all(json_object(reference) is not None for reference in references)
        )
        self._texts = {name: TEXT_SCORERS[name]() for name in split_names(settings.text_scores)}

    def score(self, reference: str, answer: Answer) -> Scored:
        """Scores one answer.

        Args:
            reference: The answer that was wanted.
            answer: The one that was given.

        Returns:
            A value between 0 and 1 by figure, `mean_tokens` apart; `field_f1` comes with its weight, the number of
            pairs in both objects, `field_f1_weight`.
        """
        text = answer.text.strip()
        scored = {
            "exact_match": float(text == reference.strip()),
            "stop_rate": float(answer.stopped),
            "mean_tokens": float(answer.tokens),
            "repetition": repetition(text),
        }
        if self._json:
            scored |= _json_scores(reference, text)
        if self._pattern:
            scored["pattern_valid"] = float(self._pattern.fullmatch(text) is not None)
        return scored | {name: score(reference, text) for name, score in self._texts.items()}


def ratios(scored: Sequence[Scored]) -> dict[str, Ratio]:
    """Returns each figure over all answers as a ratio of sums, for the figure and its interval.

    Args:
        scored: Scores of each answer, at least one.

    Returns:
        Ratios by figure; `field_f1` is micro-averaged over pairs of key and value.
    """
    ones = np.ones(len(scored))
    found = {}
    for name in scored[0]:
        if name.endswith("_weight"):
            continue
        values = np.array([one[name] for one in scored])
        weight = np.array([one[f"{name}_weight"] for one in scored]) if f"{name}_weight" in scored[0] else ones
        found[name] = Ratio(values * weight, weight, 1.0 if weight is not ones else 0.0)
    return found


def json_object(text: str) -> dict[str, Any] | None:
    """Returns the JSON object that a text is, or None if it is anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def repetition(text: str) -> float:
    """Returns the share of a text's runs of four words that it has said before; 0 for shorter texts."""
    words = re.findall(r"\w+|[^\w\s]", text)
    runs = [tuple(words[i : i + REPEATED_WORDS]) for i in range(len(words) - REPEATED_WORDS + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def _json_scores(reference: str, text: str) -> Scored:
    wanted, given = _fields(json_object(reference)), _fields(json_object(text))
    weight = len(wanted) + len(given)
    return {
        "json_valid": float(json_object(text) is not None),
        "field_f1": 2 * len(wanted & given) / weight if weight else 1.0,
        "field_f1_weight": float(weight),
    }


def _fields(value: dict[str, Any] | None) -> set[tuple[str, str]]:
    return {(key, json.dumps(field, sort_keys=True)) for key, field in (value or {}).items()}


class _Words:
    """Splits any script into words; rouge-score's own tokenizer knows only a to z and digits."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"[^\W_]+", text.lower())


def _rouge_l() -> Callable[[str, str], float]:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=_Words())
    return lambda reference, text: float(scorer.score(reference, text)["rougeL"].fmeasure)


def _chrf() -> Callable[[str, str], float]:
    from sacrebleu.metrics import CHRF

    scorer = CHRF()
    return lambda reference, text: float(scorer.sentence_score(text, [reference]).score) / 100


TEXT_SCORERS: dict[str, Callable[[], Callable[[str, str], float]]] = {"rouge_l": _rouge_l, "chrf": _chrf}
