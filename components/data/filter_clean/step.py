"""Drops rows that are no use, with a reason each, and makes the text of the others clean."""

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from llm_finetune.components.data.filter_clean import pii
from llm_finetune.components.data.filter_clean.judge import REASONS, Judge
from llm_finetune.components.data.filter_clean.settings import Settings
from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.files import content_hash
from llm_finetune.components.shared.pages import bars, cut, write_page
from llm_finetune.components.shared.text import bad_conversations, check_columns, is_text, texts

SHOWN_ROWS = 20
SHOWN_CHARACTERS = 160
LONGEST_COUNTED = 1 << 16
BINS = 32


@dataclass(frozen=True)
class Facts:
    """What was kept and dropped.

    Attributes:
        rows: Rows kept.
        rows_in: Rows read.
        dropped: Dropped rows by reason.
        personal_data: Things found in the kept rows by kind; empty with pii = off.
        converted: Values that were no text and became it, by column.
        columns: Names of the columns.
        content_hash: Hash of the files with the kept rows.
        dropped_content_hash: Hash of the files with the dropped rows.
    """

    rows: int
    rows_in: int
    dropped: dict[str, int]
    personal_data: dict[str, int]
    converted: dict[str, int]
    columns: list[str]
    content_hash: str
    dropped_content_hash: str

    def metadata(self) -> dict[str, Any]:
        """Returns the metadata of the clean dataset."""
        facts = asdict(self)
        del facts["dropped_content_hash"]
        return facts

    def dropped_metadata(self) -> dict[str, Any]:
        """Returns the metadata of the dropped rows."""
        return {
            "rows": self.rows_in - self.rows,
            "columns": [*self.columns, "reason"],
            "dropped": self.dropped,
            "content_hash": self.dropped_content_hash,
        }


class Tally:
    """What is counted on the way."""

    def __init__(self) -> None:
        """Begins at zero."""
        self.rows_in = 0
        self.dropped: Counter[str] = Counter()
        self.personal_data: Counter[str] = Counter()
        self.converted: Counter[str] = Counter()
        self.lengths = np.zeros(LONGEST_COUNTED + 1, np.int64)


def filter_clean(
    raw_dataset: str | Path,
    clean_dataset: str | Path,
    dropped_rows: str | Path,
    preview: str | Path,
    settings: Settings,
) -> Facts:
    """Filters and cleans a dataset and writes its preview.

    Args:
        raw_dataset: Folder with the rows.
        clean_dataset: Folder to write the kept rows to; their text is trimmed and always a string.
        dropped_rows: Folder to write the dropped rows to, with a column `reason`.
        preview: HTML file to write.
        settings: Limits and columns.

    Returns:
        Facts for the artifacts' metadata.

    Raises:
        UserError: If a column is missing, or nothing is left.
    """
    schema = tables.schema(raw_dataset)
    check_columns(schema, settings)
    tally = Tally()
    judge = Judge(
        settings.min_chars, settings.max_chars, settings.drop_if_missing_output, settings.dedup, settings.near_threshold
    )
    nothing = _cleaned(pa.RecordBatch.from_pylist([], schema), settings, Tally(), None)
    with ExitStack() as outputs:
        kept = outputs.enter_context(tables.ShardWriter(clean_dataset, nothing.schema))
        dropped = outputs.enter_context(
            tables.ShardWriter(dropped_rows, _with_reason(nothing, pa.array([], pa.string())).schema)
        )
        for batch in tables.read_ahead(tables.batches(raw_dataset)):
            _sort(batch, judge, kept, dropped, tally, settings)
        if not kept.rows:
            raise UserError(_nothing_left(tally, settings))
    facts = Facts(
        rows=kept.rows,
        rows_in=tally.rows_in,
        dropped=_ordered(tally.dropped, REASONS),
        personal_data=_ordered(tally.personal_data, pii.KINDS),
        converted=dict(tally.converted),
        columns=nothing.schema.names,
        content_hash=content_hash(clean_dataset),
        dropped_content_hash=content_hash(dropped_rows),
    )
    _show(clean_dataset, preview, facts, tally, settings)
    return facts


