"""The data cards of the pipeline in parallel, for datasets of many files that one machine would read for hours.

    files ─ plan ─┬─ load ─┐             ┌─ clean ─ split ─ format ─ tokenize ─┐
                  ├─ load ─┼─ partition ─┼─ clean ─ split ─ format ─ tokenize ─┼─ gather
                  └─ load ─┘             └─ clean ─ split ─ format ─ tokenize ─┘

Rows with the same text are in the same partition, in the order of the files. Each partition can therefore be cleaned
independently, and exact deduplication keeps the same rows as Filter & Clean on the whole dataset. Near-duplicates and
the share of validation rows are computed within each partition.

All partitions are in one artifact: KFP's backend passes only one element of a list of artifacts into a loop or a nested
pipeline (backend/src/v2/metadata/client.go, GetInputArtifactsByExecutionID), without an error. A list collected from a
loop is complete for cards outside the loop. Partition Rows and Gather reject an incomplete list.
"""

from importlib.metadata import version
from typing import Any, NamedTuple

from kfp import dsl

from llm_finetune.components.data.filter_clean.component import filter_clean
from llm_finetune.components.data.format_sft.component import format_sft
from llm_finetune.components.data.format_sft.settings import DEFAULT_TEMPLATE
from llm_finetune.components.data.gather_shards.component import gather_shards
from llm_finetune.components.data.load_dataset.component import load_dataset
from llm_finetune.components.data.partition_rows.component import partition_rows
from llm_finetune.components.data.plan_shards.component import plan_shards
from llm_finetune.components.data.train_val_split.component import train_val_split
from llm_finetune.components.run.check_recipe.component import check_recipe
from llm_finetune.components.tokens.tokenize.component import tokenize
from llm_finetune.pipelines.cluster import NETWORK_RETRIES, Cluster
from llm_finetune.pipelines.options import ClusterOptions

VERSION = version("llm-finetune")


class Data(NamedTuple):
    """Outputs: the kept rows, and both splits as text and as tokens."""

    clean_dataset: dsl.Dataset
    train_sft: dsl.Dataset
    val_sft: dsl.Dataset
    train_tokens: dsl.Dataset
    val_tokens: dsl.Dataset


DATASETS = Data._fields


def _files_to_tokens(cluster: Cluster) -> Any:
    """Builds the nested pipeline with both loops."""
    place = cluster.place

    # A nested pipeline: KFP's local runner confuses the item of a loop with named outputs of tasks outside the loop.
    @dsl.pipeline(
        name="llm-shards",
        display_name="Files to tokens",
        description="Loads all shards, distributes the rows over partitions, and tokenizes each partition.",
    )
    def files_to_tokens(
        files: list[dict],
        names: list[str],
        shards: int,
        hub_token_secret: str,
        object_store_secret: str,
        filter_settings: dict,
        split_settings: dict,
        format_settings: dict,
        tokenize_settings: dict,
        val_ratio: float,
        template: str,
        model_name: str,
        max_length: int,
        seed: int,
    ) -> Data:
        """Loads all shards, distributes the rows over partitions, and tokenizes each partition.

        Args:
            files: Settings of Load Dataset per shard.
            names: Names of the shards.
            shards: Number of partitions.
            hub_token_secret: Secret with the Hugging Face token.
            object_store_secret: Secret with the keys of an object store.
            filter_settings: Settings of Filter & Clean.
            split_settings: Settings of Train/Val Split.
            format_settings: Settings of Format for SFT.
            tokenize_settings: Settings of Tokenize.
            val_ratio: Share of validation rows.
            template: Template of prompt and completion.
            model_name: Base model of the tokenizer.
            max_length: Maximum tokens per row.
            seed: Random seed of split and packing.

        Returns:
            The datasets of all partitions, in order.
        """
        chosen = {"hub_token_secret": hub_token_secret, "object_store_secret": object_store_secret}
        with dsl.ParallelFor(files, name="shards") as shard:
            raw = load_dataset(source_type="jsonl_path", settings=shard, max_samples=0, package_version=VERSION)
            place(raw, "Load Dataset", "data", retries=NETWORK_RETRIES)
            cluster.with_datasets(raw, chosen)
        partitioned = partition_rows(
            shards=dsl.Collected(raw.outputs["raw_dataset"]),
            planned=names,
            parts=shards,
            settings=filter_settings,
            package_version=VERSION,
        )
        place(partitioned, "Partition Rows", "data")
        with dsl.ParallelFor(partitioned.outputs["Output"], name="partitions") as partition:
            clean = filter_clean(
                raw_dataset=partitioned.outputs["partitions"],
                partition=partition,
                settings=filter_settings,
                package_version=VERSION,
            )
            place(clean, "Filter & Clean", "data", retries=NETWORK_RETRIES)
            cluster.with_datasets(clean, chosen)
            split = train_val_split(
                clean_dataset=clean.outputs["clean_dataset"],
                val_ratio=val_ratio,
                shuffle_seed=seed,
                settings=split_settings,
                package_version=VERSION,
            )
            place(split, "Train/Val Split", "data")
            sft = format_sft(
                train_dataset=split.outputs["train_dataset"],
                val_dataset=split.outputs["val_dataset"],
                template=template,
                settings=format_settings,
                package_version=VERSION,
            )
            place(sft, "Format for SFT", "data")
            tokens = tokenize(
                train_sft=sft.outputs["train_sft"],
                val_sft=sft.outputs["val_sft"],
                model_name=model_name,
                max_length=max_length,
                seed=seed,
                settings=tokenize_settings,
                package_version=VERSION,
            )
            place(tokens, "Tokenize", "data", retries=NETWORK_RETRIES)
            cluster.with_data(cluster.with_hub(tokens, chosen))

        def gather(title: str, task: dsl.PipelineTask, output: str) -> Any:
            gathered = gather_shards(
                shards=dsl.Collected(task.outputs[output]),
                partitions=partitioned.outputs["Output"],
                package_version=VERSION,
            )
            return place(gathered, title, "data").outputs["dataset"]

        return Data(
            gather("Gather Clean Rows", clean, "clean_dataset"),
            gather("Gather Training Rows", sft, "train_sft"),
            gather("Gather Validation Rows", sft, "val_sft"),
            gather("Gather Training Tokens", tokens, "train_tokens"),
            gather("Gather Validation Tokens", tokens, "val_tokens"),
        )

    return files_to_tokens


