"""Fields of messages that carry what was said or called and that no card reads: refused, since they would vanish."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.rows import json_messages
from llm_finetune.components.shared.rows.columns import as_json, as_text, is_text

_REASONING = (
    "Write it into content, before the answer and as the model's chat template writes it (such as <think>…</think>), "
    "or remove the field from the data"
)
UNREAD = {
    **dict.fromkeys(json_messages.REASONING, _REASONING),
    "function_call": "Write the call as tool_calls, a list of {'type': 'function', 'function': {'name', 'arguments'}}, "
    "its result as a message of the role tool, and functions as the column tools; or remove the field from the data",
}
"""The fields, and what to write instead."""
_NOTHING = ("", "null", "{}", "[]")


def refuse_unread(dataset: str | Path, key: str) -> None:
    """Refuses conversations whose messages say something in a field that is not read.

    Args:
        dataset: Folder of the rows.
        key: Column with the conversations, as `check_conversations` has passed it.

    Raises:
        UserError: Naming the field, how many rows have it and the first one.
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
                f"chat_key = {key!r}: in {len(rows):,} rows messages have {field!r}, first in row {rows[0]}. It is not "
                f"read, so the model would be trained without it. {instead}"
            )


def _in_messages(dataset: str | Path, key: str, field: str) -> Iterator[np.ndarray]:
    """Returns the numbers of rows with a field, from its own column in the Parquet files alone."""
    first = 0
    for batch in tables.batches(dataset, [f"{key}.list.element.{field}"]):
        column = batch.column(key)
        values = pc.struct_field(pc.list_flatten(column), field)
        if values.null_count < len(values):
            said = pc.invert(pc.is_in(pc.utf8_trim_whitespace(as_json(values)), value_set=pa.array([None, *_NOTHING])))
            yield first + np.unique(pc.list_parent_indices(column).filter(said).to_numpy(zero_copy_only=False))
        first += batch.num_rows


def _in_texts(dataset: str | Path, key: str, field: str) -> Iterator[np.ndarray]:
    """The same of conversations that are JSON text; only texts with the field's name are parsed."""
    first = 0
    for batch in tables.batches(dataset, [key]):
        column = as_text(batch.column(key))
        named = pc.match_substring(column, f'"{field}"').fill_null(False).to_numpy(zero_copy_only=False)
        yield np.array(
            [first + i for i in np.flatnonzero(named) if json_messages.has(column[i].as_py(), field)], np.int64
        )
        first += batch.num_rows
