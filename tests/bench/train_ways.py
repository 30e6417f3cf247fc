"""The ways of training that train_gpu.py compares, each as a transformers trainer over the same documents."""

import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from trl import SFTConfig, SFTTrainer

from llm_finetune.components.shared.modeling.causal_lm import load_base
from llm_finetune.components.shared.modeling.device import fast_dtype
from llm_finetune.components.shared.modeling.losses import pad_rows
from llm_finetune.components.tokens.tokenize.packing import pack
from llm_finetune.components.training.finetune_lora.build import build_trainer
from llm_finetune.components.training.finetune_lora.settings import Settings

ROW = 1024  # tokens of a packed row: the default of the Tokenize card and of TRL
SIMPLE_BATCH, TRL_BATCH = 4, 8


@dataclass(frozen=True)
class Job:
    """One way to measure.

    Attributes:
        way: One of `WAYS`.
        model: Folder of the base model.
        lora: Folder with adapter_config.json.
        documents: Token rows with `input_ids` and `labels`, one document each.
        samples: Documents per optimizer step, about.
        seconds: Time to measure for, once warm.
        warm_up: Optimizer steps before the clock starts.
        steps: Optimizer steps to measure at least.
        nf4: Whether the base is in 4 bit.
        checkpointing: Whether our way computes activations again in the backward pass.
    """

    way: str
    model: Path
    lora: Path
    documents: list[dict[str, list[int]]]
    samples: int
    seconds: float
    warm_up: int
    steps: int
    nf4: bool
    checkpointing: bool


