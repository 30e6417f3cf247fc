"""Batches bounded in tokens that become smaller when memory runs out."""

from collections import deque
from collections.abc import Callable, Sequence

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.modeling.losses import length_grouped_batches


class TokenBudget:
    """Most tokens in a batch; halved, for the rest of the card, whenever a batch did not fit into memory.

    Attributes:
        tokens: Most tokens in a batch now, padding included.
        notes: What was done about memory, for the log and the report.
    """

    def __init__(self, tokens: int) -> None:
        """Starts with a budget in tokens."""
        self.tokens = tokens
        self.notes: list[str] = []

    def run(self, what: str, lengths: Sequence[int], work: Callable[[list[int]], None]) -> None:
        """Does work in batches of like length.

        Args:
            what: What is done, for messages, such as `loss`.
            lengths: Tokens that each item takes.
            work: Called with the indices of a batch's items; called again, in smaller batches, with the items of a
                batch that ran out of memory.

        Raises:
            UserError: If a single item does not fit into memory.
        """
        waiting = deque(length_grouped_batches(lengths, self.tokens))
        while waiting:
            batch = waiting.popleft()
            if _fits(work, batch):
                continue
            if len(batch) == 1:
                raise UserError(
                    f"{what}: out of memory with a single row of {lengths[batch[0]]} tokens. Lower max_length or "
                    "max_new_tokens, load the base in 4 bit, or give the step more memory"
                )
            self._shrink(what, lengths[batch[0]] * len(batch))
            left = [*batch, *(index for later in waiting for index in later)]
            waiting = deque(
                [left[i] for i in group]
                for group in length_grouped_batches([lengths[index] for index in left], self.tokens)
            )

    def _shrink(self, what: str, failed: int) -> None:
        self.tokens = max(failed // 2, 1)
        note = f"{what}: out of memory with {failed} tokens in a batch, going on with {self.tokens}"
        self.notes.append(note)
        print(f"warning: {note}", flush=True)
        clear_device_cache(garbage_collection=True)


def is_out_of_memory(error: BaseException) -> bool:
    """Tells whether an exception means that memory ran out, on a device or on the host."""
    return isinstance(error, MemoryError) or (isinstance(error, Exception) and should_reduce_batch_size(error))


def _fits(work: Callable[[list[int]], None], batch: list[int]) -> bool:
    # Returning ends the exception's life, and with its traceback that of the tensors that filled the memory.
    try:
        work(batch)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True
