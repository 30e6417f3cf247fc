"""Formats rows as conversations for the base model's chat template."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm_finetune.components.data.format_sft.instruction import missing_outputs, read_fields
from llm_finetune.components.shared.questions import Messages
from llm_finetune.components.shared.rows.columns import as_json
from llm_finetune.components.shared.rows.conversations import (
    MESSAGE,
    TOOL_MESSAGE,
    TOOLS,
    as_messages,
    bad_conversations,
    flatten_messages,
    is_first_message,
    is_last_message,
    is_role,
    message_texts,
)
from llm_finetune.components.shared.settings import FieldSettings


class Chat:
    """Converts rows to conversations, or passes conversations on with their tool calls."""

    template = "chat"

    def __init__(self, fields: FieldSettings, system_prompt: str, columns: pa.Schema) -> None:
        """Computes the output schema.

        Args:
            fields: Names of the text columns.
            system_prompt: System message for conversations without one; empty for none.
            columns: Schema of the dataset.
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
        """Columns to read."""
        return [*self.fields.keys, TOOLS] if self.with_tools else self.fields.keys

    def skip_reasons(self, batch: pa.RecordBatch) -> pa.StringArray:
        """Returns the reason to skip each row, or null."""
        if not self.fields.chat_key:
            return missing_outputs(batch, self.fields)
        column = self._messages(batch)
        row, messages = flatten_messages(column)
        has_text = pc.not_equal(message_texts(messages), "").to_numpy(zero_copy_only=False)
        is_answer = is_last_message(row) & is_role(messages, "assistant") & has_text
        answered = np.isin(np.arange(len(column)), row[is_answer])
        bad = bad_conversations(column)
        return pa.array(np.where(bad, "bad_conversation", "no_output"), pa.string(), mask=~bad & answered)

    def format_rows(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Returns prompt, completion and messages of each row, and its tools if the data has them.

        Prompt and completion are for previews and statistics. The model's own template renders messages and tools.
        """
        row, messages = self._conversations(batch)
        last = is_last_message(row)
        texts = message_texts(messages) if messages.type == TOOL_MESSAGE else pc.struct_field(messages, "content")
        turns = pc.binary_join_element_wise(pc.struct_field(messages, "role"), texts, ": ").filter(pa.array(~last))
        prompt = pc.binary_join(pa.ListArray.from_arrays(_offsets(row[~last], batch.num_rows), turns), "\n\n")
        conversations = pa.ListArray.from_arrays(_offsets(row, batch.num_rows), messages)
        arrays = [prompt, texts.filter(pa.array(last)), conversations]
        if self.with_tools:
            arrays.append(as_json(batch.column(TOOLS)))
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def chat_requests(self, batch: pa.RecordBatch) -> list[Messages]:
        """Returns each conversation without its last answer; an empty request if it has tools."""
        rows = self.format_rows(batch)
        tools = rows[TOOLS].to_pylist() if self.with_tools else [None] * batch.num_rows
        conversations = rows["messages"].to_pylist()
        return [[] if tool else _request(messages) for messages, tool in zip(conversations, tools, strict=True)]

    def count_unused_input(self, batch: pa.RecordBatch) -> int:
        """Returns 0, as a conversation contains every input."""
        return 0

    def _messages(self, batch: pa.RecordBatch) -> pa.ListArray:
        return as_messages(batch.column(self.fields.chat_key), self.with_tools)

    def _conversations(self, batch: pa.RecordBatch) -> tuple[np.ndarray, pa.StructArray]:
        """Returns the row number of each message, and all messages in order."""
        every = np.arange(batch.num_rows)
        if self.fields.chat_key:
            row, messages = flatten_messages(self._messages(batch))
            position = np.arange(1, len(row) + 1)
            without_system = np.setdiff1d(every, row[is_first_message(row) & is_role(messages, "system")])
        else:
            instruction, input, output = read_fields(batch, self.fields)
            gap = pc.if_else(pc.or_(pc.equal(instruction, ""), pc.equal(input, "")), "", "\n\n")
            question = pc.binary_join_element_wise(instruction, gap, input, "")
            row, position = np.tile(every, 2), np.repeat([1, 2], len(every))
            messages = pa.concat_arrays(
                [_role_messages("user", question, MESSAGE), _role_messages("assistant", output, MESSAGE)]
            )
            without_system = every
        if self.system_prompt:
            row, position = (
                np.concatenate([row, without_system]),
                np.concatenate([position, np.zeros(len(without_system), int)]),
            )
            system = _role_messages("system", _repeat(self.system_prompt, len(without_system)), messages.type)
            messages = pa.concat_arrays([messages, system])
        order = np.lexsort((position, row))
        return row[order], messages.take(pa.array(order))


def _role_messages(role: str, content: pa.StringArray, kind: pa.StructType) -> pa.StructArray:
    """Returns messages with one role and without tool calls."""
    nulls = [pa.nulls(len(content), pa.string())] * (kind.num_fields - 2)
    return pa.StructArray.from_arrays([_repeat(role, len(content)), content, *nulls], fields=list(kind))


def _repeat(text: str, rows: int) -> pa.StringArray:
    return pa.repeat(pa.scalar(text), rows)


def _offsets(row: np.ndarray, rows: int) -> pa.Array:
    counts = np.bincount(row, minlength=rows)
    return pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())


def _request(messages: list[dict[str, Any]]) -> Messages:
    request = messages[:-1]
    plain = all(message["role"] != "tool" and not message.get("tool_calls") for message in request)
    usable = plain and bool(request) and request[-1]["role"] == "user"
    return [{name: message[name] for name in ("role", "content")} for message in request] if usable else []
