"""Load Dataset: rows from the Hugging Face Hub, a URL or a path."""

from kfp import dsl

from llm_finetune.components.shared.images import data_component


@data_component()
def load_dataset(
    raw_dataset: dsl.Output[dsl.Dataset],
    preview: dsl.Output[dsl.HTML],
    source_type: str = "huggingface",
    hf_dataset: str = "tatsu-lab/alpaca",
    hf_split: str = "train",
    jsonl_path: str = "",
    jsonl_url: str = "",
    max_samples: int = 1000,
    hf_config: str = "",
    hf_revision: str = "",
    sha256: str = "",
    seed: int = -1,
    settings: dict = {},
    package_version: str = "",
):
    """Reads a dataset and keeps it as Parquet, with a preview of its first rows.

    A file may be JSON Lines, a JSON array, CSV or Parquet, plain or packed as .gz or .zst; which one is told from its
    content. Every row must have the same columns.

    Args:
        raw_dataset: The rows as they came.
        preview: The first 20 rows, the columns, the source and its revision.
        source_type: `huggingface` (hf_dataset), `jsonl_url` (the file there) or `jsonl_path` (the file there).
        hf_dataset: Name of a dataset on the Hub. A gated one needs a token in the variable HF_TOKEN of the step.
        hf_split: Split of the Hub dataset.
        jsonl_path: A file: a path, or a URL that begins with s3://, gs://, hf:// or https://.
        jsonl_url: A file at a URL that begins with https://, s3://, gs:// or hf://.
        max_samples: Rows to take; reading stops there. 0 takes all.
        hf_config: Configuration of the Hub dataset, where it has several.
        hf_revision: Branch, tag or commit of the Hub dataset; the commit it means is recorded.
        sha256: Checksum that the file must have, 64 hexadecimal digits; empty for any.
        seed: -1 takes the first max_samples rows; 0 or more draws them by chance, which reads the whole source.
        settings: Settings by name that take precedence over the parameters above (the card's section of the recipe).
        package_version: Version that compiled the pipeline; the step refuses another one.
    """
    arguments = locals()
    from llm_finetune.components.data.load_dataset import step
    from llm_finetune.components.shared.card import card, lineage

    with card(package_version):
        chosen = step.Settings.of(arguments)
        facts = step.load_dataset(raw_dataset.path, preview.path, chosen)
        raw_dataset.metadata.update(facts.metadata() | lineage(seed=chosen.seed if chosen.seed >= 0 else None))
