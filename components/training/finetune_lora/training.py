"""The training in one process: the only one, or one of several."""

import math
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import AutoConfig, AutoTokenizer

from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError, first_line
from llm_finetune.components.training.finetune_lora.build import build_trainer
from llm_finetune.components.training.finetune_lora.curve import write_curve
from llm_finetune.components.training.finetune_lora.distributed import is_main_process
from llm_finetune.components.training.finetune_lora.job import Job, TrainFacts
from llm_finetune.components.training.finetune_lora.remote import RemoteCheckpoints
from llm_finetune.components.training.finetune_lora.result import write_result
from llm_finetune.components.training.finetune_lora.trackers import tensorboard
from llm_finetune.components.training.finetune_lora.trainer import CompletionTrainer


def train(job: Job) -> TrainFacts:
    """Trains; the main process writes the results.

    Args:
        job: Inputs of the training.

    Returns:
        Facts about the training, the same in every process.

    Raises:
        UserError: If the inputs do not match each other, or the loss is not finite.
    """
    config = AutoConfig.from_pretrained(job.base_model, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(job.train_tokens / "tokenizer", trust_remote_code=False)
    trainer = build_trainer(
        job.base_model,
        job.lora_config,
        config,
        _rows(job.train_tokens, job.scratch),
        _rows(job.val_tokens, job.scratch),
        tokenizer,
        job.checkpoints,
        job.settings,
        "seq_lengths" in tables.schema(job.train_tokens).names,
        job.load_in_4bit,
    )
    trainer.args.eval_on_start = job.settings.evaluate_first and job.resume_from is None
    if is_main_process() and job.training_logs:
        trainer.add_callback(tensorboard(job.training_logs))
    if is_main_process() and job.remote_checkpoints:
        trainer.add_callback(RemoteCheckpoints(job.remote_checkpoints))
    started = time.monotonic()
    with _explain_out_of_memory():
        trainer.train(resume_from_checkpoint=str(job.resume_from) if job.resume_from else None)
    facts = _facts(job, trainer, time.monotonic() - started)
    if is_main_process():
        write_result(job.ft_result, trainer.model, tokenizer, config, job.val_tokens, job.load_in_4bit)
        write_curve(job.loss_curve, trainer.state.log_history, facts, job.settings)
    return facts


@contextmanager
def _explain_out_of_memory() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the GPU's memory ran out in training ({first_line(error)}). Lower tokens_per_micro_batch, or batch_size "
            "where rows are not packed; set gradient_checkpointing = on or load_in_4bit = true; lower max_length; or "
            "use a larger GPU. Apply LoRA's page shows the memory estimate"
        ) from error


def _rows(path: Path, cache: Path) -> datasets.Dataset:
    files = [str(file) for file in tables.shards(path)]
    rows = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(cache / path.name))
    lengths = [len(ids) for batch in tables.batches(path, ["input_ids"]) for ids in batch["input_ids"]]
    return rows.add_column("length", lengths)


def _facts(job: Job, trainer: CompletionTrainer, seconds: float) -> TrainFacts:
    history, best = trainer.state.log_history, trainer.state.best_metric
    validation = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    facts = TrainFacts(
        train_loss=_final_train_loss(history),
        val_loss=float(best or 0.0) if job.settings.early_stopping_patience else validation[-1],
        epochs=round(trainer.state.epoch or 0.0, 4),
        steps=trainer.state.global_step,
        tokens_per_second=round(trainer.sum_over_processes(trainer.tokens_seen) / seconds, 1),
        peak_memory_gib=round(trainer.max_over_processes(_peak_memory_gib()), 3),
        train_seconds=round(seconds, 1),
        resumed_from_step=int(job.resume_from.name.rpartition("-")[2]) if job.resume_from else 0,
        processes=trainer.accelerator.num_processes,
    )
    if not all(math.isfinite(loss) for loss in (facts.train_loss, facts.val_loss)):
        raise UserError(
            f"the training diverged: train loss {facts.train_loss}, validation loss {facts.val_loss}. "
            f"Lower learning_rate (now {job.settings.learning_rate})"
        )
    return facts


def _final_train_loss(history: list[dict[str, Any]]) -> float:
    """Returns the mean loss over the last tenth of the log entries, or over the training if there are none."""
    losses = [entry["loss"] for entry in history if "loss" in entry]
    last = losses[-max(len(losses) // 10, 1) :]
    overall = next((entry["train_loss"] for entry in reversed(history) if "train_loss" in entry), math.nan)
    return float(sum(last) / len(last) if last else overall)


def _peak_memory_gib() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
