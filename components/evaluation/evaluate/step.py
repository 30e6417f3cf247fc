"""Evaluate: compares base and tuned model on the same validation rows."""

from pathlib import Path
from typing import Any

import numpy as np

from llm_finetune.components.evaluation.evaluate import candidates, comparison, engine, harness, judge, loss, page, rows
from llm_finetune.components.evaluation.evaluate.answers import AnswerSet
from llm_finetune.components.evaluation.evaluate.batching import TokenBudget
from llm_finetune.components.evaluation.evaluate.evaluation import Evaluation
from llm_finetune.components.evaluation.evaluate.examples import write_examples
from llm_finetune.components.evaluation.evaluate.findings import Findings
from llm_finetune.components.evaluation.evaluate.models import describe
from llm_finetune.components.evaluation.evaluate.rows import Indices
from llm_finetune.components.evaluation.evaluate.settings import Settings
from llm_finetune.components.shared import questions
from llm_finetune.components.shared.modeling.causal_lm import evaluation_mode
from llm_finetune.components.shared.settings import split_names


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
    """Evaluates base and tuned model.

    Args:
        model_config: Folder of the base model, or of a reference to it.
        ft_result: Folder of the adapter.
        val_tokens: Validation rows, one document each, with `row` as index in `val_sft`.
        val_sft: The same rows as text.
        eval_examples: Folder to write: every row with its losses, answers and scores.
        eval_page: HTML page to write.
        settings: Settings of the card.
        load_in_4bit: Whether the adapter was trained on an NF4 base.
        train_tokens: Training rows that the base model's few-shot examples are sampled from.

    Returns:
        The evaluation.

    Raises:
        UserError: If there is no validation row, a loss is not finite, or a task or a column is unknown.
    """
    val_tokens, val_sft = Path(val_tokens), Path(val_sft)
    findings, budget = Findings(), TokenBudget(settings.tokens_per_batch)
    # All that can fail because of a mistake in the settings comes before a model is loaded.
    tasks = harness.load_tasks(settings.tasks, settings) if settings.tasks else {}
    endpoints = candidates.create_endpoints(settings)
    positions = rows.sample_rows(val_tokens, settings.max_samples, settings.seed)
    columns = _slice_columns(val_tokens, val_sft, positions, settings)
    models = describe(model_config, ft_result, load_in_4bit)
    answers = _read_prompts(val_tokens, val_sft, positions[: settings.generate_samples], models.tokenizer, findings)
    training = Path(train_tokens) if train_tokens else None
    requests = candidates.generation_requests(models, answers.prompts, training, settings, findings)
    answers.answers, writer = engine.generate_with_vllm(models, requests, settings.generation_engine, findings)
    model = models.load()
    with evaluation_mode(model):
        losses = loss.measure(model, val_tokens, positions, budget)
        if not answers.answers:
            answers.answers = candidates.generate_answers(model, models.tokenizer, requests, budget)
        task_metrics = harness.run_tasks(model, models.tokenizer, tasks, settings, findings.notes) if tasks else {}
    if answers.prompts:
        candidates.score_answers(answers, endpoints, settings, findings)
    labels = {"length": loss.length_buckets(losses.lengths), **columns}
    slices = comparison.compare_slices(losses, labels, settings.seed)
    metrics = _metrics(losses, slices, answers, settings) | task_metrics
    write_examples(eval_examples, losses, labels, answers)
    evaluation = Evaluation(
        comparison.round_metrics(metrics),
        slices,
        answers.samples(),
        findings.notes + budget.notes,
        findings.problems,
        str(models.dtype).removeprefix("torch."),
        writer,
        questions.read(val_sft),
    )
    page.write(eval_page, evaluation, losses, settings)
    return evaluation


def _slice_columns(val_tokens: Path, val_sft: Path, positions: Indices, settings: Settings) -> dict[str, list[str]]:
    """Returns the values of the columns of `slice_by`."""
    columns = split_names(settings.slice_by)
    if not columns:
        return {}
    # Tokenize drops rows, so that a position in val_tokens is not an index in val_sft.
    windows = rows.read_windows(val_tokens, positions)
    indices = np.concatenate([np.array([row["row"] for row in window], dtype=np.int64) for window in windows])
    return {column: rows.read_column(val_sft, column, indices) for column in columns}


def _read_prompts(val_tokens: Path, val_sft: Path, positions: Indices, tokenizer: Any, findings: Findings) -> AnswerSet:
    selected = [row for window in rows.read_windows(val_tokens, positions) for row in window]
    prompts = [rows.split_prompt(row, tokenizer) for row in selected if rows.ends_in_answer(row)]
    if len(prompts) < len(selected):
        findings.add_note(
            f"{len(selected) - len(prompts)} of {len(selected)} rows have no generated answers: max_length truncated "
            "their last answer, so there is no reference"
        )
    indices = np.array([prompt.row for prompt in prompts], dtype=np.int64)
    return AnswerSet(prompts, rows.read_column(val_sft, "prompt", indices))


def _metrics(
    losses: loss.Losses, slices: list[comparison.Slice], answers: AnswerSet, settings: Settings
) -> comparison.Metrics:
    metrics = comparison.loss_metrics(losses, settings.seed) | comparison.worst_slice(slices)
    metrics["generated_samples"] = len(answers.prompts)
    if answers.scores:
        metrics |= comparison.answer_metrics(answers.scores, settings.seed)
    if "served" in answers.answers:
        metrics["served_agreement"] = candidates.agreement(answers.answers["tuned"], answers.answers["served"])
    if answers.verdicts:
        metrics |= judge.judge_metrics(answers.verdicts, settings.seed)
    return metrics
