"""Fine-Tune LoRA: trains an adapter on token rows."""

import json
import math
import resource
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoTokenizer, EarlyStoppingCallback, GenerationConfig
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig

from llm_finetune.components.shared import tables
from llm_finetune.components.shared.card import PACKAGE_VERSION
from llm_finetune.components.shared.causal_lm import load_base
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.files import content_hash, whole_folder, write_text
from llm_finetune.components.shared.losses import IGNORED, has_plain_head
from llm_finetune.components.training.finetune_lora import checkpoints
from llm_finetune.components.training.finetune_lora.curve import write_curve
from llm_finetune.components.training.finetune_lora.device import DevicePlan, plan_device
from llm_finetune.components.training.finetune_lora.settings import Settings
from llm_finetune.components.training.finetune_lora.trainer import CompletionTrainer, ProgressCallback
from llm_finetune.components.training.finetune_lora.varlen import register_varlen

PARITY_ROWS = 16


@dataclass(frozen=True)
class TrainFacts:
    """What a training came to.

    Attributes:
        train_loss: Mean loss per trained token over the last tenth of the steps, in nats.
        val_loss: Loss per trained token over all validation rows of the adapter that is kept, in nats.
        epochs: Passes over the training rows.
        steps: Optimizer steps.
        tokens_per_second: Real tokens trained per second, padding not counted.
        peak_memory_gib: Peak GPU memory, or the process's peak memory on a CPU.
        train_seconds: Wall time of the training loop.
        resumed_from_step: Step of the checkpoint that the training went on from; 0 for a fresh start.
    """

    train_loss: float
    val_loss: float
    epochs: float
    steps: int
    tokens_per_second: float
    peak_memory_gib: float
    train_seconds: float
    resumed_from_step: int


def finetune_lora(
    model_config: str | Path,
    lora_config: str | Path,
    train_tokens: str | Path,
    val_tokens: str | Path,
    ft_result: str | Path,
    loss_curve: str | Path,
    settings: Settings,
    load_in_4bit: bool = False,
    fingerprint: dict[str, Any] | None = None,
) -> TrainFacts:
    """Trains the adapter and writes it with everything that serving needs.

    Args:
        model_config: Folder of the base model or its reference.
        lora_config: Folder with PEFT's adapter_config.json.
        train_tokens: Token rows to train on.
        val_tokens: Token rows to measure on, one document each.
        ft_result: Folder to write: adapter, tokenizer, generation config, rows for the merge's parity check.
        loss_curve: HTML page to write.
        settings: The card's settings.
        load_in_4bit: Whether the frozen base is kept in NF4.
        fingerprint: Hashes of the inputs; with the settings they decide which checkpoints may be resumed.

    Returns:
        The facts.

    Raises:
        UserError: If the inputs do not fit each other, or the loss is not finite.
    """
    packed = "seq_lengths" in tables.schema(train_tokens).names
    config = AutoConfig.from_pretrained(model_config, trust_remote_code=False)
    with tempfile.TemporaryDirectory(prefix="finetune-") as scratch:
        folder = Path(settings.checkpoint_folder or Path(scratch) / "checkpoints")
        own = {
            "package_version": PACKAGE_VERSION,
            **(fingerprint or {}),
            **_deciding(settings),
            "load_in_4bit": load_in_4bit,
        }
        checkpoints.claim(folder, own)
        train, validation = (_rows(path, Path(scratch)) for path in (train_tokens, val_tokens))
        tokenizer = AutoTokenizer.from_pretrained(Path(train_tokens) / "tokenizer", trust_remote_code=False)
        resumed = _resume_point(folder)
        trainer = _trainer(
            model_config, lora_config, config, train, validation, tokenizer, folder, settings, packed, load_in_4bit
        )
        trainer.args.eval_on_start = settings.evaluate_first and resumed is None
        started = time.monotonic()
        trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
        seconds = time.monotonic() - started
        history = trainer.state.log_history
        _write_result(Path(ft_result), trainer, tokenizer, config, Path(val_tokens), load_in_4bit)
    validation_losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    facts = TrainFacts(
        train_loss=_settled_loss(history),
        val_loss=float(trainer.state.best_metric or 0.0) if settings.early_stopping_patience else validation_losses[-1],
        epochs=round(trainer.state.epoch or 0.0, 4),
        steps=trainer.state.global_step,
        tokens_per_second=round(trainer.tokens_seen / seconds, 1),
        peak_memory_gib=round(_peak_memory_gib(), 3),
        train_seconds=round(seconds, 1),
        resumed_from_step=int(resumed.name.rpartition("-")[2]) if resumed else 0,
    )
    if not all(math.isfinite(loss) for loss in (facts.train_loss, facts.val_loss)):
        raise UserError(
            f"the training diverged: train loss {facts.train_loss}, validation loss {facts.val_loss}. "
            f"Lower learning_rate (it was {settings.learning_rate})"
        )
    write_curve(loss_curve, history, facts, settings)
    return facts


def _deciding(settings: Settings) -> dict[str, Any]:
    return settings.model_dump(exclude={"checkpoint_folder", "logging_steps"})


