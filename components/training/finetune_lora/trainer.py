"""TRL's SFTTrainer with completion losses that are sums over tokens, resumable order and whole checkpoints."""

import shutil
import time
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import rotate_checkpoints
from trl import SFTTrainer

from llm_finetune.components.shared.causal_lm import evaluating
from llm_finetune.components.shared.losses import by_length, completion_nll, padded
from llm_finetune.components.shared.progress import Progress
from llm_finetune.components.training.finetune_lora import checkpoints
from llm_finetune.components.training.finetune_lora.device import DevicePlan
from llm_finetune.components.training.finetune_lora.fused import fuse_adapters, fuse_layers, without_input_casts


class EpochLengthSampler(LengthGroupedSampler):
    """Groups rows of like length in an order of seed and epoch alone, so that a resumed run repeats it."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        """Names the rows' lengths and the seed."""
        super().__init__(batch_size, lengths=lengths)
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Sets the order of an epoch; accelerate's data loader calls this."""
        self.generator = torch.Generator().manual_seed(self.seed + epoch)


class CompletionTrainer(SFTTrainer):
    """Trains on completions.

    The loss of an optimizer step is Σ nll / Σ tokens over its whole accumulation window, the validation loss the same
    over all rows; transformers' own validation loss averages batches.
    """

    model: Any
    train_dataset: Any
    eval_dataset: Any

    def __init__(self, *args: Any, plan: DevicePlan, eval_tokens: int, **kwargs: Any) -> None:
        """Builds the trainer.

        Args:
            *args: SFTTrainer's.
            plan: Choices for the device.
            eval_tokens: Most tokens in a validation batch, padding included.
            **kwargs: SFTTrainer's.
        """
        if plan.device == "cuda":  # batches are copied while the GPU still computes
            kwargs["args"].accelerator_config.non_blocking = True
        super().__init__(*args, **kwargs)
        if plan.autocast:
            without_input_casts(self.model)
        if plan.autocast and plan.device == "cuda":
            fuse_adapters(self.model)
        if plan.fused_layers:
            fuse_layers(self.model)
        self.args.logging_nan_inf_filter = False  # it waits for the GPU at every micro-batch, and hides a divergence
        self.plan, self.eval_tokens = plan, eval_tokens
        self.tokens_seen, self.tokens_logged = 0, 0
        self.logged_at = time.monotonic()

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Returns Σ nll of this micro-batch over the accumulation window's tokens."""
        self.tokens_seen += int(
            inputs["attention_mask"].sum() if "attention_mask" in inputs else inputs["labels"].numel()
        )
        if not self.plan.own_loss and (return_outputs or self.aux_loss_enabled or self.accelerator.num_processes > 1):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not self.plan.own_loss:  # as TRL does, without its figures for the log, each of which waits for the GPU
            outputs = model(**inputs, use_cache=False, fused_lm_head=True)
            tokens = outputs.label_mask.sum() if num_items_in_batch is None else num_items_in_batch
            return -outputs.log_probs.sum() / torch.as_tensor(tokens).clamp(min=1)
        with self.accelerator.autocast():
            nll, tokens = completion_nll(self.model, inputs)
        return nll.sum() / (tokens.sum() if num_items_in_batch is None else num_items_in_batch)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Returns and logs `eval_loss`, Σ nll / Σ tokens over the validation rows."""
        rows = self.eval_dataset
        nll, tokens = 0.0, 0
        with evaluating(self.model), self.accelerator.autocast():
            for group in by_length(rows["length"], self.eval_tokens):
                sums, counts = completion_nll(self.model, padded([rows[i] for i in group], self.args.device))
                nll, tokens = nll + float(sums.double().sum()), tokens + int(counts.sum())
        metrics = {"eval_loss": nll / tokens}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the rate of real tokens since the last log."""
        if "loss" in logs:
            now = time.monotonic()
            logs["tokens_per_second"] = (self.tokens_seen - self.tokens_logged) / max(now - self.logged_at, 1e-9)
            self.logged_at, self.tokens_logged = now, self.tokens_seen
        super().log(logs, start_time)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if not self.plan.group_by_length:
            return super()._get_train_sampler(train_dataset)
        return EpochLengthSampler(
            self.args.train_batch_size * self.args.gradient_accumulation_steps,
            self.train_dataset["length"],
            self.args.seed,
        )

    def _get_output_dir(self, trial: Any) -> str:
        return str(Path(str(self.args.output_dir)) / "partial")

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(str(self.args.output_dir))
        staging = Path(self._get_output_dir(trial))
        if self.is_world_process_zero():
            shutil.rmtree(staging, ignore_errors=True)
        Trainer._save_checkpoint(self, model, trial)  # not SFTTrainer's, which adds a model card to every checkpoint
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            staged = staging / f"checkpoint-{self.state.global_step}"
            if self.state.best_global_step == self.state.global_step:
                self.state.best_model_checkpoint = str(folder / staged.name)
                self.state.save_to_json(str(staged / "trainer_state.json"))
            checkpoints.seal(staged)
            checkpoints.publish(staged, folder)
            rotate_checkpoints(str(folder), self.args.save_total_limit, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()


class ProgressCallback(TrainerCallback):
    """Writes progress lines with rate, time left and the latest loss into the card's log."""

    def __init__(self) -> None:
        """Waits for the training to begin."""
        self.progress: Progress | None = None
        self.latest = ""

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the clock at the first step, so that what came before it does not count."""
        if self.progress is None:
            self.progress = Progress("train", state.max_steps, "steps")
            self.progress.update(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Reports a finished optimizer step."""
        if self.progress:
            self.progress.update(state.global_step, self.latest)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Remembers the latest losses."""
        names = {"loss": "loss", "eval_loss": "validation loss"}
        figures = [f"{label} {logs[name]:.4f}" for name, label in names.items() if name in (logs or {})]
        self.latest = ", ".join(figures) or self.latest
        if logs and "eval_loss" in logs and state.is_world_process_zero:
            print(f"step {state.global_step}: validation loss {logs['eval_loss']:.4f}", flush=True)
