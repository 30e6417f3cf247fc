"""Dealing rows out to partitions and gathering them: all of them, or a refusal."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from kfp import dsl
from kfp.dsl.executor import Executor

from llm_finetune.components.data.filter_clean.component import filter_clean
from llm_finetune.components.data.gather_shards.component import gather_shards
from llm_finetune.components.data.partition_rows.component import partition_rows
from llm_finetune.components.shared import tables


def artifact(path: Path) -> dsl.Dataset:
    path.parent.mkdir(parents=True, exist_ok=True)
    return dsl.Dataset(uri=str(path))


def rows_of(dataset: dsl.Dataset) -> list[str]:
    return [json.dumps(row) for batch in tables.batches(dataset.path) for row in batch.to_pylist()]


def refused(capsys, card, *arguments, **named) -> str:
    """Returns what a card prints that ends with a message."""
    with pytest.raises(SystemExit):
        card.python_func(*arguments, **named)
    return capsys.readouterr().err


def dataset(path: Path, table: pa.Table, **metadata) -> dsl.Dataset:
    with tables.ShardWriter(path, table.schema) as writer:
        writer.write(table)
    made = artifact(path)
    made.metadata.update(rows=table.num_rows, **metadata)
    return made


def dealt_out(*rows: int) -> list[dict[str, int]]:
    return [{"part": part, "rows": count} for part, count in enumerate(rows)]


def test_mistakes_end_with_a_message(tmp_path, capsys):
    shards = [dataset(tmp_path / name, pa.table({name: [1]}), source=name, part=part)
              for part, name in enumerate(["a", "b"])]  # fmt: skip
    out = artifact(tmp_path / "out")
    assert "have different columns" in refused(capsys, gather_shards, shards, dealt_out(1, 1), out)
    assert "have different columns" in refused(capsys, partition_rows, shards, ["a", "b"], out)
    assert "must be between 1 and 48" in refused(capsys, partition_rows, shards[:1], ["a"], out, 0)
    few = dataset(tmp_path / "few", pa.table({"text": ["one row"]}), source="few")
    assert "with 1 rows, 2 of 3 partitions are empty; use fewer shards" in refused(
        capsys, partition_rows, [few], ["few"], out, 3
    )
    assert not (tmp_path / "out").exists()


def test_a_shard_that_has_not_arrived_is_refused(tmp_path, capsys):
    shards = [dataset(tmp_path / name, pa.table({"text": [f"{name} {row}" for row in range(9)]}), source=name)
              for name in ("a.jsonl and 1 more", "c.jsonl")]  # fmt: skip
    names, out = [shard.metadata["source"] for shard in shards], artifact(tmp_path / "out")
    error = refused(capsys, partition_rows, shards[1:], names, out, 2)
    assert "2 shards were planned, 1 arrived; missing: shard 0 (a.jsonl and 1 more). The backend did not" in error
    error = refused(capsys, partition_rows, [shards[1], shards[1]], names, out, 2)
    assert "2 arrived; missing: shard 0 (a.jsonl and 1 more); not planned or duplicate: c.jsonl. " in error
    partition_rows.python_func(shards[::-1], names, out, 1)
    rows = rows_of(artifact(tmp_path / "out" / "00000"))
    assert rows[0] == '{"text": "a.jsonl and 1 more 0"}' and len(rows) == 18


def test_a_partition_that_has_not_arrived_is_refused(tmp_path, capsys):
    parts = [dataset(tmp_path / str(part), pa.table({"x": [part]}), part=part) for part in range(3)]
    out = artifact(tmp_path / "out")
    error = refused(capsys, gather_shards, parts[1:2], dealt_out(4, 4, 4), out)
    assert "3 partitions were planned, 1 arrived; missing: partition 0, partition 2. The backend did not" in error
    error = refused(capsys, gather_shards, [parts[0], parts[1], parts[1]], dealt_out(4, 4, 4), out)
    assert "missing: partition 2; not planned or duplicate: 1. " in error
    error = refused(capsys, gather_shards, parts, dealt_out(4, 4), out)
    assert "2 partitions were planned, 3 arrived; not planned or duplicate: 2. " in error
    assert not (tmp_path / "out").exists()
    gather_shards.python_func(parts[::-1], dealt_out(4, 4, 4), out)
    assert rows_of(out) == ['{"x": 0}', '{"x": 1}', '{"x": 2}']


def test_rows_that_were_lost_on_the_way_are_refused(tmp_path, capsys):
    source = dataset(
        tmp_path / "source", pa.table({"text": [f"this is the row number {row}" for row in range(50)]}), source="s"
    )
    partitions = artifact(tmp_path / "partitions")
    dealt = partition_rows.python_func([source], ["s"], partitions, 2)
    (tmp_path / "partitions" / "00001" / "part-00000.parquet").write_bytes(b"PAR1")
    made = {name: artifact(tmp_path / name) for name in ("clean_dataset", "dropped_rows", "preview")}
    error = refused(capsys, filter_clean, raw_dataset=partitions, partition=dealt[1], **made)
    assert "raw_dataset partition 1: part-00000.parquet is not a complete Parquet file" in error
    (tmp_path / "partitions" / "00001" / "part-00000.parquet").unlink()
    error = refused(capsys, filter_clean, raw_dataset=partitions, partition=dealt[1], **made)
    assert f"raw_dataset partition 1 was written with {dealt[1]['rows']} rows, but its files have 0. " in error
    filter_clean.python_func(raw_dataset=partitions, partition=dealt[0], **made)
    clean = made["clean_dataset"]
    assert clean.metadata["part"] == 0 and clean.metadata["rows_in"] == dealt[0]["rows"]
    clean.metadata["rows"] += 1
    error = refused(capsys, gather_shards, [clean], dealt[:1], artifact(tmp_path / "out"))
    assert f"partition_0 was written with {dealt[0]['rows'] + 1} rows, but its files have {dealt[0]['rows']}. " in error


def test_the_gathered_rows_come_from_the_whole_source(tmp_path):
    shards = [dataset(tmp_path / name, pa.table({"text": [f"{name} {row}" for row in range(9)]}),
                      source=name, license=license, revision=name * 2, origin={"dataset_rows": 9})
              for name, license in (("a", "mit"), ("b", "mit"), ("c", "cc0"))]  # fmt: skip
    partitions = artifact(tmp_path / "partitions")
    partition_rows.python_func(shards, ["a", "b", "c"], partitions, 2)
    origin = partitions.metadata["origin"]
    assert (origin["dataset_rows"], origin["dataset_license"]) == (27, "mit and cc0")
    assert origin["dataset_source"] == "a, with 2 more shards" and origin["dataset_revision"].startswith("sha256:")
    assert origin["dataset_content_hash"] == partitions.metadata["content_hash"]


RECORDED = {"display_name": "val_tokens", "store_session_info": "{}", "cut": 0, "packing": 0, "tokenizer": "t",
            "inputs": {"struct": {"val_sft": "sha256:1"}}, "columns": {"list": ["input_ids", "row"]},
            "dropped": {"struct": {"too_short": 2}}}  # fmt: skip
"""Metadata of an artifact as the backend hands it over, cut short."""


def executor_input(folder: Path, shards: list[dsl.Dataset], partitions: list[dict]) -> dict:
    """Returns what the launcher of a backend gives to Gather: input artifacts have no schema."""
    artifacts = [
        {"name": str(number), "type": {"instanceSchema": ""}, "uri": shard.uri, "metadata": RECORDED | shard.metadata}
        for number, shard in enumerate(shards)
    ]
    made = {"name": "dataset", "type": {"schemaTitle": "system.Dataset", "schemaVersion": "0.0.1"},
            "uri": str(folder / "dataset")}  # fmt: skip
    return {
        "inputs": {"artifacts": {"shards": {"artifacts": artifacts}}, "parameterValues": {"partitions": partitions}},
        "outputs": {"artifacts": {"dataset": {"artifacts": [made]}}, "outputFile": str(folder / "output.json")},
    }


def test_gather_reads_what_a_backend_hands_over_and_refuses_one_of_two(tmp_path, capsys):
    tokens = []
    for part, rows in enumerate(([0, 2], [1])):
        table = pa.table({"input_ids": [[part, row] for row in rows], "row": pa.array(rows, pa.int64())})
        tokens.append(dataset(tmp_path / f"tokens-{part}", table, documents=3, part=part, tokens=4))
    whole = executor_input(tmp_path, tokens, dealt_out(3, 3))
    Executor(whole, gather_shards.python_func).execute()
    made = json.loads((tmp_path / "output.json").read_text())["artifacts"]["dataset"]["artifacts"][0]["metadata"]
    assert (made["rows"], made["documents"], made["tokens"], made["dropped"]) == (3, 6, 8, {"too_short": 4})
    with pytest.raises(SystemExit):
        Executor(executor_input(tmp_path, tokens[1:], dealt_out(3, 3)), gather_shards.python_func).execute()
    assert "2 partitions were planned, 1 arrived; missing: partition 0." in capsys.readouterr().err


def test_row_numbers_go_on_over_the_partitions_and_what_lies_beside_is_kept(tmp_path):
    tokens = []
    for part, rows in enumerate(([0, 2], [1])):
        table = pa.table({"input_ids": [[part, row] for row in rows], "row": pa.array(rows, pa.int64())})
        made = dataset(tmp_path / str(part), table, documents=3, part=part, tokens=4, tokenizer="t", fill=0.5 + part)
        (Path(made.path) / "tokenizer").mkdir()
        (Path(made.path) / "tokenizer" / "tokenizer.json").write_text("{}")
        tokens.append(made)
    gathered = artifact(tmp_path / "all")
    gather_shards.python_func(tokens, dealt_out(3, 3), gathered)
    assert tables.head(gathered.path, 9).to_pylist() == [
        {"input_ids": [0, 0], "row": 0},
        {"input_ids": [0, 2], "row": 2},
        {"input_ids": [1, 1], "row": 4},
    ]
    assert (Path(gathered.path) / "tokenizer" / "tokenizer.json").exists()
    metadata = gathered.metadata
    assert (metadata["tokens"], metadata["tokenizer"], metadata["rows"], "fill" in metadata) == (8, "t", 3, False)
    assert "part" not in metadata
    packed = artifact(tmp_path / "packed")
    gather_shards.python_func([dataset(tmp_path / "p", pa.table({"row": [5]}), part=0)], dealt_out(1), packed)
    assert rows_of(packed) == ['{"row": 5}']
