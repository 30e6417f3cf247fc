"""Drops rows that are no use, with a reason each, and makes the text of the others clean."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa

from llm_finetune.components.data.filter_clean.facts import Facts
from llm_finetune.components.data.filter_clean.judge import REASONS, Judge
from llm_finetune.components.data.filter_clean.page import show
from llm_finetune.components.data.filter_clean.settings import Settings
from llm_finetune.components.data.filter_clean.worker import Cleaner, Tally, Worker, with_reason
from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.files import content_hash
from llm_finetune.components.shared.row_counts import check_accounted
from llm_finetune.components.shared.rows import pii_detectors
from llm_finetune.components.shared.rows.layouts import Mixture, layout_of, recognised
from llm_finetune.components.shared.rows.pii import PersonalData
from llm_finetune.components.shared.rows.text import check_columns
from llm_finetune.components.shared.rows.unread_fields import refuse_unread


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
        UserError: If a column is missing, messages have a field that is not read, or nothing is left.
    """
    schema = tables.schema(raw_dataset)
    fields = recognised(schema, settings)
    check_columns(schema, fields)
    if fields.chat_key:
        refuse_unread(raw_dataset, fields.chat_key)
    personal = PersonalData(settings.phone_region) if settings.pii != "off" else None
    worker = Worker(Cleaner(fields), personal, Judge(settings), Mixture(schema, fields), Tally())
    tally = worker.tally
    nothing = worker.cleaner.cleaned(pa.RecordBatch.from_pylist([], schema)).rows
    with ExitStack() as outputs:
        kept = outputs.enter_context(tables.ShardWriter(clean_dataset, nothing.schema))
        dropped = outputs.enter_context(
            tables.ShardWriter(dropped_rows, with_reason(nothing, pa.array([], pa.string())).schema)
        )
        for batch in tables.read_ahead(tables.batches(raw_dataset)):
            good, bad = worker.sort(batch)
            kept.write(good)
            if bad is not None:
                dropped.write(bad)
        if not kept.rows:
            raise UserError(_nothing_left(tally, fields))
        check_accounted("Filter & Clean", tables.count_rows(raw_dataset), kept.rows, tally.dropped)
    facts = Facts(
        rows=kept.rows,
        rows_in=tally.rows_in,
        dropped=_ordered(tally.dropped, REASONS),
        personal_data=_ordered(tally.personal_data, pii_detectors.KINDS),
        converted=dict(worker.cleaner.converted),
        repaired=worker.cleaner.repaired,
        layout=layout_of(schema, fields),
        columns=nothing.schema.names,
        content_hash=content_hash(clean_dataset),
        dropped_content_hash=content_hash(dropped_rows),
    )
    show(clean_dataset, preview, facts, tally.lengths, worker.judge.pairs, settings)
    return facts


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
