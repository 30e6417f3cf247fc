"""Fine-Tune LoRA: trains an adapter on token rows, in this process or in one process per GPU."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from llm_finetune.components.shared.card import PACKAGE_VERSION
from llm_finetune.components.shared.files import content_hash
from llm_finetune.components.shared.object_stores import is_remote
from llm_finetune.components.training.finetune_lora import checkpoints
from llm_finetune.components.training.finetune_lora.job import Job, TrainFacts
from llm_finetune.components.training.finetune_lora.launch import launch, resolve_processes
from llm_finetune.components.training.finetune_lora.remote import RemoteCheckpoints, local_folder
from llm_finetune.components.training.finetune_lora.settings import Settings
from llm_finetune.components.training.finetune_lora.training import train

RANK_MODULE = "llm_finetune.components.training.finetune_lora.rank"
# Settings that do not change the result, so that a training can resume with other values.
NOT_IN_FINGERPRINT = {
    "checkpoint_folder",
    "checkpoint_root",
    "logging_steps",
    "report_to",
    "parallel",
    "gradient_checkpointing",
}


def finetune_lora(
    model_config: str | Path,
    lora_config: str | Path,
    train_tokens: str | Path,
    val_tokens: str | Path,
    ft_result: str | Path,
    loss_curve: str | Path,
    settings: Settings,
    load_in_4bit: bool = False,
    input_hashes: Mapping[str, object] | None = None,
    training_logs: str | Path | None = None,
) -> TrainFacts:
    """Trains the adapter and writes it with everything that is needed to serve it.

    Args:
        model_config: Folder of the base model or its reference.
        lora_config: Folder with PEFT's adapter_config.json.
        train_tokens: Token rows to train on.
        val_tokens: Validation token rows, one document each.
        ft_result: Folder to write: adapter, tokenizer, generation config, rows for the parity check of Merge & Export.
        loss_curve: HTML page to write.
        settings: The card's settings.
        load_in_4bit: Whether the frozen base is kept in NF4.
        input_hashes: Hashes of the inputs; part of the fingerprint that a checkpoint must match.
        training_logs: Folder for TensorBoard's event files; None for none.

    Returns:
        Facts about the training.

    Raises:
        UserError: If the inputs do not match each other, or the loss is not finite.
    """
    processes = resolve_processes(settings.processes)
    with tempfile.TemporaryDirectory(prefix="finetune-") as scratch, ExitStack() as stack:
        fingerprint = {
            "package_version": PACKAGE_VERSION,
            **(input_hashes or {}),
            **settings.model_dump(exclude=NOT_IN_FINGERPRINT),
            "processes": processes,
            "load_in_4bit": load_in_4bit,
        }
        place = _checkpoint_place(settings, fingerprint) or f"{scratch}/checkpoints"
        folder = stack.enter_context(_checkpoint_folder(place, fingerprint))
        job = Job(
            base_model=Path(model_config),
            lora_config=Path(lora_config),
            train_tokens=Path(train_tokens),
            val_tokens=Path(val_tokens),
            ft_result=Path(ft_result),
            loss_curve=Path(loss_curve),
            training_logs=Path(training_logs) if training_logs else None,
            checkpoints=folder,
            remote_checkpoints=place if is_remote(place) else "",
            resume_from=_resume_point(folder),
            scratch=Path(scratch),
            settings=settings,
            load_in_4bit=load_in_4bit,
        )
        # Without a launcher, transformers would use all visible GPUs in one process.
        return _train_in_processes(processes, job) if max(processes, torch.cuda.device_count()) > 1 else train(job)


def _checkpoint_place(settings: Settings, fingerprint: Mapping[str, object]) -> str:
    if settings.checkpoint_folder or not settings.checkpoint_root:
        return settings.checkpoint_folder
    name = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:16]
    return f"{settings.checkpoint_root.rstrip('/')}/{name}"


@contextmanager
def _checkpoint_folder(place: str, fingerprint: Mapping[str, object]) -> Iterator[Path]:
    """Locks the checkpoint folder while the training runs; for an object store, the local copy."""
    remote = RemoteCheckpoints(place) if is_remote(place) else None
    folder = local_folder(place) if remote else Path(place)
    with checkpoints.lock_folder(folder):
        if remote:
            remote.download(folder)
        checkpoints.claim_folder(folder, fingerprint)
        yield folder
        if remote:
            shutil.rmtree(folder)


def _train_in_processes(processes: int, job: Job) -> TrainFacts:
    inputs, facts = job.scratch / "job.json", job.scratch / "facts.json"
    inputs.write_text(job.model_dump_json())
    print(f"training in {processes} process{'es' if processes > 1 else ''}", flush=True)
    launch(processes, RANK_MODULE, [str(inputs), str(facts)], job.scratch / "processes")
    return TrainFacts(**json.loads(facts.read_text()))


def _resume_point(folder: Path) -> Path | None:
    checkpoint, incomplete = checkpoints.latest_complete(folder)
    for path in incomplete:
        print(f"{path} is incomplete (the process stopped while writing it): skipped", flush=True)
        shutil.rmtree(path)
    if checkpoint:
        print(f"resuming from {checkpoint}", flush=True)
    return checkpoint


def result_metadata(ft_result: str | Path, facts: TrainFacts) -> dict[str, Any]:
    """Returns the metadata of the adapter artifact."""
    return {**vars(facts), "content_hash": content_hash(ft_result)}