def _rows(path: str | Path, cache: Path) -> datasets.Dataset:
    files = [str(file) for file in tables.shards(path)]
    rows = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(cache / Path(path).name))
    lengths = [len(ids) for batch in tables.batches(path, ["input_ids"]) for ids in batch["input_ids"]]
    return rows.add_column("length", lengths)


def _trainer(
    model_config: str | Path,
    lora_config: str | Path,
    config: Any,
    train: datasets.Dataset,
    validation: datasets.Dataset,
    tokenizer: Any,
    folder: Path,
    settings: Settings,
    packed: bool,
    load_in_4bit: bool,
) -> CompletionTrainer:
    torch.manual_seed(settings.seed)
    plan = plan_device(config, packed, settings.dtype, plain_head=True)
    if plan.attention == "varlen":
        register_varlen()
    model = load_base(model_config, plan.base_dtype, plan.attention, load_in_4bit)
    if not has_plain_head(model):
        plan = plan_device(config, packed, settings.dtype, plain_head=False)
    print("\n".join(plan.reasons), flush=True)
    adapter = LoraConfig.from_pretrained(str(lora_config))
    adapter.inference_mode = False
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    trainer = CompletionTrainer(
        model=get_peft_model(model, adapter),
        args=_training_arguments(train, folder, settings, plan, packed),
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        callbacks=[ProgressCallback()],
        plan=plan,
        eval_tokens=settings.tokens_per_micro_batch if plan.device == "cuda" else 2048,
    )
    trainer.remove_callback(PrinterCallback)
    if settings.early_stopping_patience:
        trainer.add_callback(EarlyStoppingCallback(settings.early_stopping_patience))
    return trainer


def _training_arguments(
    train: datasets.Dataset, folder: Path, settings: Settings, plan: DevicePlan, packed: bool
) -> SFTConfig:
    rows_per_step = settings.batch_size * settings.gradient_accumulation_steps
    longest = max(train["length"])
    micro = min(rows_per_step, max(1, settings.tokens_per_micro_batch // longest)) if packed else settings.batch_size
    while rows_per_step % micro:
        micro -= 1
    save_steps: dict[str, Any] = (
        {"save_strategy": "steps", "save_steps": settings.checkpoint_steps}
        if settings.checkpoint_steps
        else {"save_strategy": "epoch"}
    )
    return SFTConfig(
        output_dir=str(folder),
        num_train_epochs=settings.num_epochs,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=rows_per_step // micro,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler,
        warmup_steps=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        logging_steps=settings.logging_steps,
        eval_strategy=save_steps["save_strategy"],
        eval_steps=settings.checkpoint_steps or None,
        **save_steps,
        save_total_limit=2,
        load_best_model_at_end=settings.early_stopping_patience > 0,
        metric_for_best_model="eval_loss" if settings.early_stopping_patience else None,
        bf16=plan.autocast,
        gradient_checkpointing=settings.gradient_checkpointing == "on",
        padding_free=plan.padding_free,
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        seed=settings.seed,
        data_seed=settings.seed,
        use_cpu=plan.device == "cpu",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=plan.device == "cuda",
        remove_unused_columns=True,
    )


def _resume_point(folder: Path) -> Path | None:
    checkpoint, torn = checkpoints.latest_whole(folder)
    for path in torn:
        print(f"{path} is torn (the process was stopped while it was written): passed over", flush=True)
        shutil.rmtree(path)
    if checkpoint:
        print(f"resuming from {checkpoint}", flush=True)
    return checkpoint


def _settled_loss(history: list[dict[str, Any]]) -> float:
    losses = [entry["loss"] for entry in history if "loss" in entry]
    settled = losses[-max(len(losses) // 10, 1) :]
    whole = next((entry["train_loss"] for entry in reversed(history) if "train_loss" in entry), math.nan)
    return float(sum(settled) / len(settled) if settled else whole)


def _write_result(
    ft_result: Path, trainer: CompletionTrainer, tokenizer: Any, config: Any, val_tokens: Path, load_in_4bit: bool
) -> None:
    with whole_folder(ft_result) as folder:
        trainer.model.save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)
        ends = _end_tokens(tables.head(val_tokens, PARITY_ROWS).to_pylist(), tokenizer, config)
        GenerationConfig(
            bos_token_id=tokenizer.bos_token_id, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id
        ).save_pretrained(folder)
        rows = tables.head(val_tokens, PARITY_ROWS).select(["input_ids", "labels"]).to_pylist()
        write_text(folder / "parity_prompts.json", json.dumps(rows))
        write_text(folder / "training.json", json.dumps({"load_in_4bit": load_in_4bit}))


def _end_tokens(rows: list[dict[str, Any]], tokenizer: Any, config: Any) -> list[int]:
    """Returns every token that ends a turn: the tokenizer's, the base's own, and the one the completions end with."""
    own = config.get_text_config().eos_token_id
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
    ends |= {row["labels"][-1] for row in rows if row["labels"][-1] in tokenizer.all_special_ids}
    return sorted(end for end in ends if end is not None and end != IGNORED)


def _peak_memory_gib() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def result_metadata(ft_result: str | Path, facts: TrainFacts) -> dict[str, Any]:
    """Returns the metadata of the adapter artifact."""
    return {**vars(facts), "content_hash": content_hash(ft_result)}
