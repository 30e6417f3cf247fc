"""Rows that get lost on the way, or within a card, end the run at the next card."""

import itertools
from pathlib import Path

import pyarrow as pa
import pytest
from kfp import dsl
from tiny import tiny_tokenizer

from llm_finetune.components.data.data_report import step as report
from llm_finetune.components.data.data_report.component import data_report
from llm_finetune.components.data.filter_clean.component import filter_clean
from llm_finetune.components.data.format_sft.component import format_sft
from llm_finetune.components.data.gather_shards.component import gather_shards
from llm_finetune.components.data.partition_rows.component import partition_rows
from llm_finetune.components.data.train_val_split.component import train_val_split
from llm_finetune.components.evaluation.evaluate.component import evaluate
from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.row_counts import check_accounted
from llm_finetune.components.tokens.tokenize.component import tokenize
from llm_finetune.components.training.finetune_lora.component import finetune_lora

ROWS, ROWS_PER_FILE = 100, 40
READERS = {
    filter_clean: ("raw_dataset",),
    train_val_split: ("clean_dataset",),
    format_sft: ("train_dataset", "val_dataset"),
    tokenize: ("train_sft", "val_sft"),
    data_report: report.STAGES,
    finetune_lora: ("train_tokens", "val_tokens"),
    evaluate: ("val_tokens", "val_sft", "train_tokens"),
}


def made(folder: Path, name: str, table: pa.Table) -> dsl.Dataset:
    with tables.ShardWriter(folder / name, table.schema, rows_per_shard=ROWS_PER_FILE) as writer:
        writer.write(table)
    return dsl.Dataset(uri=str(folder / name), metadata={"rows": table.num_rows})


def inputs(folder: Path, card) -> dict[str, dsl.Artifact]:
    """Returns the artifacts of a card: its datasets with rows of any layout, the others without a file."""
    rows = pa.table({name: [f"this is {name} {row}" for row in range(ROWS)]
                     for name in ("instruction", "input", "output", "prompt", "completion")})  # fmt: skip
    columns = ["prompt", "completion"] if card is tokenize else ["instruction", "input", "output"]
    spec = card.component_spec
    names = [
        name for name, kind in {**(spec.inputs or {}), **(spec.outputs or {})}.items() if "system." in str(kind.type)
    ]
    return {
        name: made(folder, name, rows.select(columns))
        if name in READERS.get(card, ())
        else dsl.Artifact(uri=str(folder / name))
        for name in names
    }


def refused(capsys, card, **arguments) -> str:
    with pytest.raises(SystemExit):
        card.python_func(**arguments)
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("card", "name"), [(card, name) for card, names in READERS.items() for name in names],
    ids=lambda value: getattr(value, "name", value),
)  # fmt: skip
def test_a_dataset_that_has_lost_a_file_is_refused_by_each_card_that_reads_it(tmp_path, capsys, card, name):
    artifacts = inputs(tmp_path, card)
    files = tables.shards(artifacts[name].path)
    assert len(files) == 3
    files[1].unlink()
    error = refused(capsys, card, **artifacts)
    assert f"error: {name} was written with 100 rows, but its files have 60. Files were lost or truncated" in error
    files[2].write_bytes(files[2].read_bytes()[:-100])
    error = refused(capsys, card, **artifacts)
    assert f"error: {name}: part-00002.parquet is not a complete Parquet file" in error
    outputs = [value.path for key, value in artifacts.items() if key not in READERS[card]]
    assert not any(Path(path).exists() for path in outputs)


@pytest.mark.parametrize("card", [filter_clean, train_val_split, format_sft, tokenize], ids=lambda card: card.name)
def test_a_card_that_loses_rows_is_refused(tmp_path, capsys, monkeypatch, card):
    def short(path, columns=None, rows=tables.ROWS_PER_GROUP):
        return itertools.islice(whole(path, columns, 10), 9 if Path(path).name in READERS[card] else None)

    whole = tables.batches
    artifacts = inputs(tmp_path, card)
    settings = {"model_name": str(tiny_tokenizer(tmp_path / "model"))} if card is tokenize else {}
    artifacts.pop("model_config", None)
    monkeypatch.setattr(tables, "batches", short)
    error = refused(capsys, card, **artifacts, **settings)
    assert " read 100 rows, wrote 90 and dropped 0: 10 are missing. This is a defect of the card" in error
    monkeypatch.undo()
    card.python_func(**artifacts, **settings)


def test_shards_that_lose_rows_are_refused(tmp_path, capsys, monkeypatch):
    shard = made(tmp_path, "shard", pa.table({"text": [f"row {row}" for row in range(ROWS)]}))
    shard.metadata.update(source="files", part=0)
    whole, out = tables.batches, dsl.Dataset(uri=str(tmp_path / "out"))
    monkeypatch.setattr(tables, "batches", lambda path: itertools.islice(whole(path), 1))
    error = refused(capsys, partition_rows, shards=[shard], planned=["files"], partitions=out, parts=2)
    assert "Partition Rows read 100 rows, wrote 40 and dropped 0: 60 are missing" in error
    error = refused(capsys, gather_shards, shards=[shard], partitions=[{"part": 0, "rows": 100}], dataset=out)
    assert "Gather Shards read 100 rows, wrote 40 and dropped 0: 60 are missing" in error
    assert not Path(out.path).exists()


def test_rows_add_up_or_not():
    check_accounted("Card", 10, 7, {"too short": 2, "duplicate": 1})
    with pytest.raises(UserError, match="read 10 rows, wrote 9 and dropped 2: 1 are too many"):
        check_accounted("Card", 10, 9, {"too short": 2})
