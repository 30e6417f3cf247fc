"""Settings of the Fine-Tune LoRA card."""

from typing import Literal

from pydantic import Field

from llm_finetune.components.shared.settings import CardSettings


class Settings(CardSettings):
    """Settings of the Fine-Tune LoRA card; `component.py` describes them."""

    num_epochs: int = Field(default=3, ge=1, description="Passes over the training rows.")
    batch_size: int = Field(
        default=4,
        ge=1,
        description="Rows per optimizer step and GPU, before accumulation; n GPUs take n times as many, and "
        "learning_rate stays as it is. Packed rows hold several documents.",
    )
    learning_rate: float = Field(default=2e-4, gt=0, lt=1, description="Peak learning rate.")
    logging_steps: int = Field(default=10, ge=1, description="Optimizer steps between two points of the curve.")
    gradient_accumulation_steps: int = Field(
        default=1, ge=1, description="Multiplies the rows per optimizer step without more memory."
    )
    tokens_per_micro_batch: int = Field(
        default=16384,
        ge=1,
        description="Most tokens of packed rows sent through the model at once; the result does not change.",
    )
    warmup_ratio: float = Field(
        default=0.03, ge=0, lt=1, description="Share of the steps over which the learning rate rises."
    )
    lr_scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup"] = Field(
        default="cosine", description="Course of the learning rate: cosine, linear, constant or constant_with_warmup."
    )
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's weight decay.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradients are scaled down to this norm.")
    early_stopping_patience: int = Field(
        default=0,
        ge=0,
        description="Stop after so many validations without a better loss and keep the best; 0 never stops.",
    )
    checkpoint_folder: str = Field(
        default="",
        description="Folder that outlives the pod, or a place in an object store (s3://, gs://) that a copy of "
        "every checkpoint is sent to; training resumes from its latest checkpoint, and refuses those of other data, "
        "another model or other settings. Empty keeps none.",
    )
    checkpoint_root: str = Field(
        default="",
        description="Where no checkpoint_folder is given, folder that outlives the pod and holds one of its own for "
        "every training, named after data, model and settings.",
    )
    checkpoint_steps: int = Field(
        default=0, ge=0, description="Optimizer steps between checkpoints and validations; 0 means once per epoch."
    )
    gradient_checkpointing: Literal["on", "off", "auto"] = Field(
        default="auto",
        description="on saves memory for about a third more computing; off is faster where it fits; auto takes off "
        "where the estimate fits the GPU's free memory.",
    )
    evaluate_first: bool = Field(default=True, description="Measure the validation loss before the first step too.")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        default="auto", description="Precision of matrix products: auto, bfloat16 or float32."
    )
    processes: int = Field(
        default=0,
        ge=0,
        description="Processes that train, one per GPU; 0 takes all GPUs of the pod, or one process where there is "
        "none.",
    )
    parallel: Literal["auto", "ddp", "fsdp"] = Field(
        default="auto",
        description="How several processes share the model: ddp, all weights on each GPU; fsdp, the frozen weights "
        "divided between them; auto, ddp where the model fits.",
    )
    report_to: str = Field(
        default="",
        description="Trackers to report to, mlflow (variable MLFLOW_TRACKING_URI) and wandb (WANDB_API_KEY), "
        "separated by commas.",
    )
    seed: int = Field(default=42, description="Seed of the adapter's initial weights, dropout and the order of rows.")
