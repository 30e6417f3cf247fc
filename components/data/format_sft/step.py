"""Formats rows as prompt and completion, and writes the chat template that renders requests in the same way."""

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from llm_finetune.components.data.format_sft import sample_questions
from llm_finetune.components.data.format_sft.chat import Chat
from llm_finetune.components.data.format_sft.instruction import Instruction
from llm_finetune.components.data.format_sft.plain_text import PlainText
from llm_finetune.components.data.format_sft.settings import DEFAULT_TEMPLATE, Settings
from llm_finetune.components.data.format_sft.template import parse
from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError, nearest
from llm_finetune.components.shared.files import content_hash
from llm_finetune.components.shared.pages import write_page
from llm_finetune.components.shared.questions import Question, write
from llm_finetune.components.shared.row_counts import check_accounted
from llm_finetune.components.shared.rows.layouts import detect_layout, layout_name
from llm_finetune.components.shared.rows.text import check_columns
from llm_finetune.components.shared.rows.unread_fields import refuse_unread_fields
from llm_finetune.components.shared.settings import split_names

CHAT = "chat"
Formatter = Chat | Instruction | PlainText
SHOWN_ROWS = 5
SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class Facts:
    """Facts about a formatted split.

    Attributes:
        rows: Rows written.
        rows_in: Rows read.
        skipped: Skipped rows by reason.
        unused_input: Rows whose input the template does not contain.
        layout: Name of the data's layout.
        template: The template, or `chat`.
        template_hash: Hash of all settings that determine the format.
        columns: Column names.
        content_hash: Hash of the written files.
    """

    rows: int
    rows_in: int
    skipped: dict[str, int]
    unused_input: int
    layout: str
    template: str
    template_hash: str
    columns: list[str]
    content_hash: str

    def metadata(self) -> dict[str, object]:
        """Returns the facts as artifact metadata."""
        return asdict(self)


def format_sft(
    train_dataset: str | Path,
    val_dataset: str | Path,
    train_sft: str | Path,
    val_sft: str | Path,
    preview: str | Path,
    settings: Settings,
) -> tuple[Facts, Facts]:
    """Formats both splits and writes their preview.

    Args:
        train_dataset: Folder with the training rows.
        val_dataset: Folder with the validation rows.
        train_sft: Folder to write for training.
        val_sft: Folder to write for validation.
        preview: HTML file to write.
        settings: The card's settings.

    Returns:
        Facts about the training and the validation split.

    Raises:
        UserError: If the template is invalid, a column is missing or no row of a split has an answer.
    """
    columns = tables.schema(train_dataset)
    fields = detect_layout(columns, settings)
    for dataset in (train_dataset, val_dataset):
        check_columns(tables.schema(dataset), fields)
        if fields.chat_key:
            refuse_unread_fields(dataset, fields.chat_key)
    formatter = _formatter(fields, columns)
    layout = layout_name(columns, fields)
    train = _format(train_dataset, train_sft, "training", formatter, layout, settings)
    val = _format(val_dataset, val_sft, "validation", formatter, layout, settings)
    _write_preview(preview, {"Training": (train_sft, train), "Validation": (val_sft, val)}, formatter, settings)
    return train, val


def _formatter(settings: Settings, columns: pa.Schema) -> Formatter:
    if settings.system_prompt and settings.template != CHAT:
        raise UserError("system_prompt needs template = 'chat'; otherwise write the text into the template")
    if settings.chat_key and settings.template != CHAT:
        raise UserError(f"chat_key = {settings.chat_key!r}: conversations need template = 'chat', the base model's own")
    if not settings.chat_key and not settings.instruction_key and not settings.input_key:
        return PlainText(settings, settings.template, DEFAULT_TEMPLATE)
    if settings.template == CHAT:
        return Chat(settings, settings.system_prompt, columns)
    return Instruction(settings, parse(settings.template, settings.drop_empty_sections))


