"""Tasks of lm-evaluation-harness, run on the base and the tuned model."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.utils.memory import clear_device_cache

from llm_finetune.components.evaluation.evaluate.adapter import adapted
from llm_finetune.components.evaluation.evaluate.batching import is_out_of_memory
from llm_finetune.components.evaluation.evaluate.loss import MODELS
from llm_finetune.components.evaluation.evaluate.settings import Settings
from llm_finetune.components.shared.errors import UserError, nearest
from llm_finetune.components.shared.settings import split_names

ROWS_AT_ONCE = 16
BOOTSTRAPS = 1000


def load_tasks(tasks: str, settings: Settings, manager: Any = None) -> dict[str, Any]:
    """Finds and loads tasks, their data included, so that a mistake costs no model time.

    Args:
        tasks: Names of the harness's tasks, groups or tags, and paths of YAML files, separated by commas.
        settings: Few-shot examples of the tasks.
        manager: A `TaskManager`; by default one of all tasks that come with the harness, where one is needed.

    Returns:
        The harness's `tasks`, `groups` and `group_map`.

    Raises:
        UserError: If the harness is not installed, or a task is unknown, damaged or cannot be fetched.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise UserError(
            f"tasks = {tasks!r} needs lm-evaluation-harness: install the extra llm-finetune[tasks]"
        ) from None
    wanted = split_names(tasks)
    files = [name for name in wanted if Path(name).suffix in (".yaml", ".yml")]
    # Reading the index of all tasks takes many seconds.
    manager = manager or TaskManager(include_defaults=files != wanted)
    for name in wanted:
        if name in files and not Path(name).is_file():
            raise UserError(f"tasks = {tasks!r}: there is no file {name}")
        if name not in files and name not in manager.task_index:
            raise UserError(
                f"tasks = {tasks!r}: lm-evaluation-harness has no task {name!r}{nearest(name, manager.all_tasks)}"
            )
    try:
        loaded = manager.load(wanted)
    except Exception as error:  # whatever a task's file, code or data set raises
        raise UserError(f"tasks = {tasks!r} could not be loaded: {type(error).__name__}: {error}") from error
    for task in loaded["tasks"].values():
        own = task.get_config("num_fewshot")
        # 0 in a task's file means that the task makes no sense with examples.
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
        tokenizer: Its tokenizer.
        loaded: What `load_tasks` returned.
        settings: Limit and chat template of the tasks.
        notes: Takes a sentence when memory ran out.

    Returns:
        Figures `task.<task>.base`, `.tuned`, `.drop` and `.stderr` of each task's first metric, and
        `task.<task>.<metric>.base` … of every metric; of a group, not of its members.
    """
    results = {}
    rows = ROWS_AT_ONCE
    for name in MODELS:
        with adapted(model, tuned=name == "tuned"):
            results[name], rows = _run(model, tokenizer, loaded, settings, rows, notes)
    members = {member for group in loaded["group_map"].values() for member in group}
    figures: dict[str, float] = {}
    for task in results["base"]["results"]:
        if task not in members:
            figures |= _figures(task, results["base"], results["tuned"])
    return figures


def _run(
    model: Any, tokenizer: Any, loaded: dict[str, Any], settings: Settings, rows: int, notes: list[str]
) -> tuple[Mapping[str, Any], int]:
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    while True:
        try:
            found = evaluate(
                lm=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=rows),
                task_dict=loaded,
                limit=settings.task_limit or None,
                apply_chat_template=settings.task_chat_template,
                fewshot_as_multiturn=settings.task_chat_template,
                log_samples=False,
                bootstrap_iters=BOOTSTRAPS,
            )
            return found, rows
        except ValueError as error:  # a task that runs code, or one for another kind of model
            raise UserError(f"the tasks cannot be run: {error}") from error
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or rows == 1:
                raise
            notes.append(f"tasks: out of memory with {rows} rows at once, going on with {rows // 2}")
        rows //= 2
        clear_device_cache(garbage_collection=True)


def _figures(task: str, base: Mapping[str, Any], tuned: Mapping[str, Any]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for key, score in base["results"][task].items():
        metric, _, filtered = key.partition(",")
        if not filtered or metric.endswith("_stderr") or not _is_number(score):
            continue
        pair = [score, tuned["results"][task][key]]
        errors = [one["results"][task].get(f"{metric}_stderr,{filtered}") for one in (base, tuned)]
        higher = base.get("higher_is_better", {}).get(task, {}).get(metric, True)
        name = metric if filtered == "none" else f"{metric}_{filtered}"
        parts = {"base": pair[0], "tuned": pair[1], "drop": pair[0] - pair[1] if higher else pair[1] - pair[0]}
        if all(map(_is_number, errors)):
            parts["stderr"] = math.hypot(*errors)
        for part, value in parts.items():
            if _is_number(value):
                figures[f"task.{task}.{name}.{part}"] = float(value)
                figures.setdefault(f"task.{task}.{part}", float(value))
    return figures


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
