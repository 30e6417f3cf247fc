"""TRL's SFTTrainer with losses that are sums over tokens, a resumable order of rows and complete checkpoints."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset, concatenate_datasets
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import rotate_checkpoints
from trl import SFTTrainer

from llm_finetune.components.shared.modeling.causal_lm import evaluation_mode
from llm_finetune.components.shared.modeling.labels import IGNORE_INDEX
from llm_finetune.components.shared.modeling.losses import completion_nll, length_grouped_batches, pad_rows
from llm_finetune.components.shared.progress import Progress
from llm_finetune.components.training.finetune_lora import checkpoints
from llm_finetune.components.training.finetune_lora.device import DevicePlan
from llm_finetune.components.training.finetune_lora.fused import disable_input_casts, fuse_adapters, fuse_layers
from llm_finetune.components.training.finetune_lora.order import (
    EpochLengthSampler,
    ProcessBatchSampler,
    SetEpochCallback,
)


class CompletionTrainer(SFTTrainer):
    """Trains on completions.

    The loss of an optimizer step is Σ nll / Σ tokens over all its micro-batches and processes; the validation loss is
    the same over all validation rows. The validation loss of transformers is a mean over batches.
    """

    model: Any
    train_dataset: Any
    eval_dataset: Any
    processing_class: Any

    def __init__(self, *args: Any, plan: DevicePlan, eval_tokens: int, **kwargs: Any) -> None:
        """Builds the trainer.

        Args:
            *args: SFTTrainer's.
            plan: Choices for the device.
            eval_tokens: Maximum tokens in a validation batch, including padding.
            **kwargs: SFTTrainer's.
        """
        loading = kwargs["args"].accelerator_config
        loading.non_blocking = plan.device == "cuda"  # copies batches while the GPU computes
        loading.even_batches = False  # no repeated rows: ProcessBatchSampler has a batch for every process
        super().__init__(*args, **kwargs)
        # transformers does not resume with a sharded model, because the optimizer could be sharded as well. Here it is
        # not: every process has the whole adapter.
        self.args.save_only_model = False
        if self.accelerator.num_processes > 1:
            torch.manual_seed(self.args.seed + self.args.process_index)  # dropout differs between the processes
        if plan.autocast:
            disable_input_casts(self.model)
        if plan.autocast and plan.device == "cuda":
            fuse_adapters(self.model)
        if plan.fused_layers:
            fuse_layers(self.model)
        self.args.logging_nan_inf_filter = False  # it synchronizes with the GPU at every step, and hides divergence
        self.plan, self.eval_tokens = plan, eval_tokens
        self.tokens_seen, self.tokens_logged = 0, 0
        self.logged_at = time.monotonic()

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Returns Σ nll of this micro-batch divided by the tokens of the optimizer step in all processes."""
        self.tokens_seen += int(
            inputs["attention_mask"].sum() if "attention_mask" in inputs else inputs["labels"].numel()
        )
        if not self.plan.labelled_only and (return_outputs or self.aux_loss_enabled):
            trl_loss: Callable[..., Any] = super().compute_loss
            return trl_loss(model, inputs, return_outputs, num_items_in_batch)
        if not self.plan.labelled_only:  # as in TRL, without its metrics, which synchronize with the GPU
            outputs = model(**inputs, use_cache=False, fused_lm_head=True)
            tokens = outputs.label_mask.sum() if num_items_in_batch is None else num_items_in_batch
            loss = -outputs.log_probs.sum() / torch.as_tensor(tokens).clamp(min=1)
            return loss * self.accelerator.num_processes  # gradients are averaged over the processes later
        with self.accelerator.autocast():
            nll, tokens = completion_nll(self.model, inputs)
        return nll.sum() / (tokens.sum() if num_items_in_batch is None else num_items_in_batch)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Returns and logs `eval_loss`, Σ nll / Σ tokens over the validation rows."""
        rows = self.eval_dataset
        groups = list(length_grouped_batches(rows["length"], self.eval_tokens))
        own = groups[self.args.process_index :: self.accelerator.num_processes]
        turns = -(-len(groups) // self.accelerator.num_processes)  # a sharded model needs all processes in every turn
        nll, tokens = 0.0, 0
        with evaluation_mode(self.model), self.accelerator.autocast():
            for turn in range(turns):
                batch = pad_rows([rows[i] for i in (own[turn] if turn < len(own) else groups[-1])], self.args.device)
                sums, counts = self._completion_nll(batch)
                if turn < len(own):
                    nll, tokens = nll + float(sums.double().sum()), tokens + int(counts.sum())
        metrics = {"eval_loss": self.sum_over_processes(nll) / self.sum_over_processes(tokens)}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _completion_nll(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_distributed_loading_by_transformers:
            return completion_nll(self.model, batch)
        # FSDP gathers the weights only in a forward pass of the whole model.
        outputs = self.model(**batch, use_cache=False, fused_lm_head=True)
        return -outputs.log_probs, outputs.label_mask

    def sum_over_processes(self, value: float) -> float:
        """Returns the sum of a value over the processes."""
        return float(self.accelerator.reduce(self._as_tensor(value), "sum"))

    def max_over_processes(self, value: float) -> float:
        """Returns the maximum of a value over the processes."""
        return float(self.accelerator.gather(self._as_tensor(value)).max())

    def _as_tensor(self, value: float) -> torch.Tensor:
        return torch.tensor(value, dtype=torch.float64, device=self.args.device)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the tokens per second of all processes since the last log, without padding."""
        if "loss" in logs:
            now = time.monotonic()
            rate = (self.tokens_seen - self.tokens_logged) / max(now - self.logged_at, 1e-9)
            logs["tokens_per_second"] = self.sum_over_processes(rate)
            self.logged_at, self.tokens_logged = now, self.tokens_seen
        super().log(logs, start_time)

    def get_train_dataloader(self) -> Any:
        """Returns the data loader of this process's micro-batches."""
        processes = self.accelerator.num_processes
        if processes == 1:
            return super().get_train_dataloader()
        rows = self._remove_unused_columns(self.train_dataset, description="training")
        filler = {name: [self.processing_class.pad_token_id] for name in rows.column_names}
        filler |= {"labels": [IGNORE_INDEX]} | ({"seq_lengths": [1]} if "seq_lengths" in filler else {})
        batches = ProcessBatchSampler(
            self._get_train_sampler(),
            len(rows),
            processes,
            self.args.train_batch_size,
            self.args.gradient_accumulation_steps,
        )
        self.add_callback(SetEpochCallback(batches))
        loader = DataLoader(
            concatenate_datasets([rows, Dataset.from_list([filler], features=rows.features)]),
            batch_sampler=batches,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.accelerator.prepare(loader)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.plan.group_by_length:
            rows_per_step = self.args.train_batch_size * self.args.gradient_accumulation_steps
            return EpochLengthSampler(
                rows_per_step * self.accelerator.num_processes, self.train_dataset["length"], self.args.seed
            )
        if self.accelerator.num_processes > 1:
            return SeedableRandomSampler(self.train_dataset, data_seed=self.args.data_seed)
        return super()._get_train_sampler(train_dataset)

    def _get_output_dir(self, trial: Any) -> str:
        return str(Path(str(self.args.output_dir)) / checkpoints.STAGING)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder, first = Path(str(self.args.output_dir)), self.is_world_process_zero()
        staging = Path(self._get_output_dir(trial))
        if first:
            shutil.rmtree(staging, ignore_errors=True)
        for module in self.model.modules():  # saving reshards the weights of this process; all processes must do so
            if isinstance(module, FSDPModule):
                module.reshard()
        self.accelerator.wait_for_everyone()
        Trainer._save_checkpoint(self, model, trial)  # SFTTrainer's adds a model card to every checkpoint
        staged = staging / f"checkpoint-{self.state.global_step}"
        best = self.state.best_global_step == self.state.global_step
        if best:
            self.state.best_model_checkpoint = str(folder / staged.name)
        self.accelerator.wait_for_everyone()
        if first:
            if best:
                self.state.save_to_json(str(staged / "trainer_state.json"))
            checkpoints.write_manifest(staged)
            checkpoints.publish(staged, folder)
            rotate_checkpoints(str(folder), self.args.save_total_limit, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()


class ProgressCallback(TrainerCallback):
    """Prints progress with rate, remaining time and the latest loss."""

    def __init__(self) -> None:
        """Creates the callback."""
        self.progress: Progress | None = None
        self.latest = ""

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the clock at the first step, so that the start of the training does not count."""
        if self.progress is None and state.is_world_process_zero:
            self.progress = Progress("train", state.max_steps, "steps")
            self.progress.update(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Reports an optimizer step."""
        if self.progress:
            self.progress.update(state.global_step, self.latest)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Keeps the latest losses, and prints a validation loss."""
        names = {"loss": "loss", "eval_loss": "validation loss"}
        figures = [f"{label} {logs[name]:.4f}" for name, label in names.items() if name in (logs or {})]
        self.latest = ", ".join(figures) or self.latest
        if logs and "eval_loss" in logs and state.is_world_process_zero:
            print(f"step {state.global_step}: validation loss {logs['eval_loss']:.4f}", flush=True)
