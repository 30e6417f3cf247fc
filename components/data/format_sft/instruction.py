"""Formats rows with instruction, input and output by an instruction template."""

import pyarrow as pa
import pyarrow.compute as pc

from llm_finetune.components.data.format_sft.chat_template import chat_template
from llm_finetune.components.data.format_sft.template import Template
from llm_finetune.components.shared.questions import Messages
from llm_finetune.components.shared.rows.columns import as_text, empty_texts
from llm_finetune.components.shared.settings import FieldSettings


class Instruction:
    """Formats rows by an instruction template."""

    schema = pa.schema([("prompt", pa.string()), ("completion", pa.string())])

    def __init__(self, fields: FieldSettings, parsed: Template) -> None:
        """Stores the template.

        Args:
            fields: Names of the text columns.
            parsed: The template.
        """
        self.fields, self.parsed = fields, parsed
        self.template = parsed.text

    @property
    def columns(self) -> list[str]:
        """Columns to read."""
        return self.fields.keys

    @property
    def chat_template(self) -> str:
        """Chat template that renders a request like a training prompt."""
        return chat_template(self.parsed)

    def skip_reasons(self, batch: pa.RecordBatch) -> pa.StringArray:
        """Returns the reason to skip each row, or null."""
        return missing_outputs(batch, self.fields)

    def format_rows(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Returns prompt and completion of each row."""
        instruction, input, output = read_fields(batch, self.fields)
        arrays = [self.parsed.prompts(instruction, input), self.parsed.completions(output)]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def chat_requests(self, batch: pa.RecordBatch) -> list[Messages]:
        """Returns each row as a request that `chat_template` renders as the row's prompt."""
        instruction, input, _ = (column.to_pylist() for column in read_fields(batch, self.fields))
        if "input" not in self.parsed.fields:
            return [[{"role": "user", "content": text}] for text in instruction]
        if "instruction" not in self.parsed.fields:
            return [[{"role": "user", "content": text}] for text in input]
        return [
            [{"role": "system", "content": task}, {"role": "user", "content": value}]
            if value
            else [{"role": "user", "content": task}]
            for task, value in zip(instruction, input, strict=True)
        ]

    def count_unused_input(self, batch: pa.RecordBatch) -> int:
        """Returns the number of rows with an input that the template does not contain."""
        if "input" in self.parsed.fields or not self.fields.input_key:
            return 0
        return int(pc.sum(pc.not_equal(read_fields(batch, self.fields)[1], "")).as_py() or 0)


def read_fields(batch: pa.RecordBatch, fields: FieldSettings) -> tuple[pa.StringArray, pa.StringArray, pa.StringArray]:
    """Returns instruction, input and output unchanged; null becomes empty."""

    def column(key: str) -> pa.StringArray:
        return as_text(batch.column(key)).fill_null("") if key else empty_texts(batch.num_rows)

    return column(fields.instruction_key), column(fields.input_key), column(fields.output_key)


def missing_outputs(batch: pa.RecordBatch, fields: FieldSettings) -> pa.StringArray:
    """Returns `no_output` for rows with a null or blank output, null for others."""
    output = pc.utf8_trim_whitespace(read_fields(batch, fields)[2])
    return pc.if_else(pc.equal(output, ""), pa.scalar("no_output"), pa.scalar(None, pa.string()))