def _sort(
    batch: pa.RecordBatch,
    judge: Judge,
    kept: tables.ShardWriter,
    dropped: tables.ShardWriter,
    tally: Tally,
    settings: Settings,
) -> None:
    """Judges a batch and appends its rows to one of the outputs."""
    text = texts(batch, settings)
    lengths = text.lengths().to_numpy(zero_copy_only=False)
    bad = bad_conversations(batch.column(settings.chat_key)) if settings.chat_key else None
    reason = judge.reasons(text, lengths, bad)
    good = reason < 0
    tally.rows_in += batch.num_rows
    tally.lengths += np.bincount(np.minimum(lengths[good], LONGEST_COUNTED), minlength=LONGEST_COUNTED + 1)
    if settings.pii != "off":
        for column in (text.instruction, text.input, text.output):
            tally.personal_data += pii.count(column if good.all() else column.filter(pa.array(good)))
    clean = _cleaned(batch, settings, tally, text)
    kept.write(clean.filter(pa.array(good)) if not good.all() else clean)
    if not good.all():
        names = pa.array(REASONS).take(pa.array(reason[~good]))
        tally.dropped.update(names.to_pylist())
        dropped.write(_with_reason(clean.filter(pa.array(~good)), names))


def _cleaned(batch: pa.RecordBatch, settings: Settings, tally: Tally, text: Any) -> pa.RecordBatch:
    """Returns the batch with its text trimmed and as strings, and redacted if that is set."""
    text = text or texts(batch, settings)
    if not settings.chat_key:
        keys = (settings.instruction_key, settings.input_key, settings.output_key)
        for key, values in zip(keys, (text.instruction, text.input, text.output), strict=True):
            if key:
                old = batch.column(key)
                if not is_text(old.type) and len(old) > old.null_count:
                    tally.converted[key] += len(old) - old.null_count
                batch = batch.set_column(batch.schema.get_field_index(key), key, values)
    return pii.redacted_batch(batch) if settings.pii == "redact" else batch


def _with_reason(batch: pa.RecordBatch, reasons: pa.StringArray) -> pa.RecordBatch:
    """Appends the reasons; a column of the data that has this name already is kept as `source_reason`."""
    names = ["source_reason" if name == "reason" else name for name in batch.schema.names]
    return pa.RecordBatch.from_arrays([*batch.columns, reasons], names=[*names, "reason"])


def _nothing_left(tally: Tally, settings: Settings) -> str:
    if not tally.rows_in:
        return "the dataset has no rows"
    counts = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in tally.dropped.most_common())
    return (
        f"all {tally.rows_in:,} rows were filtered away: {counts}. Check min_chars = {settings.min_chars}, "
        f"max_chars = {settings.max_chars} and that {', '.join(settings.keys)} hold the text"
    )


def _ordered(counts: Mapping[str, int], names: tuple[str, ...]) -> dict[str, int]:
    return {name: counts[name] for name in names if counts.get(name)}


def _show(clean_dataset: str | Path, preview: str | Path, facts: Facts, tally: Tally, settings: Settings) -> None:
    table = tables.head(clean_dataset, SHOWN_ROWS)
    rows = zip(*(column.to_pylist() for column in table.columns), strict=True)
    write_page(
        preview,
        Path(__file__).with_name("preview.html.jinja"),
        title="Filter & Clean",
        facts=facts,
        histogram=histogram(tally.lengths),
        settings=settings,
        rows=[[" ".join(cut(cell, 4 * SHOWN_CHARACTERS).split("\n")) for cell in row] for row in rows],
        characters=SHOWN_CHARACTERS,
    )


def histogram(lengths: np.ndarray) -> dict[str, Any]:
    """Returns the drawing of how many rows have which length.

    Args:
        lengths: Number of rows per length; the last entry counts everything longer as well.

    Returns:
        `bars` for the SVG, the `least` and `most` characters, and the `highest` count.
    """
    present = np.flatnonzero(lengths)
    least, most = int(present[0]), int(present[-1])
    width = max(1, -(-(most - least + 1) // BINS))
    edges = np.arange(least, most + 1, width)
    counts = np.add.reduceat(lengths[: most + 1], edges).tolist()
    drawn = [
        bar | {"label": f"{edge} to {min(edge + width - 1, most)} characters: {count:,} rows"}
        for bar, edge, count in zip(bars(counts), edges.tolist(), counts, strict=True)
    ]
    return {"bars": drawn, "least": least, "most": most, "highest": max(counts), "open": most == LONGEST_COUNTED}
