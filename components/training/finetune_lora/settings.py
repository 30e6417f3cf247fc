"""Settings of the Fine-Tune LoRA card."""

from typing import Literal

from pydantic import Field

from llm_finetune.components.shared.settings import CardSettings


class Settings(CardSettings):
    """Settings of the Fine-Tune LoRA card; `component.py` describes them."""

    num_epochs: int = Field(3, ge=1)
    batch_size: int = Field(4, ge=1)
    learning_rate: float = Field(2e-4, gt=0, lt=1)
    logging_steps: int = Field(10, ge=1)
    gradient_accumulation_steps: int = Field(1, ge=1)
    tokens_per_micro_batch: int = Field(16384, ge=1)
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    lr_scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    early_stopping_patience: int = Field(0, ge=0)
    checkpoint_folder: str = ""
    checkpoint_root: str = ""
    checkpoint_steps: int = Field(0, ge=0)
    gradient_checkpointing: Literal["on", "off", "auto"] = "auto"
    evaluate_first: bool = True
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    processes: int = Field(0, ge=0)
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    report_to: str = ""
    seed: int = 42
