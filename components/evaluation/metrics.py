"""The metrics of an evaluation: names, meanings and which direction is better.

Evaluate reports them, its page explains them, and the rules of Quality Gate refer to them.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A metric that is reported per candidate.

    Attributes:
        name: Name without the candidate's prefix: `exact_match` of `tuned_exact_match`.
        label: Name on the page.
        meaning: What it measures, in a few words.
        better: `lower` or `higher`; empty if neither is better.
    """

    name: str
    label: str
    meaning: str
    better: str = ""


CANDIDATES = {
    "base": "base",
    "base_few_shot": "base, with examples",
    "tuned": "tuned",
    "base_sampled": "base, sampled",
    "tuned_sampled": "tuned, sampled",
    "served": "served",
}
"""Label on the page per candidate: a model, with a way of prompting and decoding, that answers the prompts."""

LOSS_METRICS = (
    Metric("loss", "loss", "nats per completion token: Σ nll / Σ tokens", "lower"),
    Metric("perplexity", "perplexity", "exp(loss)", "lower"),
)
ANSWER_METRICS = (
    Metric("exact_match", "exact match", "share of answers equal to the reference", "higher"),
    Metric("json_valid", "valid JSON", "share of answers that are a JSON object", "higher"),
    Metric("field_f1", "field F1", "F1 over key-value pairs of JSON objects", "higher"),
    Metric("pattern_valid", "matches the pattern", "share of answers that answer_pattern matches in full", "higher"),
    Metric("rouge_l", "ROUGE-L", "longest common subsequence of words, F1, mean over answers", "higher"),
    Metric("chrf", "chrF", "F2 over character n-grams, 0 to 1, mean over answers", "higher"),
    Metric("stop_rate", "stop rate", "share of answers that end with an end-of-turn token", "higher"),
    Metric("mean_tokens", "mean tokens", "mean length of an answer"),
    Metric("repetition", "repetition", "share of word 4-grams that repeat an earlier one in the same answer", "lower"),
)
INTERVAL_SUFFIXES = ("_ci_low", "_ci_high")
"""Suffixes of the lower and upper bound of a 95 % confidence interval."""

OVERALL_METRICS = (
    *(f"loss_delta{suffix}" for suffix in ("", *INTERVAL_SUFFIXES)),
    *(f"{metric.name}_delta{suffix}" for metric in ANSWER_METRICS for suffix in ("", *INTERVAL_SUFFIXES)),
    *(f"judge_win_rate{suffix}" for suffix in ("", *INTERVAL_SUFFIXES)),
    *("judge_wins", "judge_ties", "judge_losses", "judge_agreement", "judge_unreadable"),
    *("judge_prompt_tokens", "judge_completion_tokens"),
    *("samples_used", "completion_tokens", "generated_samples", "worst_slice_loss_delta", "served_agreement"),
)
METRIC_NAMES = (
    *(f"{model}_{metric.name}" for model in ("base", "tuned") for metric in LOSS_METRICS),
    *(
        f"{candidate}_{metric.name}{suffix}"
        for candidate in CANDIDATES
        for metric in ANSWER_METRICS
        for suffix in ("", *INTERVAL_SUFFIXES)
    ),
    *OVERALL_METRICS,
)
"""Every metric that an evaluation can report, except those of lm-evaluation-harness tasks."""

TASK_PARTS = ("base", "tuned", "drop", "stderr")
"""What is reported per task as `task.<name>.<part>`: both scores, how much worse the tuned model is, and the standard
error of that difference."""


def dashboard_metrics(metrics: dict[str, float | int]) -> dict[str, float | int]:
    """Returns the metrics for the dashboard's table: sorted by name, with the intervals of loss and judge only.

    Args:
        metrics: All metrics.

    Returns:
        The metrics to show; two runs with the same settings have the same rows in the same order.
    """
    shown = {
        name for name in metrics if not name.endswith(INTERVAL_SUFFIXES) or name.startswith(("loss_delta", "judge_"))
    }
    return {name: metrics[name] for name in sorted(shown)}
