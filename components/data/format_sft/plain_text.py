"""Formats rows of plain text, all of which is trained on."""

from pathlib import Path

import pyarrow as pa

from llm_finetune.components.data.format_sft.instruction import missing_outputs, read_fields
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.questions import Messages
from llm_finetune.components.shared.rows.columns import empty_texts
from llm_finetune.components.shared.settings import FieldSettings

TEMPLATE = "{output}"
MAX_OPENING_CHARACTERS = 200


class PlainText:
    """Uses the text as completion, with an empty prompt."""

    schema = pa.schema([("prompt", pa.string()), ("completion", pa.string())])
    template = TEMPLATE

    def __init__(self, fields: FieldSettings, template: str, default: str) -> None:
        """Checks the template.

        Args:
            fields: Name of the text column.
            template: The setting `template`.
            default: The setting's default, which counts as not set.

        Raises:
            UserError: If the template has fields that plain text does not have.
        """
        if template not in (default, TEMPLATE):
            raise UserError(
                f"template = {template!r}: the data is plain text (column {fields.output_key!r}) without instructions "
                "or turns. Use template = '{output}', or set the columns of the instruction and the answer"
            )
        self.fields = fields

    @property
    def columns(self) -> list[str]:
        """Columns to read."""
        return self.fields.keys

    @property
    def chat_template(self) -> str:
        """Chat template that renders a request as text for the model to continue."""
        return Path(__file__).with_name("plain_text.jinja").read_text(encoding="utf-8")

    def skip_reasons(self, batch: pa.RecordBatch) -> pa.StringArray:
        """Returns the reason to skip each row, or null."""
        return missing_outputs(batch, self.fields)

    def format_rows(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Returns an empty prompt and the text of each row."""
        return pa.RecordBatch.from_arrays(
            [empty_texts(batch.num_rows), read_fields(batch, self.fields)[2]], schema=self.schema
        )

    def chat_requests(self, batch: pa.RecordBatch) -> list[Messages]:
        """Returns the first words of each text for the model to continue; an empty request for a single word."""
        starts = [opening_text(text) for text in read_fields(batch, self.fields)[2].to_pylist()]
        return [[{"role": "user", "content": start}] if start else [] for start in starts]

    def count_unused_input(self, batch: pa.RecordBatch) -> int:
        """Returns 0, as plain text has no input."""
        return 0


def opening_text(text: str) -> str:
    """Returns at most half of a text and at most `MAX_OPENING_CHARACTERS`, up to the end of a word."""
    half = text[: min(len(text) // 2, MAX_OPENING_CHARACTERS)]
    return half if text[len(half) : len(half) + 1].isspace() else half.rpartition(" ")[0]
