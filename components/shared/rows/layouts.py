"""Layouts of training data: detects the text columns by name and type.

| layout | columns |
|---|---|
| instruction | `instruction`, `input`, `output` |
| prompt and completion | `prompt`, `completion` |
| messages | a list of `role` and `content`, in `messages`, `conversations` or `conversation` |
| ShareGPT | the same columns, a list of `from` and `value` |
| plain text | `text`, if there are no columns of other layouts |
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.rows.columns import is_text
from llm_finetune.components.shared.rows.conversations import is_conversation, is_sharegpt
from llm_finetune.components.shared.settings import FieldSettings

Fields = TypeVar("Fields", bound=FieldSettings)

_DEFAULT_KEYS = {
    name: FieldSettings.model_fields[name].default for name in ("instruction_key", "input_key", "output_key")
}


@dataclass(frozen=True)
class _Layout:
    """Columns of a layout, and the settings that select them.

    Attributes:
        columns: Required columns.
        fits: Returns whether a column's type is valid for this layout.
        keys: Settings that select the columns.
    """

    columns: tuple[str, ...]
    fits: Callable[[pa.DataType], bool]
    keys: Mapping[str, str]

    def is_in(self, schema: pa.Schema) -> bool:
        return all(name in schema.names and self.fits(schema.field(name).type) for name in self.columns)


_CHAT_COLUMNS = ("messages", "conversations", "conversation")
_CHAT = [_Layout((name,), is_conversation, {"chat_key": name}) for name in _CHAT_COLUMNS]
_PROMPT = _Layout(
    ("prompt", "completion"), is_text, {"instruction_key": "prompt", "input_key": "", "output_key": "completion"}
)
_TEXT = _Layout(("text",), is_text, {"instruction_key": "", "input_key": "", "output_key": "text"})


def detect_layout(schema: pa.Schema, fields: Fields) -> Fields:
    """Returns settings with the text columns of this data.

    Columns that the user has set, and default columns that exist in the data, are not changed.

    Args:
        schema: The dataset's schema.
        fields: The card's settings.

    Returns:
        The same settings, or a copy with the columns of the detected layout.

    Raises:
        UserError: If the data has the columns of two layouts.
    """
    if fields.chat_key or any(getattr(fields, name) != default for name, default in _DEFAULT_KEYS.items()):
        return fields
    if fields.instruction_key in schema.names and fields.output_key in schema.names:
        return fields
    found = [layout for layout in (*_CHAT, _PROMPT) if layout.is_in(schema)]
    if len(found) > 1:
        both = " and ".join(repr(" + ".join(layout.columns)) for layout in found)
        settings = " or ".join(_as_settings(layout.keys) for layout in found)
        raise UserError(f"the data has the columns of two layouts, {both}; select one of them: {settings}")
    if not found and _TEXT.is_in(schema):
        found = [_TEXT]
    return fields.model_copy(update=found[0].keys) if found else fields


def layout_name(schema: pa.Schema, fields: FieldSettings) -> str:
    """Returns the name of the layout that the settings select."""
    if fields.chat_key:
        return "ShareGPT" if is_sharegpt(schema.field(fields.chat_key).type) else "messages"
    if not fields.instruction_key and not fields.input_key:
        return "plain text"
    return "prompt and completion" if fields.instruction_key == "prompt" else "instruction"


class MixedLayoutCheck:
    """Detects rows whose text is in the columns of another layout."""

    def __init__(self, schema: pa.Schema, fields: FieldSettings) -> None:
        """Finds other layouts whose columns the data has.

        Args:
            schema: The dataset's schema.
            fields: Settings with the columns that are read.
        """
        self.own = fields.keys
        instruction = _Layout(tuple(key for key in _DEFAULT_KEYS.values() if key != "input"), is_text, _DEFAULT_KEYS)
        layouts = [layout for layout in (*_CHAT, _PROMPT, instruction) if layout.is_in(schema)]
        self.others = [layout for layout in layouts if not set(layout.columns) & set(self.own)]
        self.rows = 0

    def check(self, batch: pa.RecordBatch) -> None:
        """Raises for a row that is null in the columns of the detected layout, but not in those of another layout.

        Args:
            batch: The next rows.

        Raises:
            UserError: If there is such a row.
        """
        for layout in self.others:
            strays = pc.and_(_all(batch, self.own, True), _all(batch, layout.columns, False))
            if pc.any(strays).as_py():
                row = self.rows + pc.index(strays, True).as_py()
                raise UserError(
                    f"the data mixes layouts: row {row} has no value in {', '.join(map(repr, self.own))}, but in "
                    f"{', '.join(map(repr, layout.columns))}. Convert these rows, or load them as a separate dataset"
                )
        self.rows += batch.num_rows


def _all(batch: pa.RecordBatch, names: tuple[str, ...] | list[str], absent: bool) -> pa.BooleanArray:
    """Returns True for rows whose columns are all null (`absent`), or all not null."""
    result = pa.array([True]).take(pa.array([0] * batch.num_rows, pa.int32()))
    for name in names:
        column = batch.column(name)
        result = pc.and_(result, column.is_null() if absent else column.is_valid())
    return result


def _as_settings(keys: Mapping[str, str]) -> str:
    return ", ".join(f"{name} = {value!r}" for name, value in keys.items())
