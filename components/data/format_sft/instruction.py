"""Rows with instruction, input and output, formatted by an instruction template."""

import pyarrow as pa
import pyarrow.compute as pc

from llm_finetune.components.data.format_sft.chat_template import chat_template
from llm_finetune.components.data.format_sft.template import Template
from llm_finetune.components.shared.questions import Messages
from llm_finetune.components.shared.rows.columns import as_text, empty
from llm_finetune.components.shared.settings import FieldSettings


class Instruction:
    """Formats rows with a template of one's own."""

    schema = pa.schema([("prompt", pa.string()), ("completion", pa.string())])

    def __init__(self, fields: FieldSettings, parsed: Template) -> None:
        """Takes the template.

        Args:
            fields: Which columns hold the text.
            parsed: The template.
        """
        self.fields, self.parsed = fields, parsed
        self.template = parsed.text

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        return self.fields.keys

    @property
    def chat_template(self) -> str:
        """The chat template that renders a request as the training prompt."""
        return chat_template(self.parsed)

    def reasons(self, batch: pa.RecordBatch) -> pa.StringArray:
        """Returns why a row can't be used, null where it can."""
        return missing_outputs(batch, self.fields)

    def rows(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Returns prompt and completion of each row."""
        instruction, input, output = fields_of(batch, self.fields)
        arrays = [self.parsed.prompts(instruction, input), self.parsed.completions(output)]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def requests(self, batch: pa.RecordBatch) -> list[Messages]:
        """Returns each row as the request that `chat_template` renders as its prompt."""
        instruction, input, _ = (column.to_pylist() for column in fields_of(batch, self.fields))
        if "input" not in self.parsed.fields:
            return [[{"role": "user", "content": text}] for text in instruction]
        if "instruction" not in self.parsed.fields:
            return [[{"role": "user", "content": text}] for text in input]
        return [
            [{"role": "system", "content": said}, {"role": "user", "content": given}]
            if given
            else [{"role": "user", "content": said}]
            for said, given in zip(instruction, input, strict=True)
        ]

    def unused_input(self, batch: pa.RecordBatch) -> int:
        """Returns how many rows have an input that the template does not show."""
        if "input" in self.parsed.fields or not self.fields.input_key:
            return 0
        return int(pc.sum(pc.not_equal(fields_of(batch, self.fields)[1], "")).as_py() or 0)


def fields_of(batch: pa.RecordBatch, fields: FieldSettings) -> tuple[pa.StringArray, pa.StringArray, pa.StringArray]:
    """Returns instruction, input and output exactly as they are; null is empty."""

    def column(key: str) -> pa.StringArray:
        return as_text(batch.column(key)).fill_null("") if key else empty(batch.num_rows)

    return column(fields.instruction_key), column(fields.input_key), column(fields.output_key)


def missing_outputs(batch: pa.RecordBatch, fields: FieldSettings) -> pa.StringArray:
    """Returns `no_output` where there is nothing to learn: a null or blank output."""
    output = pc.utf8_trim_whitespace(fields_of(batch, fields)[2])
    return pc.if_else(pc.equal(output, ""), pa.scalar("no_output"), pa.scalar(None, pa.string()))
