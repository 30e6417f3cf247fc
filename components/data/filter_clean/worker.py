"""Cleans and judges one batch of rows after the other, and counts."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from llm_finetune.components.data.filter_clean.judge import REASONS, Judge
from llm_finetune.components.data.filter_clean.repair import repaired, repaired_messages
from llm_finetune.components.data.filter_clean.settings import Settings
from llm_finetune.components.shared.rows.columns import is_text
from llm_finetune.components.shared.rows.conversations import TOOLS, as_messages, bad_conversations
from llm_finetune.components.shared.rows.layouts import Mixture
from llm_finetune.components.shared.rows.pii import PersonalData
from llm_finetune.components.shared.rows.text import Texts, texts

LONGEST_COUNTED = 1 << 16


class Tally:
    """What is counted on the way."""

    def __init__(self) -> None:
        """Begins at zero."""
        self.rows_in = 0
        self.dropped: Counter[str] = Counter()
        self.personal_data: Counter[str] = Counter()
        self.lengths = np.zeros(LONGEST_COUNTED + 1, np.int64)


class Cleaned(NamedTuple):
    """A batch with clean text.

    Attributes:
        rows: Its rows, before anything is redacted.
        text: The text that they are judged by.
    """

    rows: pa.RecordBatch
    text: Texts


class Cleaner:
    """Cleans batches: conversations become messages, other text is trimmed and made strings; all is repaired."""

    def __init__(self, settings: Settings) -> None:
        """Takes the settings.

        Args:
            settings: The settings, with the columns of the data's layout.
        """
        self.settings = settings
        self.repaired = 0
        self.converted: Counter[str] = Counter()

    def cleaned(self, batch: pa.RecordBatch) -> Cleaned:
        """Returns the rows with clean text in the columns that hold it, and that text.

        Args:
            batch: Rows of any layout.
        """
        if self.settings.chat_key:
            return self._cleaned_conversations(batch)
        for key in self.settings.keys:
            batch = self._replaced(batch, key, repaired)
        text = texts(batch, self.settings)
        keys = (self.settings.instruction_key, self.settings.input_key, self.settings.output_key)
        for key, values in zip(keys, (text.instruction, text.input, text.output), strict=True):
            if key:
                old = batch.column(key)
                if not is_text(old.type) and len(old) > old.null_count:
                    self.converted[key] += len(old) - old.null_count
                batch = batch.set_column(batch.schema.get_field_index(key), key, values)
        return Cleaned(batch, text)

    def _cleaned_conversations(self, batch: pa.RecordBatch) -> Cleaned:
        key = self.settings.chat_key
        messages = as_messages(batch.column(key), TOOLS in batch.schema.names)
        batch = batch.set_column(batch.schema.get_field_index(key), key, messages)
        batch = self._replaced(batch, key, repaired_messages)
        return Cleaned(batch, texts(batch, self.settings))

    def _replaced(
        self, batch: pa.RecordBatch, key: str, repair: Callable[[pa.Array, str], tuple[pa.Array, int]]
    ) -> pa.RecordBatch:
        if self.settings.repair == "off":
            return batch
        column, changed = repair(batch.column(key), self.settings.repair)
        self.repaired += changed
        return batch.set_column(batch.schema.get_field_index(key), key, column) if changed else batch


@dataclass(frozen=True)
class Worker:
    """Cleans and judges batches, in order.

    Attributes:
        cleaner: Cleans their text.
        personal: What looks for personal data; None with pii = off.
        judge: Decides on each row.
        mixture: Refuses rows of another layout.
        tally: What is counted on the way.
    """

    cleaner: Cleaner
    personal: PersonalData | None
    judge: Judge
    mixture: Mixture
    tally: Tally

    def sort(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.RecordBatch | None]:
        """Judges a batch.

        Args:
            batch: The next rows.

        Returns:
            The rows to keep, and the others with their reasons; None if there are none.
        """
        self.mixture.check(batch)
        rows, text = self.cleaner.cleaned(batch)
        lengths = text.lengths().to_numpy(zero_copy_only=False)
        bad = bad_conversations(rows.column(self.cleaner.settings.chat_key)) if self.cleaner.settings.chat_key else None
        reason = self.judge.reasons(text, lengths, bad)
        good = reason < 0
        self.tally.rows_in += rows.num_rows
        self.tally.lengths += np.bincount(np.minimum(lengths[good], LONGEST_COUNTED), minlength=LONGEST_COUNTED + 1)
        if self.personal:
            for column in (text.instruction, text.input, text.output):
                self.tally.personal_data += self.personal.count(column if good.all() else column.filter(pa.array(good)))
        if self.personal and self.cleaner.settings.pii == "redact":
            rows = self.personal.redacted_batch(rows)
        if good.all():
            return rows, None
        names = pa.array(REASONS).take(pa.array(reason[~good]))
        self.tally.dropped.update(names.to_pylist())
        return rows.filter(pa.array(good)), with_reason(rows.filter(pa.array(~good)), names)


def with_reason(batch: pa.RecordBatch, reasons: pa.StringArray) -> pa.RecordBatch:
    """Appends a column `reason`; one of the data that has this name already is kept as `source_reason`."""
    names = ["source_reason" if name == "reason" else name for name in batch.schema.names]
    return pa.RecordBatch.from_arrays([*batch.columns, reasons], names=[*names, "reason"])
