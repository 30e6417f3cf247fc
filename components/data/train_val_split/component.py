"""Train/Val Split: rows to learn from and rows to measure with."""

from kfp import dsl

from llm_finetune.components.shared.images import data_component


@data_component()
def train_val_split(
    clean_dataset: dsl.Input[dsl.Dataset],
    train_dataset: dsl.Output[dsl.Dataset],
    val_dataset: dsl.Output[dsl.Dataset],
    preview: dsl.Output[dsl.HTML],
    val_ratio: float = 0.1,
    shuffle_seed: int = 42,
    group_key: str = "",
    stratify_key: str = "",
    near_threshold: float = 0.8,
    instruction_key: str = "instruction",
    input_key: str = "input",
    output_key: str = "output",
    chat_key: str = "",
    settings: dict = {},
    package_version: str = "",
):
    """Splits the rows so that duplicates and near-duplicates never lie on both sides, and shuffles both sides.

    The same rows and seed give the same split on every machine, whatever the order of the rows. Up to 100,000 rows
    near-duplicates are looked for; beyond, only equal rows (but for case and white space) are kept together.

    Args:
        clean_dataset: The rows.
        train_dataset: Rows for training, shuffled.
        val_dataset: Rows for validation, shuffled.
        preview: Samples and share of each side, and what they have in common.
        val_ratio: Share of the rows for validation, between 0 and 1; reached as nearly as whole groups allow.
        shuffle_seed: Seed of choice and order.
        group_key: Column whose equal values stay on one side (a document, a user); empty for none.
        stratify_key: Column whose values both sides are to have in the same shares (a kind, a source, a language), as
            far as groups allow; empty for none.
        near_threshold: Share of common text (Jaccard similarity) from which rows are near-duplicates; 0 keeps only
            equal rows together.
        instruction_key: Column with the instruction.
        input_key: Column with the input.
        output_key: Column with the answer. If the data has none of the three columns, all its columns are compared.
        chat_key: Column with a list of messages, for data that is conversations.
        settings: Settings by name that take precedence over the parameters above (the card's section of the recipe).
        package_version: Version that compiled the pipeline; the step refuses another one.
    """
    arguments = locals()
    from llm_finetune.components.data.train_val_split import step
    from llm_finetune.components.shared.card import card, lineage
    from llm_finetune.components.shared.metadata import recorded
    from llm_finetune.components.shared.row_counts import check_whole

    with card(package_version):
        check_whole({"clean_dataset": clean_dataset})
        chosen = step.Settings.of(arguments)
        facts = step.train_val_split(clean_dataset.path, train_dataset.path, val_dataset.path, preview.path, chosen)
        origin = {name: recorded(clean_dataset).get(name, "") for name in ("source", "revision")}
        produced_by = origin | lineage({"clean_dataset": clean_dataset}, seed=chosen.shuffle_seed)
        train_dataset.metadata.update(facts.metadata("train") | produced_by)
        val_dataset.metadata.update(facts.metadata("val") | produced_by)
