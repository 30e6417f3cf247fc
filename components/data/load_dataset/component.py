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
    etag: str = "",
    licence: str = "",
    seed: int = -1,
    mixture: list = [],
    source_column: str = "source",
    settings: dict = {},
    package_version: str = "",
):
    """Reads a dataset and keeps it as Parquet, with a preview of its first rows.

    Files may be JSON Lines, a JSON array, CSV or Parquet, plain or packed as .gz or .zst; which one is told from the
    content. Every row must have the same columns. Numbers of JSON reach the model as they are written: a column in
    which 42 and 3.5 meet, or a number has no room in 64 bits, is kept as text. Object stores take their credentials
    from the environment of the step, as their own tools do (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL,
    GOOGLE_APPLICATION_CREDENTIALS and so on).

    Args:
        raw_dataset: The rows as they came.
        preview: The first 20 rows, the columns, the source and its revision.
        source_type: `huggingface` (hf_dataset), `jsonl_url` (the file there) or `jsonl_path` (the file there).
        hf_dataset: Name of a dataset on the Hub. A gated one needs a token in the variable HF_TOKEN of the step.
        hf_split: Split of the Hub dataset.
        jsonl_path: One or several files, with commas between them: paths, or URLs that begin with s3://, gs://, hf://
            or https://. `*`, `?`, `[...]` and `**` are patterns, such as s3://bucket/data/*.jsonl.gz, but not in
            https:// URLs; what they match is read in the order of names, without files that begin with `.` or `_`.
        jsonl_url: One or several files, as in jsonl_path, at URLs alone.
        max_samples: Rows to take; reading stops there. 0 takes all.
        hf_config: Configuration of the Hub dataset, where it has several.
        hf_revision: Branch, tag or commit of the Hub dataset; the commit it means is recorded.
        sha256: Checksum that the file must have, 64 hexadecimal digits; of several files, one for each, with commas
            between them; empty for any.
        etag: What Pin Sources saw of files elsewhere, a hash over several. Nothing is done with it: a changed file is
            another input by it, for which no earlier result is taken from the cache.
        licence: Licence of the data, which the model card shows and warns of; by default what the Hub names.
        seed: -1 takes the first max_samples rows; 0 or more draws them by chance, which reads the whole source.
        mixture: Several sources in place of the one above, each a mapping of `hf_dataset` (and `hf_config`, `hf_split`,
            `hf_revision`) or `path` (and `sha256`), `licence`, `weight` (1 by default), `name`, and `columns` (new
            name to old, to choose and rename). Weights are shares of the result: it has max_samples rows, or as many as
            the smallest source allows at its share; no row is taken twice.
        source_column: Column that holds the name of each row's source in a mixture; empty for none.
        settings: Settings by name that take precedence over the parameters above (the card's section of the recipe).
        package_version: Version that compiled the pipeline; the step refuses another one.
    """
    arguments = locals()
    from llm_finetune.components.data.load_dataset import step
    from llm_finetune.components.shared.card import card, lineage

    with card(package_version):
        chosen = step.Settings.of(arguments)
        facts = step.load_dataset(raw_dataset.path, preview.path, chosen)
        drawn_with = chosen.seed if chosen.seed >= 0 else None
        raw_dataset.metadata.update(facts.metadata() | lineage(seed=drawn_with, origin=facts.origin()))
