"""The order of rows in an epoch, and their distribution to optimizer steps and processes."""

from collections.abc import Iterator, Sized
from typing import Any, Protocol

import torch
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

STEPS_SORTED_TOGETHER = 50
"""Few enough that steps are composed differently in each epoch, enough that their rows have similar lengths."""


class RowOrder(Sized, Protocol):
    """A sampler of row indices whose order depends on the epoch."""

    def __iter__(self) -> Iterator[int]:
        """Yields row indices."""

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch."""


class EpochLengthSampler(Sampler[int]):
    """Groups rows of similar length, in an order that depends only on seed and epoch, so that a resumed run repeats it.

    Rows are shuffled, the rows of many steps at a time are sorted by length and cut into steps, and all steps are
    shuffled. The step with the longest row comes first, so that a step too large for memory fails at once.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        """Creates the sampler.

        Args:
            batch_size: Rows of an optimizer step.
            lengths: Tokens per row.
            seed: Seed of the order.
        """
        self.batch_size, self.lengths, self.seed = batch_size, lengths, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch; accelerate's data loader calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        """Yields row indices."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        drawn = torch.randperm(len(self.lengths), generator=generator).tolist()
        many, steps = STEPS_SORTED_TOGETHER * self.batch_size, []
        for start in range(0, len(drawn), many):
            rows = sorted(drawn[start : start + many], key=lambda row: -self.lengths[row])
            steps += [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        rest = steps.pop() if len(steps[-1]) < self.batch_size else []  # an incomplete step ends the epoch
        shuffled = [steps[i] for i in torch.randperm(len(steps), generator=generator).tolist()]
        longest = max((self.lengths[step[0]] for step in steps), default=0)
        shuffled.sort(key=lambda step: self.lengths[step[0]] < longest)
        for step in [*shuffled, rest]:
            yield from step


class ProcessBatchSampler(Sampler[list[int]]):
    """Cuts an order of rows into optimizer steps and distributes the rows of each step to the processes.

    A step has the same rows as the step of a single process with the batch sizes of all processes together. The numbers
    of rows per process differ by at most one, and the numbers of micro-batches are equal. A process without a row at
    the end of an epoch gets the filler row, which has no label. No row is trained twice or left out, as it would be
    with accelerate's own distribution. Batches are ordered by process, as accelerate's `BatchSamplerShard` expects.
    """

    def __init__(self, order: RowOrder, filler: int, processes: int, micro_batch: int, accumulation: int) -> None:
        """Creates the sampler.

        Args:
            order: Sampler of row indices.
            filler: Index of the row without labels.
            processes: Processes that train.
            micro_batch: Rows per process in a micro-batch.
            accumulation: Micro-batches per process and optimizer step.
        """
        self.order, self.filler = order, filler
        self.processes, self.micro_batch, self.accumulation = processes, micro_batch, accumulation
        self.rows_per_step = processes * micro_batch * accumulation

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the order."""
        self.order.set_epoch(epoch)

    def __len__(self) -> int:
        """Returns the number of micro-batches of all processes."""
        steps, rest = divmod(len(self.order), self.rows_per_step)
        largest_share = -(-rest // self.processes)
        turns = steps * self.accumulation + -(-largest_share // self.micro_batch)
        return turns * self.processes

    def __iter__(self) -> Iterator[list[int]]:
        """Yields micro-batches, one process after the other."""
        order = list(self.order)
        for start in range(0, len(order), self.rows_per_step):
            step = order[start : start + self.rows_per_step]
            shares = [step[process :: self.processes] for process in range(self.processes)]
            for position in range(0, len(shares[0]), self.micro_batch):
                for share in shares:
                    yield share[position : position + self.micro_batch] or [self.filler]


class SetEpochCallback(TrainerCallback):
    """Sets the epoch of the batches; in a resumed epoch, transformers and accelerate do not."""

    def __init__(self, batches: ProcessBatchSampler) -> None:
        """Creates the callback.

        Args:
            batches: The batches.
        """
        self.batches = batches

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Sets the epoch before its first batch is drawn."""
        self.batches.set_epoch(int(state.epoch or 0))
