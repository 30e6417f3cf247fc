"""Evaluate: base and tuned model on the same held-out rows."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_finetune.components.evaluation.evaluate import candidates, comparison, engine, harness, judge, loss, page, rows
from llm_finetune.components.evaluation.evaluate.batching import TokenBudget
from llm_finetune.components.evaluation.evaluate.examples import Answers, write_examples
from llm_finetune.components.evaluation.evaluate.models import describe
from llm_finetune.components.evaluation.evaluate.settings import Settings
from llm_finetune.components.evaluation.metrics import dashboard_rows
from llm_finetune.components.shared import questions
from llm_finetune.components.shared.modeling.causal_lm import evaluating
from llm_finetune.components.shared.questions import Question
from llm_finetune.components.shared.settings import split_names


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        metrics: Figures by name, all finite. Losses are in nats per completion token; `loss_delta` is tuned minus base,
            with the 95 % interval of a paired bootstrap over rows.
        slices: Losses by length and by the columns of `slice_by`.
        samples: Per prompt that was answered, the prompt, the reference and every answer.
        notes: What was done otherwise than asked for, without harm.
        problems: What was asked for and could not be measured; any of them closes the gate.
        dtype: Precision of the weights.
        writer: Which engine wrote the answers of base and tuned model, and why; empty without answers.
        questions: Validation rows as chat requests, for the deployed model to be asked.
    """

    metrics: dict[str, float | int]
    slices: list[comparison.Slice]
    samples: list[dict[str, Any]]
    notes: list[str]
    problems: list[str]
    dtype: str
    writer: str
    questions: list[Question]

    def rows(self) -> dict[str, float | int]:
        """Returns the figures for the dashboard's table."""
        return dashboard_rows(self.metrics)

    def report(self) -> str:
        """Returns the report's file: everything as JSON."""
        content = asdict(self) | {"metrics": dict(sorted(self.metrics.items()))}
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)


def evaluate(
    model_config: str | Path,
    ft_result: str | Path,
    val_tokens: str | Path,
    val_sft: str | Path,
    eval_examples: str | Path,
    eval_page: str | Path,
    settings: Settings,
    load_in_4bit: bool = False,
    train_tokens: str | Path | None = None,
) -> Evaluation:
    """Measures base and tuned model.

    Args:
        model_config: Folder of the base model or its reference.
        ft_result: Folder of the adapter.
        val_tokens: Validation rows, one document each, with `row` pointing into `val_sft`.
        val_sft: The same rows as text.
        eval_examples: Folder to write: every row with its losses, answers and scores.
        eval_page: HTML page to write.
        settings: The card's settings.
        load_in_4bit: Whether the adapter was trained on an NF4 base.
        train_tokens: Training rows, to take the base model's examples from.

    Returns:
        The evaluation.

    Raises:
        UserError: If there is no validation row, a loss is not finite, or a task or a column is unknown.
    """
    val_tokens, val_sft = Path(val_tokens), Path(val_sft)
    findings, budget = candidates.Findings(), TokenBudget(settings.tokens_per_batch)
    tasks = harness.load_tasks(settings.tasks, settings) if settings.tasks else {}
    servers = candidates.servers(settings)
    chosen = rows.choose(val_tokens, settings.max_samples, settings.seed)
    slices = split_names(settings.slice_by)
    columns = {column: rows.texts(val_sft, column, _named(val_tokens, chosen)) for column in slices}
    models = describe(model_config, ft_result, load_in_4bit)
    asked = _prompts(val_tokens, val_sft, chosen[: settings.generate_samples], models.tokenizer, findings)
    training = Path(train_tokens) if train_tokens else None
    assigned = candidates.assignments(models, asked.prompts, training, settings, findings)
    asked.given, writer = engine.answers_of_vllm(models, assigned, settings.generation_engine, findings)
    model = models.load()
    with evaluating(model):
        losses = loss.measure(model, val_tokens, chosen, budget)
        asked.given = asked.given or candidates.generated(model, models.tokenizer, assigned, budget)
        measured = harness.run_tasks(model, models.tokenizer, tasks, settings, findings.notes) if tasks else {}
    if asked.prompts:
        candidates.compare(asked, servers, settings, findings)
    labels = {"length": loss.length_buckets(losses.lengths), **columns}
    found = comparison.slices(losses, labels, settings.seed)
    metrics = _metrics(losses, found, asked, settings) | measured
    write_examples(eval_examples, losses, labels, asked)
    evaluation = Evaluation(
        comparison.rounded(metrics),
        found,
        asked.samples(),
        findings.notes + budget.notes,
        findings.problems,
        str(models.dtype).removeprefix("torch."),
        writer,
        questions.read(val_sft),
    )
    page.write(eval_page, vars(evaluation), losses, settings)
    return evaluation


def _named(val_tokens: Path, chosen: np.ndarray) -> np.ndarray:
    """Returns which rows of val_sft the chosen token rows are; some were left out when they were tokenised."""
    windows = rows.windows(val_tokens, chosen)
    return np.concatenate([np.array([row["row"] for row in window], dtype=np.int64) for window in windows])


def _prompts(
    val_tokens: Path, val_sft: Path, chosen: np.ndarray, tokenizer: Any, findings: candidates.Findings
) -> Answers:
    drawn = [row for window in rows.windows(val_tokens, chosen) for row in window]
    prompts = [rows.prompt_of(row, tokenizer) for row in drawn if rows.ends_in_answer(row)]
    if len(prompts) < len(drawn):
        findings.note(
            f"{len(drawn) - len(prompts)} of {len(drawn)} rows were not answered: max_length cut off the answer that "
            "they end with, which leaves nothing to compare with"
        )
    wanted = np.array([prompt.row for prompt in prompts], dtype=np.int64)
    return Answers(prompts, rows.texts(val_sft, "prompt", wanted))


def _metrics(
    losses: loss.Losses, found: list[comparison.Slice], answers: Answers, settings: Settings
) -> dict[str, float | int]:
    metrics = comparison.loss_metrics(losses, settings.seed) | comparison.worst_slice(found)
    metrics["generated_samples"] = len(answers.prompts)
    if answers.scored:
        metrics |= comparison.answer_metrics(answers.scored, settings.seed)
    if "served" in answers.given:
        metrics["served_agreement"] = candidates.agreement(answers.given["tuned"], answers.given["served"])
    if answers.verdicts:
        metrics |= judge.figures(answers.verdicts, settings.seed)
    return metrics
