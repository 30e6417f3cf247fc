"""Data Report: what became of the data on its way, and what is in it."""

from kfp import dsl

from llm_finetune.components.shared.images import data_component


@data_component()
def data_report(
    raw_dataset: dsl.Input[dsl.Dataset],
    clean_dataset: dsl.Input[dsl.Dataset],
    train_dataset: dsl.Input[dsl.Dataset],
    val_dataset: dsl.Input[dsl.Dataset],
    train_sft: dsl.Input[dsl.Dataset],
    val_sft: dsl.Input[dsl.Dataset],
    train_tokens: dsl.Input[dsl.Dataset],
    val_tokens: dsl.Input[dsl.Dataset],
    report: dsl.Output[dsl.HTML],
    raw_report: dsl.Output[dsl.HTML],
    train_report: dsl.Output[dsl.HTML],
    val_report: dsl.Output[dsl.HTML],
    instruction_key: str = "instruction",
    input_key: str = "input",
    output_key: str = "output",
    chat_key: str = "",
    pii: str = "report",
    phone_region: str = "US",
    language_rows: int = 2000,
    settings: dict = {},
    package_version: str = "",
):
    """Writes one page for the whole path of the data, and one for each of its datasets.

    The path: how many rows came in, went on, and were left out at which card for which reason; leakage; tokens. A
    dataset: lengths in characters and in tokens, duplicates with examples, personal data, languages, the ten longest
    rows and the ten oddest. Personal data and secrets in the rows that are shown are masked.

    Args:
        raw_dataset: The rows as they came.
        clean_dataset: The rows that Filter & Clean has kept.
        train_dataset: Rows for training.
        val_dataset: Rows for validation.
        train_sft: Training rows of Format for SFT.
        val_sft: Validation rows of Format for SFT.
        train_tokens: Token rows for training.
        val_tokens: Token rows for validation.
        report: The whole path.
        raw_report: The rows as they came.
        train_report: The rows for training.
        val_report: The rows for validation.
        instruction_key: Column with the instruction; other layouts are recognised as in Filter & Clean.
        input_key: Column with the input; empty for data without one.
        output_key: Column with the answer.
        chat_key: Column with a list of messages, for data that is conversations.
        pii: `report` counts personal data and secrets; `off` does not, and still masks them where rows are shown.
        phone_region: Country whose phone numbers may stand without a country code, as two letters.
        language_rows: Rows of each dataset whose language is told, evenly spread; 0 tells none.
        settings: Settings by name that take precedence over the parameters above (the card's section of the recipe).
        package_version: Version that compiled the pipeline; the step refuses another one.
    """
    arguments = locals()
    from llm_finetune.components.data.data_report import step
    from llm_finetune.components.shared.card import card
    from llm_finetune.components.shared.metadata import recorded
    from llm_finetune.components.shared.row_counts import check_whole

    with card(package_version):
        check_whole({name: arguments[name] for name in step.STAGES})
        stages = {name: step.Stage(arguments[name].path, recorded(arguments[name])) for name in step.STAGES}
        pages = {name: arguments[name].path for name in step.PAGES}
        step.data_report(stages, pages, step.Settings.of(arguments))
