"""Writes every measured row with its losses, answers and scores; all metrics can be recomputed from them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from llm_finetune.components.evaluation.evaluate.answers import AnswerSet
from llm_finetune.components.evaluation.evaluate.loss import Losses
from llm_finetune.components.shared import tables

ROWS_PER_BATCH = 8192


def write_examples(path: str | Path, losses: Losses, labels: Mapping[str, Sequence[str]], answers: AnswerSet) -> None:
    """Writes the rows.

    Columns: `row` (index in val_sft), `tokens`, `completion_tokens`, `base_nll` and `tuned_nll` (nats, summed over
    the completion's tokens), `slice_<by>` per kind of slice; for rows with answers also `prompt`, `reference`, a struct
    per candidate (`text`, `tokens`, `stopped` and its scores) and `judge`. If a score has a weight
    (`field_f1_weight`), its metric is Σ score · weight / Σ weight, else the mean.

    Args:
        path: Folder to write.
        losses: Losses of every row.
        labels: Slice of every row, per kind of slice.
        answers: Answers to the prompts of some rows.
    """
    records = {record["row"]: record for record in answers.records()}
    answered = pa.Table.from_pylist(list(records.values())).schema if records else pa.schema([])
    fields = [column for column in answered if column.name != "row"]
    numbers = {
        "row": pa.array(losses.rows, pa.int64()),
        "tokens": pa.array(losses.lengths, pa.int32()),
        "completion_tokens": pa.array(losses.tokens, pa.int32()),
        **{f"{name}_nll": pa.array(nll, pa.float64()) for name, nll in losses.nll.items()},
        **{f"slice_{by}": pa.array(names, pa.string()) for by, names in labels.items()},
    }
    measured = pa.table(numbers)
    with tables.ShardWriter(path, pa.schema([*measured.schema, *fields])) as writer:
        for batch in measured.to_batches(max_chunksize=ROWS_PER_BATCH):
            own = [records.get(row, {}) for row in batch["row"].to_pylist()]
            columns = [pa.array([record.get(column.name) for record in own], column.type) for column in fields]
            writer.write(pa.RecordBatch.from_arrays([*batch.columns, *columns], schema=writer.schema))
