"""Refuses messages with content in fields that no card reads, as it would be lost without notice."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.rows import conversations
from llm_finetune.components.shared.rows.columns import as_json, as_text, is_text

_REASONING = (
    "Move it to content, before the answer and in the format of the model's chat template (such as "
    "<think>…</think>), or remove the field from the data"
)
UNREAD = {
    **dict.fromkeys(conversations.REASONING, _REASONING),
    "function_call": "Convert the call to tool_calls, a list of {'type': 'function', 'function': {'name', "
    "'arguments'}}, its result to a message with the role tool, and functions to the column tools; or remove the field "
    "from the data",
}
"""The fields, and what to use instead."""
_NOTHING = ("", "null", "{}", "[]")


def refuse_unread_fields(dataset: str | Path, key: str) -> None:
    """Raises if messages have content in a field that is not read.

    Args:
        dataset: Folder with the rows.
        key: Column with conversations that passed `check_conversations`.

    Raises:
        UserError: If a message has such a field; with the number of rows and the first one.
    """
    kind = tables.schema(dataset).field(key).type
    for field, instead in UNREAD.items():
        if is_text(kind):
            found = _in_texts(dataset, key, field)
        elif field in [part.name for part in kind.value_type]:
            found = _in_messages(dataset, key, field)
        else:
            continue
        rows = np.concatenate([np.array([], np.int64), *found])
        if len(rows):
            raise UserError(
                f"chat_key = {key!r}: messages in {len(rows):,} rows have {field!r}, first in row {rows[0]}. This "
                f"field is not read, so the model would be trained without it. {instead}"
            )


def _in_messages(dataset: str | Path, key: str, field: str) -> Iterator[np.ndarray]:
    """Yields the numbers of rows with a field; reads only the field's column in the Parquet files."""
    first = 0
    for batch in tables.batches(dataset, [f"{key}.list.element.{field}"]):
        column = batch.column(key)
        values = pc.struct_field(pc.list_flatten(column), field)
        if values.null_count < len(values):
            has_content = pc.invert(
                pc.is_in(pc.utf8_trim_whitespace(as_json(values)), value_set=pa.array([None, *_NOTHING]))
            )
            yield first + np.unique(pc.list_parent_indices(column).filter(has_content).to_numpy(zero_copy_only=False))
        first += batch.num_rows


def _in_texts(dataset: str | Path, key: str, field: str) -> Iterator[np.ndarray]:
    """Yields the numbers of rows with a field in JSON text; parses only texts that contain the field's name."""
    first = 0
    for batch in tables.batches(dataset, [key]):
        column = as_text(batch.column(key))
        named = pc.match_substring(column, f'"{field}"').fill_null(False).to_numpy(zero_copy_only=False)
        yield np.array(
            [first + i for i in np.flatnonzero(named) if conversations.has_field(column[i].as_py(), field)], np.int64
        )
        first += batch.num_rows
