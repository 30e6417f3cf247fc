"""The figures of an evaluation: their names, what they mean and which way is better.

Evaluate reports them, its page explains them, and the gate's rules may name them.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        name: Its name behind the contender's, as in `tuned_exact_match`.
        label: Its name for people.
        meaning: What it measures, in a few words.
        better: `lower` or `higher`; empty where neither is.
    """

    name: str
    label: str
    meaning: str
    better: str = ""


CONTENDERS = {
    "base": "base",
    "base_few_shot": "base, with examples",
    "tuned": "tuned",
    "base_sampled": "base, sampled",
    "tuned_sampled": "tuned, sampled",
    "served": "served",
}
"""Who answers the prompts, and the name for people."""

LOSS_FIGURES = (
    Figure("loss", "loss", "nats per completion token: Σ nll / Σ tokens", "lower"),
    Figure("perplexity", "perplexity", "exp(loss)", "lower"),
)
ANSWER_FIGURES = (
    Figure("exact_match", "exact match", "share of answers equal to the reference", "higher"),
    Figure("json_valid", "valid JSON", "share of answers that are a JSON object", "higher"),
    Figure("field_f1", "field F1", "F1 over pairs of key and value of JSON objects", "higher"),
    Figure("pattern_valid", "matches the pattern", "share of answers that answer_pattern matches as a whole", "higher"),
    Figure("rouge_l", "ROUGE-L", "longest common subsequence of words, F1, mean over answers", "higher"),
    Figure("chrf", "chrF", "F2 over character n-grams, 0 to 1, mean over answers", "higher"),
    Figure("stop_rate", "stop rate", "share of answers that the model ended itself", "higher"),
    Figure("mean_tokens", "mean tokens", "length of an answer"),
    Figure("repetition", "repetition", "share of a text's runs of four words that it has said before", "lower"),
)
BOUNDS = ("_ci_low", "_ci_high")
"""Endings of the bounds of a 95 % interval."""

OVERALL = (
    *(f"loss_delta{end}" for end in ("", *BOUNDS)),
    *(f"{figure.name}_delta{end}" for figure in ANSWER_FIGURES for end in ("", *BOUNDS)),
    *(f"judge_win_rate{end}" for end in ("", *BOUNDS)),
    *("judge_wins", "judge_ties", "judge_losses", "judge_agreement", "judge_unreadable"),
    *("judge_prompt_tokens", "judge_completion_tokens"),
    *("samples_used", "completion_tokens", "generated_samples", "worst_slice_loss_delta", "served_agreement"),
)
NAMES = (
    *(f"{model}_{figure.name}" for model in ("base", "tuned") for figure in LOSS_FIGURES),
    *(f"{model}_{figure.name}{end}" for model in CONTENDERS for figure in ANSWER_FIGURES for end in ("", *BOUNDS)),
    *OVERALL,
)
"""Every figure that an evaluation can hold, tasks of lm-evaluation-harness aside."""

TASK_PARTS = ("base", "tuned", "drop", "stderr")
"""What is reported of a task, as `task.<name>.<part>`: both scores, by how much the tuned model is worse, and the
standard error of that."""


def dashboard_rows(metrics: dict[str, float | int]) -> dict[str, float | int]:
    """Returns the figures for the dashboard's table: sorted by name, without the bounds of all but the loss's interval.

    Args:
        metrics: All figures.

    Returns:
        Those to show; two runs with the same settings have the same rows in the same order.
    """
    shown = {name for name in metrics if not name.endswith(BOUNDS) or name.startswith(("loss_delta", "judge_"))}
    return {name: metrics[name] for name in sorted(shown)}
