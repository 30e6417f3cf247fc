"""Builds the trainer: model, adapter and training arguments."""

from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig, get_peft_model
from transformers import EarlyStoppingCallback, PretrainedConfig, PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig

from llm_finetune.components.shared.modeling.causal_lm import load_base
from llm_finetune.components.shared.modeling.padding import ensure_pad_token
from llm_finetune.components.training.finetune_lora.device import DevicePlan, plan_device
from llm_finetune.components.training.finetune_lora.distributed import is_main_process, world_size
from llm_finetune.components.training.finetune_lora.parallel import ParallelPlan, plan_parallelism
from llm_finetune.components.training.finetune_lora.settings import Settings
from llm_finetune.components.training.finetune_lora.trackers import validate_trackers
from llm_finetune.components.training.finetune_lora.trainer import CompletionTrainer, ProgressCallback
from llm_finetune.components.training.finetune_lora.varlen import VARLEN, register_varlen

EVAL_TOKENS_ON_CPU = 2048


def build_trainer(
    base_model: str | Path,
    lora_config: str | Path,
    config: PretrainedConfig,
    train: datasets.Dataset,
    validation: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
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
        validation: Validation token rows, with their `length`.
        tokenizer: The tokenizer of the rows.
        folder: Checkpoint folder.
        settings: The card's settings.
        packed: Whether rows contain several documents.
        load_in_4bit: Whether the frozen base is kept in NF4.

    Returns:
        The trainer, with a newly initialized adapter.

    Raises:
        UserError: If the settings conflict with each other or with the model.
    """
    torch.manual_seed(settings.seed)
    plan = plan_device(config, packed, settings.dtype)
    if plan.attention == VARLEN:
        register_varlen()
    adapter = LoraConfig.from_pretrained(str(lora_config))
    adapter.inference_mode = False
    longest = max(train["length"])
    micro, accumulation = micro_batches(longest, settings, packed)
    parallel = plan_parallelism(base_model, adapter, plan, settings, micro * longest, longest, load_in_4bit)
    device = f"cuda:{torch.cuda.current_device()}" if plan.device == "cuda" else plan.device
    shards = world_size() if parallel.sharded else 1
    model = load_base(base_model, plan.base_dtype, plan.attention, load_in_4bit, device, shards)
    if is_main_process():
        print("\n".join([*plan.reasons, *parallel.reasons]), flush=True)
    ensure_pad_token(tokenizer, model)
    trainer = CompletionTrainer(
        model=get_peft_model(model, adapter),
        args=_training_arguments(config, folder, settings, plan, parallel, micro, accumulation),
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        callbacks=[ProgressCallback()],
        plan=plan,
        eval_tokens=settings.tokens_per_micro_batch if plan.device == "cuda" else EVAL_TOKENS_ON_CPU,
    )
    trainer.remove_callback(PrinterCallback)
    if settings.early_stopping_patience:
        trainer.add_callback(EarlyStoppingCallback(settings.early_stopping_patience))
    return trainer


def _training_arguments(
    config: PretrainedConfig,
    folder: Path,
    settings: Settings,
    plan: DevicePlan,
    parallel: ParallelPlan,
    micro: int,
    accumulation: int,
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
        save_only_model=parallel.sharded,  # transformers requires it for FSDP; CompletionTrainer resets it
        load_best_model_at_end=settings.early_stopping_patience > 0,
        metric_for_best_model="eval_loss" if settings.early_stopping_patience else None,
        bf16=plan.autocast,
        gradient_checkpointing=parallel.checkpointing,
        ddp_find_unused_parameters=_has_experts(config),
        padding_free=plan.padding_free,
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        seed=settings.seed,
        data_seed=settings.seed,
        use_cpu=plan.device == "cpu",
        report_to=validate_trackers(settings.report_to) or "none",
        disable_tqdm=True,
        dataloader_pin_memory=plan.device == "cuda",
        remove_unused_columns=True,
    )


def micro_batches(longest: int, settings: Settings, packed: bool) -> tuple[int, int]:
    """Returns the rows per micro-batch and the micro-batches per optimizer step.

    Args:
        longest: Tokens of the longest row.
        settings: The card's settings.
        packed: Whether rows contain several documents; only then tokens_per_micro_batch applies.
    """
    rows_per_step = settings.batch_size * settings.gradient_accumulation_steps
    micro = min(rows_per_step, max(1, settings.tokens_per_micro_batch // longest)) if packed else settings.batch_size
    while rows_per_step % micro:
        micro -= 1
    return micro, rows_per_step // micro


def _has_experts(config: PretrainedConfig) -> bool:
    """Returns whether the model is a mixture of experts, in which an expert without tokens gets no gradient."""
    return bool(getattr(config.get_text_config(), "num_experts_per_tok", None))
