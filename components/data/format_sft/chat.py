"""Rows as conversations, for the base model's own chat template."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm_finetune.components.data.format_sft.instruction import fields_of, missing_outputs
from llm_finetune.components.shared.text import (
    FieldSettings,
    bad_conversations,
    begins,
    ends,
    flat_messages,
    is_role,
)

MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])


class Chat:
    """Makes a conversation of each row, or passes one on."""

    schema = pa.schema([("prompt", pa.string()), ("completion", pa.string()), ("messages", pa.list_(MESSAGE))])
    template = "chat"

    def __init__(self, fields: FieldSettings, system_prompt: str) -> None:
        """Takes the settings.

        Args:
            fields: Which columns hold the text.
            system_prompt: System message of conversations that have none; empty for none.
        """
        self.fields, self.system_prompt = fields, system_prompt

    def reasons(self, batch: pa.RecordBatch) -> pa.StringArray:
        """Returns why a row can't be used, null where it can."""
        if not self.fields.chat_key:
            return missing_outputs(batch, self.fields)
        column = batch.column(self.fields.chat_key)
        row, role, content = flat_messages(column)
        said = pc.not_equal(pc.utf8_trim_whitespace(content.fill_null("")), "").to_numpy(zero_copy_only=False)
        answered = np.isin(np.arange(len(column)), row[ends(row) & is_role(role, "assistant") & said])
        bad = bad_conversations(column)
        return pa.array(np.where(bad, "bad_conversation", "no_output"), pa.string(), mask=~bad & answered)

    def rows(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Returns prompt, completion and messages of each row.

        The prompt is for people and for counting; what the model sees is made from the messages by its own template.
        """
        row, role, content = self._conversations(batch)
        last = ends(row)
        spoken = pc.binary_join_element_wise(role, content, ": ").filter(pa.array(~last))
        prompt = pc.binary_join(pa.ListArray.from_arrays(_offsets(row[~last], batch.num_rows), spoken), "\n\n")
        messages = pa.ListArray.from_arrays(
            _offsets(row, batch.num_rows), pa.StructArray.from_arrays([role, content], fields=list(MESSAGE))
        )
        return pa.RecordBatch.from_arrays([prompt, content.filter(pa.array(last)), messages], schema=self.schema)

    def unused_input(self, batch: pa.RecordBatch) -> int:
        """Returns 0: a conversation shows every input."""
        return 0

    def _conversations(self, batch: pa.RecordBatch) -> tuple[np.ndarray, pa.StringArray, pa.StringArray]:
        """Returns all messages in order: row number, role, content."""
        every = np.arange(batch.num_rows)
        if self.fields.chat_key:
            row, role, content = flat_messages(batch.column(self.fields.chat_key))
            position = np.arange(1, len(row) + 1)
            alone = np.setdiff1d(every, row[begins(row) & is_role(role, "system")])
        else:
            instruction, input, output = fields_of(batch, self.fields)
            gap = pc.if_else(pc.or_(pc.equal(instruction, ""), pc.equal(input, "")), "", "\n\n")
            asked = pc.binary_join_element_wise(instruction, gap, input, "")
            row, position = np.tile(every, 2), np.repeat([1, 2], len(every))
            role = pa.concat_arrays([_same("user", len(every)), _same("assistant", len(every))])
            content = pa.concat_arrays([asked, output])
            alone = every
        if self.system_prompt:
            row, position = np.concatenate([row, alone]), np.concatenate([position, np.zeros(len(alone), int)])
            role = pa.concat_arrays([role, _same("system", len(alone))])
            content = pa.concat_arrays([content, _same(self.system_prompt, len(alone))])
        order = np.lexsort((position, row))
        return row[order], role.take(pa.array(order)), content.take(pa.array(order))


def _same(text: str, rows: int) -> pa.StringArray:
    return pa.repeat(pa.scalar(text), rows)


def _offsets(row: np.ndarray, rows: int) -> pa.Array:
    counts = np.bincount(row, minlength=rows)
    return pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
