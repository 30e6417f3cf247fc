"""Builds the trainer: model, adapter, arguments."""

from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig, get_peft_model
from transformers import EarlyStoppingCallback
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig

from llm_finetune.components.shared.modeling.causal_lm import load_base
from llm_finetune.components.shared.modeling.losses import has_plain_head
from llm_finetune.components.shared.modeling.padding import ensure_pad_token
from llm_finetune.components.training.finetune_lora.device import DevicePlan, plan_device
from llm_finetune.components.training.finetune_lora.parallel import (
    ParallelPlan,
    is_main_process,
    plan_parallelism,
    world_size,
)
from llm_finetune.components.training.finetune_lora.settings import Settings
from llm_finetune.components.training.finetune_lora.trackers import trackers
from llm_finetune.components.training.finetune_lora.trainer import CompletionTrainer, ProgressCallback
from llm_finetune.components.training.finetune_lora.varlen import register_varlen

EVAL_TOKENS_CPU = 2048


def build_trainer(
    base_model: str | Path,
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
    """Builds the trainer of this process.

    Args:
        base_model: Folder of the base model or its reference.
        lora_config: Folder with PEFT's adapter_config.json.
        config: The base model's configuration.
        train: Token rows to train on, with their `length`.
        validation: Token rows to measure on, with their `length`.
        tokenizer: The tokenizer of the rows.
        folder: Checkpoint folder.
        settings: The card's settings.
        packed: Whether rows hold several documents.
        load_in_4bit: Whether the frozen base is kept in NF4.

    Returns:
        The trainer, its adapter freshly made.

    Raises:
        UserError: If the settings exclude each other or what the model can do.
    """
    torch.manual_seed(settings.seed)
    plan = plan_device(config, packed, settings.dtype, plain_head=True)
    if plan.attention == "varlen":
        register_varlen()
    adapter = LoraConfig.from_pretrained(str(lora_config))
    adapter.inference_mode = False
    longest = max(train["length"])
    micro, accumulation = micro_batches(longest, settings, packed)
    layout = plan_parallelism(base_model, adapter, plan, settings, micro * longest, longest, load_in_4bit)
    parts = world_size() if layout.sharded else 1
    model = load_base(base_model, plan.base_dtype, plan.attention, load_in_4bit, _device(), parts)
    if not has_plain_head(model):
        plan = plan_device(config, packed, settings.dtype, plain_head=False)
    if is_main_process():
        print("\n".join([*plan.reasons, *layout.reasons]), flush=True)
    ensure_pad_token(tokenizer, model)
    trainer = CompletionTrainer(
        model=get_peft_model(model, adapter),
        args=_training_arguments(config, folder, settings, plan, layout, micro, accumulation),
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        callbacks=[ProgressCallback()],
        plan=plan,
        eval_tokens=settings.tokens_per_micro_batch if plan.device == "cuda" else EVAL_TOKENS_CPU,
    )
    trainer.remove_callback(PrinterCallback)
    if settings.early_stopping_patience:
        trainer.add_callback(EarlyStoppingCallback(settings.early_stopping_patience))
    return trainer


def _device() -> str:
    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"


def _training_arguments(
    config: Any, folder: Path, settings: Settings, plan: DevicePlan, layout: ParallelPlan, micro: int, accumulation: int
) -> SFTConfig:
    save_steps: dict[str, Any] = (
        {"save_strategy": "steps", "save_steps": settings.checkpoint_steps}
        if settings.checkpoint_steps
        else {"save_strategy": "epoch"}
    )
    return SFTConfig(
        output_dir=str(folder),
        num_train_epochs=settings.num_epochs,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
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
        save_only_model=layout.sharded,  # transformers insists on it there; CompletionTrainer takes it back
        load_best_model_at_end=settings.early_stopping_patience > 0,
        metric_for_best_model="eval_loss" if settings.early_stopping_patience else None,
        bf16=plan.autocast,
        gradient_checkpointing=layout.checkpointing,
        ddp_find_unused_parameters=_skips_experts(config),
        padding_free=plan.padding_free,
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        seed=settings.seed,
        data_seed=settings.seed,
        use_cpu=plan.device == "cpu",
        report_to=trackers(settings.report_to) or "none",
        disable_tqdm=True,
        dataloader_pin_memory=plan.device == "cuda",
        remove_unused_columns=True,
    )


def micro_batches(longest: int, settings: Settings, packed: bool) -> tuple[int, int]:
    """Returns the rows that go through the model at once, and how often per optimizer step.

    Args:
        longest: Tokens of the longest row.
        settings: The card's settings.
        packed: Whether rows hold several documents; only then are their tokens bounded.
    """
    rows_per_step = settings.batch_size * settings.gradient_accumulation_steps
    micro = min(rows_per_step, max(1, settings.tokens_per_micro_batch // longest)) if packed else settings.batch_size
    while rows_per_step % micro:
        micro -= 1
    return micro, rows_per_step // micro


def _skips_experts(config: Any) -> bool:
    """Tells whether a step may leave an adapter without a gradient: a mixture's experts that no token visits."""
    return bool(getattr(config.get_text_config(), "num_experts_per_tok", None))
