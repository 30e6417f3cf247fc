"""Cleans and filters rows batch by batch, and counts them."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from llm_finetune.components.data.filter_clean.repair import repair_column, repair_messages
from llm_finetune.components.data.filter_clean.row_filter import REASONS, RowFilter
from llm_finetune.components.data.filter_clean.settings import Settings
from llm_finetune.components.shared.rows.columns import is_text
from llm_finetune.components.shared.rows.conversations import TOOLS, as_messages, bad_conversations
from llm_finetune.components.shared.rows.layouts import MixedLayoutCheck
from llm_finetune.components.shared.rows.pii import PersonalData
from llm_finetune.components.shared.rows.text import MAX_COUNTED_LENGTH, Texts, count_lengths, row_texts


class Counts:
    """Counts of rows, personal data and lengths."""

    def __init__(self) -> None:
        """Starts all counts at zero."""
        self.rows_in = 0
        self.dropped: Counter[str] = Counter()
        self.personal_data: Counter[str] = Counter()
        self.lengths = np.zeros(MAX_COUNTED_LENGTH + 1, np.int64)


class CleanBatch(NamedTuple):
    """A batch with cleaned text.

    Attributes:
        rows: The rows, before redaction.
        text: Their text, for filtering.
    """

    rows: pa.RecordBatch
    text: Texts


class Cleaner:
    """Cleans batches: converts conversations to messages and other values to trimmed strings, and repairs text."""

    def __init__(self, settings: Settings) -> None:
        """Stores the settings.

        Args:
            settings: Settings with the columns of the data's layout.
        """
        self.settings = settings
        self.repaired = 0
        self.converted: Counter[str] = Counter()

    def clean(self, batch: pa.RecordBatch) -> CleanBatch:
        """Cleans the text columns of a batch.

        Args:
            batch: Rows of any layout.
        """
        if self.settings.chat_key:
            return self._clean_conversations(batch)
        for key in self.settings.keys:
            batch = self._repair(batch, key, repair_column)
        text = row_texts(batch, self.settings)
        keys = (self.settings.instruction_key, self.settings.input_key, self.settings.output_key)
        for key, values in zip(keys, (text.instruction, text.input, text.output), strict=True):
            if key:
                old = batch.column(key)
                if not is_text(old.type) and len(old) > old.null_count:
                    self.converted[key] += len(old) - old.null_count
                batch = batch.set_column(batch.schema.get_field_index(key), key, values)
        return CleanBatch(batch, text)

    def _clean_conversations(self, batch: pa.RecordBatch) -> CleanBatch:
        key = self.settings.chat_key
        messages = as_messages(batch.column(key), TOOLS in batch.schema.names)
        batch = batch.set_column(batch.schema.get_field_index(key), key, messages)
        batch = self._repair(batch, key, repair_messages)
        return CleanBatch(batch, row_texts(batch, self.settings))

    def _repair(
        self, batch: pa.RecordBatch, key: str, repair: Callable[[pa.Array, str], tuple[pa.Array, int]]
    ) -> pa.RecordBatch:
        if self.settings.repair == "off":
            return batch
        column, changed = repair(batch.column(key), self.settings.repair)
        self.repaired += changed
        return batch.set_column(batch.schema.get_field_index(key), key, column) if changed else batch


@dataclass(frozen=True)
class BatchFilter:
    """Cleans and filters batches, in order.

    Attributes:
        cleaner: Cleans the text.
        personal: Finds personal data; None with pii = off.
        row_filter: Decides which rows to keep.
        layout_check: Refuses rows of another layout.
        counts: Counts of all batches so far.
    """

    cleaner: Cleaner
    personal: PersonalData | None
    row_filter: RowFilter
    layout_check: MixedLayoutCheck
    counts: Counts

    def split(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.RecordBatch | None]:
        """Filters a batch.

        Args:
            batch: The next rows.

        Returns:
            The rows to keep, and the dropped rows with their reasons; None if no row is dropped.
        """
        self.layout_check.check(batch)
        rows, text = self.cleaner.clean(batch)
        lengths = text.lengths().to_numpy(zero_copy_only=False)
        bad = bad_conversations(rows.column(self.cleaner.settings.chat_key)) if self.cleaner.settings.chat_key else None
        reason = self.row_filter.drop_reasons(text, lengths, bad)
        good = reason < 0
        self.counts.rows_in += rows.num_rows
        self.counts.lengths += count_lengths(lengths[good])
        if self.personal:
            for column in (text.instruction, text.input, text.output):
                self.counts.personal_data += self.personal.count(
                    column if good.all() else column.filter(pa.array(good))
                )
        if self.personal and self.cleaner.settings.pii == "redact":
            rows = self.personal.redact_batch(rows)
        if good.all():
            return rows, None
        names = pa.array(REASONS).take(pa.array(reason[~good]))
        self.counts.dropped.update(names.to_pylist())
        return rows.filter(pa.array(good)), with_reason(rows.filter(pa.array(~good)), names)


def with_reason(batch: pa.RecordBatch, reasons: pa.StringArray) -> pa.RecordBatch:
    """Appends a column `reason`; an existing column of that name is renamed to `source_reason`."""
    names = ["source_reason" if name == "reason" else name for name in batch.schema.names]
    return pa.RecordBatch.from_arrays([*batch.columns, reasons], names=[*names, "reason"])
