"""Batches with a token budget that is halved when memory runs out."""

from collections import deque
from collections.abc import Callable, Sequence

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.modeling.losses import length_grouped_batches


class TokenBudget:
    """Maximum number of tokens in a batch; a batch that runs out of memory halves it for the rest of the card.

    Attributes:
        tokens: Current maximum, padding included.
        notes: One note per reduction, for the report.
    """

    def __init__(self, tokens: int) -> None:
        """Sets the initial maximum.

        Args:
            tokens: Maximum number of tokens in a batch, padding included.
        """
        self.tokens = tokens
        self.notes: list[str] = []

    def run(self, label: str, lengths: Sequence[int], process_batch: Callable[[list[int]], None]) -> None:
        """Processes items in batches of similar length.

        Args:
            label: Name of the work for messages, such as `loss`.
            lengths: Tokens per item.
            process_batch: Called with the indices of a batch's items. If it runs out of memory, it is called again with
                the same items in smaller batches.

        Raises:
            UserError: If a single item does not fit into memory.
        """
        pending = deque(length_grouped_batches(lengths, self.tokens))
        while pending:
            batch = pending.popleft()
            if _fits(process_batch, batch):
                continue
            if len(batch) == 1:
                raise UserError(
                    f"{label}: out of memory with a single row of {lengths[batch[0]]} tokens. Lower max_length or "
                    "max_new_tokens, load the base in 4 bit, or give the step more memory"
                )
            self._halve(label, lengths[batch[0]] * len(batch))
            remaining = [*batch, *(index for later in pending for index in later)]
            pending = deque(
                [remaining[i] for i in group]
                for group in length_grouped_batches([lengths[index] for index in remaining], self.tokens)
            )

    def _halve(self, label: str, failed: int) -> None:
        self.tokens = max(failed // 2, 1)
        note = f"{label}: out of memory with {failed} tokens in a batch, continuing with {self.tokens}"
        self.notes.append(note)
        print(f"warning: {note}", flush=True)
        clear_device_cache(garbage_collection=True)


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an exception means that a device or the host ran out of memory."""
    return isinstance(error, MemoryError) or (isinstance(error, Exception) and should_reduce_batch_size(error))


def _fits(process_batch: Callable[[list[int]], None], batch: list[int]) -> bool:
    # On return the exception is freed, and with its traceback the tensors that filled the memory.
    try:
        process_batch(batch)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True