def sharded_data_pipeline(options: ClusterOptions) -> Any:
    """Builds the pipeline with compile options.

    Args:
        options: Compile options; many pods mount the volume of data_claim at the same time.

    Returns:
        The pipeline, for KFP's compiler.
    """
    cluster = Cluster(options)
    place, files_to_tokens = cluster.place, _files_to_tokens(cluster)

    @dsl.pipeline(
        name="llm-sharded-data",
        display_name="LLM data, sharded",
        description="Loads, cleans, splits, formats and tokenizes a dataset of many files on many nodes.",
    )
    def sharded_data(
        files: str,
        shards: int = 8,
        val_ratio: float = 0.1,
        template: str = DEFAULT_TEMPLATE,
        model_name: str = "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
        max_length: int = 1024,
        seed: int = 42,
        recipe: dict = {},  # noqa: B006 - required by kfp
    ) -> Data:
        """Loads, cleans, splits, formats and tokenizes a dataset of many files on many nodes.

        Args:
            files: Files in the syntax of jsonl_path of Load Dataset, such as s3://bucket/data/*.jsonl.gz.
            shards: Number of pods that read files in parallel, and number of partitions.
            val_ratio: Share of validation rows.
            template: Template of prompt and completion; 'chat' uses the model's chat template.
            model_name: Base model of the tokenizer: Hub ID, or folder under /mnt/data, the volume of data_claim.
            max_length: Maximum tokens per row.
            seed: Random seed of split and packing.
            recipe: All other settings: sections fields, filter_clean, train_val_split, format_sft and tokenize.

        Returns:
            The kept rows, and both splits as text and as tokens.
        """
        checked = check_recipe(
            val_ratio=val_ratio,
            model_name=model_name,
            max_length=max_length,
            seed=seed,
            template=template,
            recipe=recipe,
            package_version=VERSION,
        )
        place(checked, "Check Recipe", "small")
        plan = plan_shards(
            files=files, shards=shards, split_settings=checked.outputs["train_val_split"], package_version=VERSION
        )
        place(plan, "Plan Shards", "small", cached=False, retries=NETWORK_RETRIES)
        cluster.with_datasets(plan, checked.outputs)
        tokens = files_to_tokens(
            files=plan.outputs["settings"],
            names=plan.outputs["names"],
            shards=shards,
            hub_token_secret=checked.outputs["hub_token_secret"],
            object_store_secret=checked.outputs["object_store_secret"],
            filter_settings=checked.outputs["filter_clean"],
            split_settings=checked.outputs["train_val_split"],
            format_settings=checked.outputs["format_sft"],
            tokenize_settings=checked.outputs["tokenize"],
            val_ratio=val_ratio,
            template=template,
            model_name=model_name,
            max_length=max_length,
            seed=seed,
        )
        tokens.set_display_name("Files to Tokens")
        return Data(*(tokens.outputs[name] for name in DATASETS))

    return sharded_data