class Clock(TrainerCallback):
    """Counts documents and real tokens of the measured steps and stops the training when there are enough of them."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.tokens: Any = 0
        self.documents = self.steps = 0
        self.begun = self.seconds = 0.0

    def watch(self, trainer: Trainer) -> None:
        """Counts every micro-batch without waiting for the GPU."""
        original = trainer.training_step

        def counted(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if "attention_mask" in inputs:
                self.tokens = self.tokens + inputs["attention_mask"].sum()
                self.documents += inputs["input_ids"].shape[0]
            else:
                self.tokens = self.tokens + inputs["input_ids"].numel()
                self.documents += inputs["cu_seq_lens_q"].numel() - 1
            return original(model, inputs, *args, **kwargs)

        trainer.training_step = counted  # type: ignore[method-assign]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step < self.job.warm_up:
            return
        self.steps, now = state.global_step - self.job.warm_up, time.perf_counter()
        last = self.steps >= self.job.steps and now - self.begun >= self.job.seconds
        if self.steps == 0:
            synchronize()
            self.begun, self.tokens, self.documents = time.perf_counter(), 0, 0
        elif last:  # the only other wait: between the two, the host may run ahead of the GPU as it does in a real run
            synchronize()
            self.seconds = time.perf_counter() - self.begun
            control.should_training_stop = True


def measure(job: Job) -> dict[str, Any]:
    """Trains one way and returns its figures."""
    torch.manual_seed(0)
    started = time.perf_counter()
    trainer = WAYS[job.way](job)
    clock = Clock(job)
    clock.watch(trainer)
    trainer.add_callback(clock)
    quiet(trainer.args)
    # The warm-up allocates the optimizer's state; the loss of the untouched model comes before it.
    loss, labels = probe(trainer, job)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    first = clock.begun - started
    return {
        "way": job.way,
        "tokens_per_second": float(clock.tokens) / clock.seconds,
        "samples_per_second": clock.documents / clock.seconds,
        "samples_per_step": clock.documents / clock.steps,
        "tokens_per_step": float(clock.tokens) / clock.steps,
        "micro_batches": trainer.args.gradient_accumulation_steps,
        "steps": clock.steps,
        "seconds": clock.seconds,
        "start_seconds": first,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0,
        "loss": loss,
        "labels": labels,
    }


def quiet(args: TrainingArguments) -> None:
    """Leaves nothing in the loop but training."""
    args.max_steps = 1_000_000
    args.eval_strategy, args.save_strategy = IntervalStrategy.NO, SaveStrategy.NO
    args.logging_strategy = IntervalStrategy.NO
    args.report_to = []


def probe(trainer: Trainer, job: Job) -> tuple[float, int]:
    """Returns the loss per label of the same 64 documents, laid out as the way lays them out, and their labels."""
    documents = job.documents[:64]
    rows = packed(documents) if trainer.args.padding_free_rows else documents  # type: ignore[attr-defined]
    batch = trainer._prepare_inputs(trainer.data_collator([dict(row) for row in rows]))
    labels = sum(label != -100 for document in documents for label in document["labels"][1:])
    trainer.model.train()
    with torch.no_grad(), trainer.accelerator.autocast():
        loss = trainer.compute_loss(
            trainer.model, batch, num_items_in_batch=torch.tensor(labels, device=trainer.args.device)
        )
    return float(loss), labels


def packed(documents: list[dict[str, list[int]]]) -> list[dict[str, list[int]]]:
    """Packs documents as the Tokenize card does."""
    joined = []
    for group in pack([len(document["input_ids"]) for document in documents], ROW):
        rows = [documents[index] for index in group]
        joined.append(
            {
                "input_ids": [token for row in rows for token in row["input_ids"]],
                "labels": [label for row in rows for label in row["labels"]],
                "seq_lengths": [len(row["input_ids"]) for row in rows],
            }
        )
    return joined


def simple(job: Job) -> Trainer:
    """A plain trainer: batches of 4, padded to the longest, accumulated, checkpointing on."""
    args = TrainingArguments(
        **common(job), per_device_train_batch_size=SIMPLE_BATCH,
        gradient_accumulation_steps=max(job.samples // SIMPLE_BATCH, 1), gradient_checkpointing=True,
        remove_unused_columns=False,
    )  # fmt: skip
    args.padding_free_rows = False  # type: ignore[attr-defined]
    model = adapted(job, "sdpa")
    model.enable_input_require_grads()
    return Trainer(model, args, data_collator=pad_rows, train_dataset=Dataset.from_list(job.documents))


def trl_defaults(job: Job) -> Trainer:
    """TRL's SFTTrainer: best-fit packed rows of 1024, batches of 8, checkpointing on, sdpa, its fused head."""
    rows = packed(job.documents)
    per_row = len(job.documents) / len(rows)
    batch = min(TRL_BATCH, max(round(job.samples / per_row), 1))
    args = SFTConfig(
        **common(job), per_device_train_batch_size=batch, max_length=None, padding_free=True,
        gradient_accumulation_steps=max(round(job.samples / per_row / batch), 1), gradient_checkpointing=True,
        dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    args.padding_free_rows = True  # type: ignore[attr-defined]
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    return SFTTrainer(adapted(job, "sdpa"), args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


def ours(job: Job) -> Trainer:
    """The Fine-Tune LoRA card's own trainer, as its step builds it."""
    rows = packed(job.documents)
    batch = max(round(job.samples * len(rows) / len(job.documents)), 1)
    train = Dataset.from_list([{**row, "length": len(row["input_ids"])} for row in rows])
    validation = Dataset.from_list([{**row, "length": len(row["input_ids"])} for row in job.documents[:64]])
    settings = Settings(
        batch_size=batch,
        tokens_per_micro_batch=batch * ROW,
        gradient_checkpointing="on" if job.checkpointing else "off",
    )
    trainer = build_trainer(
        job.model, job.lora, AutoConfig.from_pretrained(job.model), train, validation,
        AutoTokenizer.from_pretrained(job.model), job.model.parent / "out", settings, packed=True, load_in_4bit=job.nf4,
    )  # fmt: skip
    trainer.args.padding_free_rows = True
    return trainer


def unfused(job: Job) -> Trainer:
    """Our way where Liger is not installed."""
    sys.modules["liger_kernel"] = None  # type: ignore[assignment]
    return ours(job)


def compiled(job: Job) -> Trainer:
    """Our way behind torch.compile; `start_seconds` holds what compiling costs."""
    trainer = ours(job)
    trainer.model.compile(dynamic=True)  # packed rows differ in length by some tokens
    return trainer


def unsloth(job: Job) -> Trainer:
    """Unsloth's model and checkpointing under TRL's trainer, on the packed micro-batches of our way."""
    from unsloth import FastLanguageModel

    rows = packed(job.documents)
    adapter = LoraConfig.from_pretrained(str(job.lora))
    model, tokenizer = FastLanguageModel.from_pretrained(
        str(job.model), max_seq_length=ROW, dtype=fast_dtype(), load_in_4bit=job.nf4, local_files_only=True
    )
    model = FastLanguageModel.get_peft_model(
        model, r=adapter.r, lora_alpha=adapter.lora_alpha, lora_dropout=0.0, bias="none", random_state=42,
        target_modules=sorted(adapter.target_modules), use_gradient_checkpointing="unsloth" if job.checkpointing else False,
    )  # fmt: skip
    args = SFTConfig(
        **common(job), per_device_train_batch_size=max(round(job.samples * len(rows) / len(job.documents)), 1),
        max_length=None, padding_free=True, gradient_checkpointing=False, dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    args.padding_free_rows = True  # type: ignore[attr-defined]
    return SFTTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


def adapted(job: Job, attention: str) -> Any:
    """Returns the base model with the adapter on it."""
    base = load_base(job.model, fast_dtype(), attention, job.nf4)
    adapter = LoraConfig.from_pretrained(str(job.lora))
    adapter.inference_mode = False
    return get_peft_model(base, adapter)


def common(job: Job) -> dict[str, Any]:
    """Returns the arguments that every way shares."""
    return {
        "output_dir": str(job.model.parent / "out"),
        "bf16": fast_dtype() is torch.bfloat16,
        "use_cpu": not torch.cuda.is_available(),
        "learning_rate": 2e-4,
        "disable_tqdm": True,
        "report_to": "none",
        "seed": 42,
    }


def synchronize() -> None:
    """Waits for the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


WAYS: dict[str, Callable[[Job], Trainer]] = {
    "simple": simple, "trl": trl_defaults, "ours": ours, "unfused": unfused, "compiled": compiled, "unsloth": unsloth,
}  # fmt: skip
