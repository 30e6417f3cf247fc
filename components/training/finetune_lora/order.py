"""Which rows an optimizer step takes, and which process takes which of them."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

STEPS_SORTED_TOGETHER = 50
"""Few enough that a step's company changes from epoch to epoch, enough that its rows are of like length."""


class EpochLengthSampler(Sampler[int]):
    """Takes rows of like length together, in an order of seed and epoch alone, so that a resumed run repeats it.

    Rows are drawn, those of many steps at a time are sorted by length and cut into steps, and all steps are shuffled.
    The step with the longest row comes first, so that one too large for memory fails at once.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        """Names the rows of an optimizer step, their lengths and the seed."""
        self.batch_size, self.lengths, self.seed = batch_size, lengths, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the order of an epoch; accelerate's data loader calls this."""
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
        rest = steps.pop() if len(steps[-1]) < self.batch_size else []  # its place is the epoch's end
        shuffled = [steps[i] for i in torch.randperm(len(steps), generator=generator).tolist()]
        longest = max((self.lengths[step[0]] for step in steps), default=0)
        shuffled.sort(key=lambda step: self.lengths[step[0]] < longest)
        for step in [*shuffled, rest]:
            yield from step


class ProcessBatchSampler(Sampler[list[int]]):
    """Cuts an order of rows into optimizer steps and deals each step's rows out to the processes.

    A step takes the rows that one process with a batch as large as all of theirs would take. Each process gets as many
    of them as every other, give or take one, in as many micro-batches. Where a process is left without a row, at the
    end of an epoch, it gets the filler, which has no label: no row is trained twice or left out, as accelerate's own
    division would. Batches come in turns, one per process, as accelerate's `BatchSamplerShard` expects them.
    """

    def __init__(self, order: Any, filler: int, processes: int, micro_batch: int, accumulation: int) -> None:
        """Says how rows are divided.

        Args:
            order: Sampler of row indices with `set_epoch`.
            filler: Index of the row without labels.
            processes: Processes that train.
            micro_batch: Rows per process that go through the model at once.
            accumulation: Micro-batches per process and optimizer step.
        """
        self.order, self.filler = order, filler
        self.processes, self.micro_batch, self.accumulation = processes, micro_batch, accumulation
        self.rows_per_step = processes * micro_batch * accumulation

    def set_epoch(self, epoch: int) -> None:
        """Sets the order of an epoch."""
        self.order.set_epoch(epoch)

    def __len__(self) -> int:
        """Returns the number of micro-batches of all processes."""
        whole, rest = divmod(len(self.order), self.rows_per_step)
        largest_share = -(-rest // self.processes)
        turns = whole * self.accumulation + -(-largest_share // self.micro_batch)
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
    """Tells the batches which epoch begins; in a resumed epoch, transformers and accelerate do not reach them."""

    def __init__(self, batches: ProcessBatchSampler) -> None:
        """Names the batches."""
        self.batches = batches

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Sets the order before the epoch's first batch is drawn."""
        self.batches.set_epoch(int(state.epoch or 0))
