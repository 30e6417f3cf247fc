"""Rows as conversations, for the base model's own chat template."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm_finetune.components.data.format_sft.instruction import fields_of, missing_outputs
from llm_finetune.components.shared.questions import Messages
from llm_finetune.components.shared.rows.columns import as_json
from llm_finetune.components.shared.rows.conversations import (
    MESSAGE,
    TOOL_MESSAGE,
    TOOLS,
    as_messages,
    bad_conversations,
    begins,
    ends,
    flat_messages,
    is_role,
    spoken,
)
from llm_finetune.components.shared.settings import FieldSettings


class Chat:
    """Makes a conversation of each row, or passes one on with its tool calls."""

    template = "chat"

    def __init__(self, fields: FieldSettings, system_prompt: str, columns: pa.Schema) -> None:
        """Takes the settings.

        Args:
            fields: Which columns hold the text.
            system_prompt: System message of conversations that have none; empty for none.
            columns: The dataset's columns.
        """
        self.fields, self.system_prompt = fields, system_prompt
        self.with_tools = bool(fields.chat_key) and TOOLS in columns.names
        message = MESSAGE
        if fields.chat_key:
            empty = as_messages(pa.array([], columns.field(fields.chat_key).type), self.with_tools)
            message = empty.type.value_type
        parts = [("prompt", pa.string()), ("completion", pa.string()), ("messages", pa.list_(message))]
        self.schema = pa.schema([*parts, (TOOLS, pa.string())] if self.with_tools else parts)

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        return [*self.fields.keys, TOOLS] if self.with_tools else self.fields.keys

    def reasons(self, batch: pa.RecordBatch) -> pa.StringArray:
        """Returns why a row can't be used, null where it can."""
        if not self.fields.chat_key:
            return missing_outputs(batch, self.fields)
        column = self._given(batch)
        row, messages = flat_messages(column)
        said = pc.not_equal(spoken(messages), "").to_numpy(zero_copy_only=False)
        answered = np.isin(np.arange(len(column)), row[ends(row) & is_role(messages, "assistant") & said])
        bad = bad_conversations(column)
        return pa.array(np.where(bad, "bad_conversation", "no_output"), pa.string(), mask=~bad & answered)

    def rows(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Returns prompt, completion and messages of each row, and its tools where the data has them.

        Prompt and completion are for people and for counting; what the model sees is made from the messages and the
        tools by its own template.
        """
        row, messages = self._conversations(batch)
        last = ends(row)
        said = spoken(messages) if messages.type == TOOL_MESSAGE else pc.struct_field(messages, "content")
        turns = pc.binary_join_element_wise(pc.struct_field(messages, "role"), said, ": ").filter(pa.array(~last))
        prompt = pc.binary_join(pa.ListArray.from_arrays(_offsets(row[~last], batch.num_rows), turns), "\n\n")
        conversations = pa.ListArray.from_arrays(_offsets(row, batch.num_rows), messages)
        arrays = [prompt, said.filter(pa.array(last)), conversations]
        if self.with_tools:
            arrays.append(as_json(batch.column(TOOLS)))
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def requests(self, batch: pa.RecordBatch) -> list[Messages]:
        """Returns each conversation without its last answer; an empty request where it has tools."""
        rows = self.rows(batch)
        tools = rows[TOOLS].to_pylist() if self.with_tools else [None] * batch.num_rows
        return [[] if tool else _request(said) for said, tool in zip(rows["messages"].to_pylist(), tools, strict=True)]

    def unused_input(self, batch: pa.RecordBatch) -> int:
        """Returns 0: a conversation shows every input."""
        return 0

    def _given(self, batch: pa.RecordBatch) -> pa.ListArray:
        return as_messages(batch.column(self.fields.chat_key), self.with_tools)

    def _conversations(self, batch: pa.RecordBatch) -> tuple[np.ndarray, pa.StructArray]:
        """Returns all messages in order, each with its row number."""
        every = np.arange(batch.num_rows)
        if self.fields.chat_key:
            row, messages = flat_messages(self._given(batch))
            position = np.arange(1, len(row) + 1)
            alone = np.setdiff1d(every, row[begins(row) & is_role(messages, "system")])
        else:
            instruction, input, output = fields_of(batch, self.fields)
            gap = pc.if_else(pc.or_(pc.equal(instruction, ""), pc.equal(input, "")), "", "\n\n")
            asked = pc.binary_join_element_wise(instruction, gap, input, "")
            row, position = np.tile(every, 2), np.repeat([1, 2], len(every))
            messages = pa.concat_arrays([_said("user", asked, MESSAGE), _said("assistant", output, MESSAGE)])
            alone = every
        if self.system_prompt:
            row, position = np.concatenate([row, alone]), np.concatenate([position, np.zeros(len(alone), int)])
            system = _said("system", _same(self.system_prompt, len(alone)), messages.type)
            messages = pa.concat_arrays([messages, system])
        order = np.lexsort((position, row))
        return row[order], messages.take(pa.array(order))


def _said(role: str, content: pa.StringArray, kind: pa.StructType) -> pa.StructArray:
    """Returns messages of one role, without tool calls."""
    nothing = [pa.nulls(len(content), pa.string())] * (kind.num_fields - 2)
    return pa.StructArray.from_arrays([_same(role, len(content)), content, *nothing], fields=list(kind))


def _same(text: str, rows: int) -> pa.StringArray:
    return pa.repeat(pa.scalar(text), rows)


def _offsets(row: np.ndarray, rows: int) -> pa.Array:
    counts = np.bincount(row, minlength=rows)
    return pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())


def _request(messages: list[dict[str, Any]]) -> Messages:
    asked = messages[:-1]
    plain = all(message["role"] != "tool" and not message.get("tool_calls") for message in asked)
    usable = plain and bool(asked) and asked[-1]["role"] == "user"
    return [{name: message[name] for name in ("role", "content")} for message in asked] if usable else []
