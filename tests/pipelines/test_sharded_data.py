"""The fanned-out data path: what it keeps is what the single path keeps."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
import yaml
from kfp import dsl, local
from lint import lint
from tiny import tiny_tokenizer

from llm_finetune.components.data.filter_clean.component import filter_clean
from llm_finetune.components.data.format_sft.component import format_sft
from llm_finetune.components.data.gather_shards.component import gather_shards
from llm_finetune.components.data.gather_shards.step import merge_metadata
from llm_finetune.components.data.load_dataset.component import load_dataset
from llm_finetune.components.data.partition_rows.component import partition_rows
from llm_finetune.components.data.plan_shards.component import plan_shards
from llm_finetune.components.data.train_val_split.component import train_val_split
from llm_finetune.components.shared import tables
from llm_finetune.components.tokens.tokenize.component import tokenize
from llm_finetune.pipelines.compile import SHARDED, compile_sharded
from llm_finetune.pipelines.options import ClusterOptions
from llm_finetune.pipelines.sharded_data import DATASETS, sharded_data_pipeline

FILES, ROWS = 5, 60


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Files whose rows repeat within a file and across files, in other case and with other spaces too."""
    folder = tmp_path_factory.mktemp("source")
    chance = random.Random(0)
    for file in range(FILES):
        rows = []
        for _ in range(ROWS):
            number = chance.randrange(150)
            text = chance.choice(["Say the number  please", "say the number please", "SAY the number please\x00"])
            answer = "" if number % 17 == 0 else f"it is {number}, says a{number}@mail.example.com"
            rows.append({"instruction": text, "input": f"number {number}", "output": answer})
        (folder / f"part-{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def artifact(path: Path) -> dsl.Dataset:
    path.parent.mkdir(parents=True, exist_ok=True)
    return dsl.Dataset(uri=str(path))


def ran(card, folder: Path, outputs: list[str], **inputs) -> list[dsl.Dataset]:
    """Runs a card in this process and returns its datasets."""
    made = {name: artifact(folder / name) for name in outputs}
    page = {} if card in (partition_rows, gather_shards) else {"preview": dsl.HTML(uri=str(folder / "page.html"))}
    card.python_func(**inputs, **made, **page)
    return list(made.values())


def rows_of(dataset: dsl.Dataset) -> list[str]:
    rows = (row for batch in tables.batches(dataset.path) for row in batch.to_pylist())
    return [json.dumps(row, sort_keys=True) for row in rows]


def fanned_out(source: Path, folder: Path, shards: int, settings: dict) -> list[list[dsl.Dataset]]:
    """Runs the cards in the order of the pipeline up to Filter & Clean; returns kept and dropped rows per partition."""
    planned, names = plan_shards.python_func(f"{source}/*.jsonl", shards)
    raw = []
    for number, files in enumerate(planned):
        place = folder / f"shard-{number}"
        raw += ran(load_dataset, place, ["raw_dataset"], source_type="jsonl_path", settings=files, max_samples=0)
    partitions = artifact(folder / "partitions")
    dealt = partition_rows.python_func(
        shards=raw, planned=names, partitions=partitions, parts=shards, settings=settings
    )
    assert sum(part["rows"] for part in dealt) == partitions.metadata["rows"] == FILES * ROWS
    outputs = ["clean_dataset", "dropped_rows"]
    return [
        ran(filter_clean, folder / f"part-{number}", outputs, raw_dataset=partitions, partition=part, settings=settings)
        for number, part in enumerate(dealt)
    ]


def single(source: Path, folder: Path, settings: dict) -> list[dsl.Dataset]:
    files = f"{source}/*.jsonl"
    [raw] = ran(load_dataset, folder, ["raw_dataset"], source_type="jsonl_path", jsonl_path=files, max_samples=0)
    return ran(filter_clean, folder, ["clean_dataset", "dropped_rows"], raw_dataset=raw, settings=settings)


@pytest.mark.parametrize(
    ("shards", "settings"), [(3, {}), (2, {"pii": "redact", "min_chars": 30}), (8, {"dedup": "none", "repair": "off"})]
)
def test_the_rows_that_stay_are_those_of_the_single_path(source, tmp_path, shards, settings):
    kept, dropped = single(source, tmp_path / "single", settings)
    parts = fanned_out(source, tmp_path / "sharded", shards, settings)
    assert Counter(row for part in parts for row in rows_of(part[0])) == Counter(rows_of(kept))
    assert Counter(row for part in parts for row in rows_of(part[1])) == Counter(rows_of(dropped))
    assert 0 < kept.metadata["rows"] < FILES * ROWS
    assert merge_metadata([part[0].metadata for part in parts])["dropped"] == kept.metadata["dropped"]
    assert min(part[0].metadata["rows"] for part in parts) > 0


def test_files_are_dealt_out_in_order(source):
    planned, names = plan_shards.python_func(f"{source}/*.jsonl", 2)
    assert names == [f"{source}/part-0.jsonl and 2 more", f"{source}/part-3.jsonl and 1 more"]
    assert [[Path(file).name for file in shard["jsonl_path"].split("\n")] for shard in planned] == [
        ["part-0.jsonl", "part-1.jsonl", "part-2.jsonl"],
        ["part-3.jsonl", "part-4.jsonl"],
    ]
    assert [len(planned) for planned in plan_shards.python_func(f"{source}/*.jsonl", 9)] == [FILES, FILES]


def test_a_shard_whose_files_have_changed_is_another_input(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"x": 1}\n')
    before, names = plan_shards.python_func(f"{tmp_path}/*.jsonl", 2)
    assert plan_shards.python_func(f"{tmp_path}/*.jsonl", 2) == (before, names)
    (tmp_path / "b.jsonl").write_text('{"x": 22}\n')
    after, _ = plan_shards.python_func(f"{tmp_path}/*.jsonl", 2)
    assert after[0] == before[0] and after[1] != before[1]
    assert after[1]["jsonl_path"] == before[1]["jsonl_path"]


def test_mistakes_of_planning_end_with_a_message(source, capsys):
    def refused(*arguments):
        with pytest.raises(SystemExit):
            plan_shards.python_func(*arguments)
        return capsys.readouterr().err

    assert "must be between 1 and 48" in refused(f"{source}/*.jsonl", 0)
    assert "must be between 1 and 48" in refused(f"{source}/*.jsonl", 49)
    assert "both sides of the split" in refused(f"{source}/*.jsonl", 2, {"group_key": "user"})
    assert "matches no file" in refused(f"{source}/*.csv", 2)


def test_the_pipeline_compiles_without_fault_and_takes_the_shard_count_when_it_runs(tmp_path):
    compile_sharded(tmp_path / "sharded.yaml")
    assert (tmp_path / "sharded.yaml").read_text() == SHARDED.read_text(), "run `make compile`"
    spec, platform = yaml.load_all((tmp_path / "sharded.yaml").read_text(), Loader=yaml.CSafeLoader)
    assert lint(spec, platform) == []
    assert spec["root"]["inputDefinitions"]["parameters"]["shards"]["parameterType"] == "NUMBER_INTEGER"
    loops = [task for c in spec["components"].values() for task in c.get("dag", {}).get("tasks", {}).values()
             if "parameterIterator" in task]  # fmt: skip
    assert len(loops) == 2 and set(spec["root"]["outputDefinitions"]["artifacts"]) == set(DATASETS)


def documents(*splits: dsl.Dataset) -> Counter:
    """Returns the tokenised documents of both splits, packed or not, with how often each is there."""
    found: Counter = Counter()
    for split in splits:
        for batch in tables.batches(split.path):
            for row in batch.to_pylist():
                start = 0
                for length in row.get("seq_lengths") or [len(row["input_ids"])]:
                    found[tuple(row["input_ids"][start : start + length])] += 1
                    start += length
    return found


@pytest.mark.soak
def test_kfp_runs_it_here_and_the_tokens_are_those_of_the_single_path(source, tmp_path):
    model = str(tiny_tokenizer(tmp_path / "model"))
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "root"))
    sharded_data = sharded_data_pipeline(ClusterOptions(load_online=False))
    task = sharded_data(files=f"{source}/*.jsonl", shards=2, model_name=model, max_length=256)
    clean, train_sft, val_sft, *tokens = (task.outputs[name] for name in DATASETS)
    facts = [made.metadata for made in (clean, train_sft, val_sft, *tokens)]
    assert facts[0]["rows_in"] == FILES * ROWS == facts[0]["rows"] + sum(facts[0]["dropped"].values())
    assert facts[0]["rows"] == facts[1]["rows_in"] + facts[2]["rows_in"]
    assert [facts[3]["documents"], facts[4]["documents"]] == [facts[1]["rows"], facts[2]["rows"]]
    assert clean.metadata["origin"]["dataset_rows"] == FILES * ROWS

    kept, _ = single(source, tmp_path / "single", {})
    assert Counter(rows_of(clean)) == Counter(rows_of(kept))
    place = tmp_path / "single"
    splits = ran(train_val_split, place, ["train_dataset", "val_dataset"], clean_dataset=kept)
    sft = ran(format_sft, place, ["train_sft", "val_sft"], train_dataset=splits[0], val_dataset=splits[1])
    single_tokens = ran(tokenize, place, ["train_tokens", "val_tokens"], train_sft=sft[0], val_sft=sft[1],
                        model_name=model, max_length=256)  # fmt: skip
    assert documents(*tokens) == documents(*single_tokens) and sum(documents(*tokens).values()) == kept.metadata["rows"]
    assert Counter(rows_of(train_sft) + rows_of(val_sft)) == Counter(rows_of(sft[0]) + rows_of(sft[1]))
    completions = tables.head(val_sft.path, 10_000)["completion"].to_pylist()
    for row in tables.head(tokens[1].path, 10_000).to_pylist():
        assert row["row"] < len(completions)
    assert (Path(tokens[0].path) / "tokenizer" / "tokenizer.json").exists()
