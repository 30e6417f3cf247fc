"""Inputs and facts of a training, passed between processes as JSON."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from llm_finetune.components.training.finetune_lora.settings import Settings


class Job(BaseModel):
    """Inputs of a training, the same in every process.

    Attributes:
        base_model: Folder of the base model or its reference.
        lora_config: Folder with PEFT's adapter_config.json.
        train_tokens: Token rows to train on.
        val_tokens: Validation token rows, one document each.
        ft_result: Folder to write.
        loss_curve: HTML page to write.
        training_logs: Folder for TensorBoard's event files; None for none.
        checkpoints: Checkpoint folder.
        remote_checkpoints: URI in an object store for a copy of that folder; empty for none.
        resume_from: Checkpoint to resume from; None to start from the beginning.
        scratch: Folder that exists during the training.
        settings: The card's settings.
        load_in_4bit: Whether the frozen base is kept in NF4.
    """

    model_config = ConfigDict(frozen=True)

    base_model: Path
    lora_config: Path
    train_tokens: Path
    val_tokens: Path
    ft_result: Path
    loss_curve: Path
    training_logs: Path | None
    checkpoints: Path
    remote_checkpoints: str
    resume_from: Path | None
    scratch: Path
    settings: Settings
    load_in_4bit: bool


@dataclass(frozen=True)
class TrainFacts:
    """Facts about a training.

    Attributes:
        train_loss: Mean loss per trained token over the last tenth of the steps, in nats.
        val_loss: Loss per trained token over all validation rows, of the adapter that is saved, in nats.
        epochs: Passes over the training rows.
        steps: Optimizer steps.
        tokens_per_second: Tokens trained per second by all processes, without padding.
        peak_memory_gib: Peak memory: the maximum over the GPUs, or over the processes on a CPU.
        train_seconds: Wall time of the training loop.
        resumed_from_step: Step of the checkpoint that the training resumed from; 0 without one.
        processes: Number of processes, one per GPU.
    """

    train_loss: float
    val_loss: float
    epochs: float
    steps: int
    tokens_per_second: float
    peak_memory_gib: float
    train_seconds: float
    resumed_from_step: int
    processes: int
