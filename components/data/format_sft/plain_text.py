"""Rows of plain text, all of which is learned."""

from pathlib import Path

import pyarrow as pa

from llm_finetune.components.data.format_sft.instruction import fields_of, missing_outputs
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.questions import Messages
from llm_finetune.components.shared.rows.columns import empty
from llm_finetune.components.shared.settings import FieldSettings

TEMPLATE = "{output}"
BEGINNING = 200


class PlainText:
    """Passes text on as a completion without a prompt."""

    schema = pa.schema([("prompt", pa.string()), ("completion", pa.string())])
    template = TEMPLATE

    def __init__(self, fields: FieldSettings, template: str, default: str) -> None:
        """Checks that the template fits.

        Args:
            fields: Which column holds the text.
            template: The card's template.
            default: The template of data with instructions, which stands for none here.

        Raises:
            UserError: If the template asks for what plain text does not have.
        """
        if template not in (default, TEMPLATE):
            raise UserError(
                f"template = {template!r}: the data is plain text (column {fields.output_key!r}), which has neither an "
                "instruction nor turns. Use template = '{output}', or name the columns with the instruction and the "
                "answer"
            )
        self.fields = fields

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        return self.fields.keys

    @property
    def chat_template(self) -> str:
        """The chat template that renders a request as the text that the model goes on with."""
        return Path(__file__).with_name("plain_text.jinja").read_text(encoding="utf-8")

    def reasons(self, batch: pa.RecordBatch) -> pa.StringArray:
        """Returns why a row can't be used, null where it can."""
        return missing_outputs(batch, self.fields)

    def rows(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Returns an empty prompt and the text of each row."""
        return pa.RecordBatch.from_arrays([empty(batch.num_rows), fields_of(batch, self.fields)[2]], schema=self.schema)

    def requests(self, batch: pa.RecordBatch) -> list[Messages]:
        """Returns the beginning of each text, for the model to go on with; an empty request where it is one word."""
        starts = [beginning(text) for text in fields_of(batch, self.fields)[2].to_pylist()]
        return [[{"role": "user", "content": start}] if start else [] for start in starts]

    def unused_input(self, batch: pa.RecordBatch) -> int:
        """Returns 0: there is no input."""
        return 0


def beginning(text: str) -> str:
    """Returns the first half of a text, but a few lines at most, up to the end of a word."""
    half = text[: min(len(text) // 2, BEGINNING)]
    return half if text[len(half) : len(half) + 1].isspace() else half.rpartition(" ")[0]
