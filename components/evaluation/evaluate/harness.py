"""Runs tasks of lm-evaluation-harness on the base and the tuned model."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from accelerate.utils.memory import clear_device_cache

from llm_finetune.components.evaluation.evaluate.adapter import use_adapter
from llm_finetune.components.evaluation.evaluate.batching import is_out_of_memory
from llm_finetune.components.evaluation.evaluate.loss import MODELS
from llm_finetune.components.evaluation.evaluate.settings import Settings
from llm_finetune.components.shared.errors import UserError, nearest
from llm_finetune.components.shared.settings import split_names

BATCH_SIZE = 16
BOOTSTRAP_RESAMPLES = 1000


def load_tasks(tasks: str, settings: Settings, manager: Any = None) -> dict[str, Any]:
    """Loads tasks and their data. Called before any model is loaded, so that a mistake is found early.

    Args:
        tasks: Names of the harness's tasks, groups or tags, and paths of YAML files, separated by commas.
        settings: Settings of the card.
        manager: A `TaskManager`; by default one that indexes the harness's own tasks if any of them is used.

    Returns:
        The harness's `tasks`, `groups` and `group_map`.

    Raises:
        UserError: If the harness is not installed, or a task is unknown, invalid or cannot be downloaded.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise UserError(
            f"tasks = {tasks!r} needs lm-evaluation-harness: install the extra llm-finetune[tasks]"
        ) from None
    names = split_names(tasks)
    files = [name for name in names if Path(name).suffix in (".yaml", ".yml")]
    # Indexing all tasks of the harness takes many seconds.
    manager = manager or TaskManager(include_defaults=files != names)
    for name in names:
        if name in files and not Path(name).is_file():
            raise UserError(f"tasks = {tasks!r}: there is no file {name}")
        if name not in files and name not in manager.task_index:
            raise UserError(
                f"tasks = {tasks!r}: lm-evaluation-harness has no task {name!r}{nearest(name, manager.all_tasks)}"
            )
    try:
        loaded = manager.load(names)
    except Exception as error:  # a task's file, code and data set may raise anything
        raise UserError(f"tasks = {tasks!r} could not be loaded: {type(error).__name__}: {error}") from error
    for task in loaded["tasks"].values():
        own = task.get_config("num_fewshot")
        # 0 in a task's file means that the task must not have examples.
        examples = own or 0 if own == 0 or settings.task_few_shot < 0 else settings.task_few_shot
        task.set_config(key="num_fewshot", value=examples)
        task.set_fewshot_seed(seed=settings.seed)
    return dict(loaded)


def run_tasks(
    model: Any, tokenizer: Any, loaded: dict[str, Any], settings: Settings, notes: list[str]
) -> dict[str, float]:
    """Runs tasks with and without the adapter.

    Args:
        model: PEFT model in evaluation mode.
        tokenizer: Tokenizer of the model.
        loaded: Result of `load_tasks`.
        settings: Settings of the card.
        notes: Receives a note when memory runs out.

    Returns:
        Metrics `task.<task>.base`, `.tuned`, `.drop` and `.stderr` of each task's first metric, and
        `task.<task>.<metric>.base` … of every metric; for a group, not for its members.
    """
    results = {}
    batch_size = BATCH_SIZE
    for name in MODELS:
        with use_adapter(model, enabled=name == "tuned"):
            results[name], batch_size = _run(model, tokenizer, loaded, settings, batch_size, notes)
    members = {member for group in loaded["group_map"].values() for member in group}
    metrics: dict[str, float] = {}
    for task in results["base"]["results"]:
        if task not in members:
            metrics |= _task_metrics(task, results["base"], results["tuned"])
    return metrics


def _run(
    model: Any, tokenizer: Any, loaded: dict[str, Any], settings: Settings, batch_size: int, notes: list[str]
) -> tuple[Mapping[str, Any], int]:
    """Returns the harness's results and the batch size that fits into memory."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    while True:
        try:
            results = evaluate(
                lm=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
                task_dict=loaded,
                limit=settings.task_limit or None,
                apply_chat_template=settings.task_chat_template,
                fewshot_as_multiturn=settings.task_chat_template,
                log_samples=False,
                bootstrap_iters=BOOTSTRAP_RESAMPLES,
            )
            return results, batch_size
        except ValueError as error:  # a task that executes code, or one for another type of model
            raise UserError(f"the tasks cannot be run: {error}") from error
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or batch_size == 1:
                raise
            notes.append(f"tasks: out of memory with a batch size of {batch_size}, continuing with {batch_size // 2}")
        batch_size //= 2
        clear_device_cache(garbage_collection=True)


def _task_metrics(task: str, base: Mapping[str, Any], tuned: Mapping[str, Any]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for key, score in base["results"][task].items():
        metric, _, filter_name = key.partition(",")
        if not filter_name or metric.endswith("_stderr") or not _is_finite(score):
            continue
        other = tuned["results"][task][key]
        errors = [results["results"][task].get(f"{metric}_stderr,{filter_name}") for results in (base, tuned)]
        higher_is_better = base.get("higher_is_better", {}).get(task, {}).get(metric, True)
        name = metric if filter_name == "none" else f"{metric}_{filter_name}"
        parts = {"base": score, "tuned": other, "drop": score - other if higher_is_better else other - score}
        if all(map(_is_finite, errors)):
            parts["stderr"] = math.hypot(*errors)
        for part, value in parts.items():
            if _is_finite(value):
                metrics[f"task.{task}.{name}.{part}"] = float(value)
                metrics.setdefault(f"task.{task}.{part}", float(value))
    return metrics


def _is_finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)
