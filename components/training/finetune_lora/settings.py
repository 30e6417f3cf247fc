"""Settings of the Fine-Tune LoRA card."""

from typing import Literal

from pydantic import Field

from llm_finetune.components.shared.name_lists import NameList
from llm_finetune.components.shared.settings import CardSettings


class Settings(CardSettings):
    """Settings of the Fine-Tune LoRA card."""

    num_epochs: int = Field(default=3, ge=1, description="Number of passes over the training rows.")
    batch_size: int = Field(
        default=4,
        ge=1,
        description="Rows per optimizer step and GPU, before accumulation; with n GPUs a step has n times as many, "
        "and learning_rate is not scaled. Packed rows contain several documents.",
    )
    learning_rate: float = Field(default=2e-4, gt=0, lt=1, description="Peak learning rate.")
    logging_steps: int = Field(default=10, ge=1, description="Optimizer steps between two log entries.")
    gradient_accumulation_steps: int = Field(
        default=1, ge=1, description="Multiplies the rows per optimizer step, without more memory."
    )
    tokens_per_micro_batch: int = Field(
        default=16384,
        ge=1,
        description="Maximum tokens per micro-batch of packed rows; does not change the result.",
    )
    warmup_ratio: float = Field(
        default=0.03, ge=0, lt=1, description="Share of the steps with linear warmup of the learning rate."
    )
    lr_scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup"] = Field(
        default="cosine", description="Learning rate schedule: cosine, linear, constant or constant_with_warmup."
    )
    weight_decay: float = Field(default=0.0, ge=0, description="Weight decay of AdamW.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Maximum norm of the gradients (gradient clipping).")
    early_stopping_patience: int = Field(
        default=0,
        ge=0,
        description="Number of validations without a better loss after which the training stops and keeps the best "
        "adapter; 0 to disable.",
    )
    checkpoint_folder: str = Field(
        default="",
        description="Folder on a volume, or URI in an object store (s3://, gs://) that every checkpoint is uploaded "
        "to. Training resumes from the latest checkpoint there, and refuses checkpoints of other data, another model "
        "or other settings. Empty for none.",
    )
    checkpoint_root: str = Field(
        default="",
        description="Folder on a volume, used if checkpoint_folder is empty: each training has a subfolder there, "
        "named by a hash of data, model and settings.",
    )
    checkpoint_steps: int = Field(
        default=0, ge=0, description="Optimizer steps between checkpoints and validations; 0 for once per epoch."
    )
    gradient_checkpointing: Literal["on", "off", "auto"] = Field(
        default="auto",
        description="on saves memory and takes about a third more time; off is faster if the training fits; auto is "
        "off if the estimate fits the GPU's free memory.",
    )
    evaluate_first: bool = Field(
        default=True, description="Whether to compute the validation loss before the first step as well."
    )
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        default="auto", description="Precision of matrix products: auto, bfloat16 or float32."
    )
    processes: int = Field(
        default=0,
        ge=0,
        description="Number of processes, one per GPU; 0 for all GPUs of the pod, or one process without a GPU.",
    )
    parallel: Literal["auto", "ddp", "fsdp"] = Field(
        default="auto",
        description="How several processes share the model: ddp, all weights on each GPU; fsdp, the frozen weights "
        "sharded over the GPUs; auto, ddp if the model fits.",
    )
    report_to: NameList = Field(
        default="",
        description="Trackers, separated by commas or as a list: mlflow (needs the variable MLFLOW_TRACKING_URI), "
        "wandb (WANDB_API_KEY).",
    )
    seed: int = Field(default=42, description="Seed of the adapter's initialization, dropout and the order of rows.")
