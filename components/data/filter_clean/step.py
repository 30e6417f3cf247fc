"""Drops unusable rows with a reason, and cleans the text of the others."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa

from llm_finetune.components.data.filter_clean.cleaning import BatchFilter, Cleaner, Counts, with_reason
from llm_finetune.components.data.filter_clean.facts import Facts
from llm_finetune.components.data.filter_clean.page import write_preview
from llm_finetune.components.data.filter_clean.row_filter import REASONS, RowFilter
from llm_finetune.components.data.filter_clean.settings import Settings
from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.files import content_hash
from llm_finetune.components.shared.row_counts import check_accounted
from llm_finetune.components.shared.rows import pii_detectors
from llm_finetune.components.shared.rows.layouts import MixedLayoutCheck, detect_layout, layout_name
from llm_finetune.components.shared.rows.pii import PersonalData
from llm_finetune.components.shared.rows.text import check_columns
from llm_finetune.components.shared.rows.unread_fields import refuse_unread_fields


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
        clean_dataset: Folder to write for the kept rows; their text is trimmed and of type string.
        dropped_rows: Folder to write for the dropped rows, with a column `reason`.
        preview: HTML file to write.
        settings: Limits and columns.

    Returns:
        Facts for the artifacts' metadata.

    Raises:
        UserError: If a column is missing, messages have a field that is not read, or all rows are dropped.
    """
    schema = tables.schema(raw_dataset)
    fields = detect_layout(schema, settings)
    check_columns(schema, fields)
    if fields.chat_key:
        refuse_unread_fields(raw_dataset, fields.chat_key)
    personal = PersonalData(settings.phone_region) if settings.pii != "off" else None
    batch_filter = BatchFilter(
        Cleaner(fields), personal, RowFilter(settings), MixedLayoutCheck(schema, fields), Counts()
    )
    counts = batch_filter.counts
    empty = batch_filter.cleaner.clean(pa.RecordBatch.from_pylist([], schema)).rows
    with ExitStack() as outputs:
        kept = outputs.enter_context(tables.ShardWriter(clean_dataset, empty.schema))
        dropped = outputs.enter_context(
            tables.ShardWriter(dropped_rows, with_reason(empty, pa.array([], pa.string())).schema)
        )
        for batch in tables.read_ahead(tables.batches(raw_dataset)):
            good, bad = batch_filter.split(batch)
            kept.write(good)
            if bad is not None:
                dropped.write(bad)
        if not kept.rows:
            raise UserError(_all_dropped(counts, fields))
        check_accounted("Filter & Clean", tables.count_rows(raw_dataset), kept.rows, counts.dropped)
    facts = Facts(
        rows=kept.rows,
        rows_in=counts.rows_in,
        dropped=_ordered(counts.dropped, REASONS),
        personal_data=_ordered(counts.personal_data, pii_detectors.KINDS),
        converted=dict(batch_filter.cleaner.converted),
        repaired=batch_filter.cleaner.repaired,
        layout=layout_name(schema, fields),
        columns=empty.schema.names,
        content_hash=content_hash(clean_dataset),
        dropped_content_hash=content_hash(dropped_rows),
    )
    write_preview(clean_dataset, preview, facts, counts.lengths, batch_filter.row_filter.pairs, settings)
    return facts


def _all_dropped(counts: Counts, settings: Settings) -> str:
    if not counts.rows_in:
        return "the dataset has no rows"
    reasons = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in counts.dropped.most_common())
    return (
        f"all {counts.rows_in:,} rows were dropped: {reasons}. Check min_chars = {settings.min_chars}, max_chars = "
        f"{settings.max_chars}, and that the columns {', '.join(settings.keys)} hold the text"
    )


def _ordered(counts: Mapping[str, int], names: tuple[str, ...]) -> dict[str, int]:
    return {name: counts[name] for name in names if counts.get(name)}