def _format(
    dataset: str | Path, sft: str | Path, split: str, formatter: Formatter, layout: str, settings: Settings
) -> Facts:
    skipped: Counter[str] = Counter()
    unused_input = 0
    questions: list[Question] = []
    extra = _extra_columns(tables.schema(dataset), settings)
    schema = pa.schema([*formatter.schema, *extra])
    with tables.ShardWriter(sft, schema) as writer:
        for batch in tables.batches(dataset, list(dict.fromkeys([*formatter.columns, *extra.names]))):
            reasons = formatter.skip_reasons(batch)
            skipped.update(reasons.drop_null().to_pylist())
            kept = batch.filter(reasons.is_null())
            if kept.num_rows:
                rows = formatter.format_rows(kept)
                first, answers = (
                    kept.slice(0, sample_questions.ROWS_READ),
                    rows["completion"].slice(0, sample_questions.ROWS_READ),
                )
                questions = questions or sample_questions.select_questions(
                    formatter.chat_requests(first), answers.to_pylist()
                )
                columns = [*rows.columns, *kept.select(extra.names).columns]
                writer.write(pa.RecordBatch.from_arrays(columns, schema=schema))
                unused_input += formatter.count_unused_input(kept)
        if not writer.rows:
            raise UserError(
                f"all {split} rows were skipped: {_counts(skipped)}. Check that the columns "
                f"{', '.join(formatter.columns)} hold the text"
            )
        check_accounted("Format for SFT", tables.count_rows(dataset), writer.rows, skipped)
        write(writer.folder, questions)
        template_hash = _write_format(writer.folder, formatter, settings)
    return Facts(
        rows=writer.rows,
        rows_in=writer.rows + skipped.total(),
        skipped=dict(skipped),
        unused_input=unused_input,
        layout=layout,
        template=formatter.template,
        template_hash=template_hash,
        columns=schema.names,
        content_hash=content_hash(sft),
    )


def _extra_columns(columns: pa.Schema, settings: Settings) -> pa.Schema:
    """Returns the schema of `keep_columns`."""
    for name in split_names(settings.keep_columns):
        if name not in columns.names:
            raise UserError(
                f"keep_columns = {name!r}: no such column{nearest(name, columns.names)} "
                f"(columns: {', '.join(columns.names)})"
            )
    return pa.schema([columns.field(name) for name in split_names(settings.keep_columns)])


def _write_format(folder: Path, formatter: Formatter, settings: Settings) -> str:
    """Writes a description of the format next to the rows, for Tokenize and vLLM Serve."""
    described = {
        "template": formatter.template,
        "system_prompt": settings.system_prompt,
        "drop_empty_sections": settings.drop_empty_sections,
    }
    template_hash = "sha256:" + hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    text = json.dumps(described | {"template_hash": template_hash}, indent=2, ensure_ascii=False)
    (folder / "format.json").write_text(text + "\n", encoding="utf-8")
    if not isinstance(formatter, Chat):
        (folder / "chat_template.jinja").write_text(formatter.chat_template, encoding="utf-8", newline="\n")
    return template_hash


def _write_preview(
    preview: str | Path, splits: dict[str, tuple[str | Path, Facts]], formatter: Formatter, settings: Settings
) -> None:
    shown = []
    for name, (folder, facts) in splits.items():
        head = tables.head(folder, SHOWN_ROWS)
        samples = head.select(["prompt", "completion"]).to_pylist()
        shown.append({"name": name, "facts": facts, "samples": samples})
    write_page(
        preview,
        Path(__file__).with_name("preview.html.jinja"),
        title="Format for SFT",
        layout=next(iter(splits.values()))[1].layout,
        splits=shown,
        shown_template=formatter.template,
        is_chat=formatter.template == CHAT,
        system_prompt=settings.system_prompt,
        characters=SHOWN_CHARACTERS,
    )


def _counts(skipped: Counter[str]) -> str:
    return ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in skipped.items()) or "there are none"
