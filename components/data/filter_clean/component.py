"""Filter & Clean: drops rows that are no use, each with a reason."""

from kfp import dsl

from llm_finetune.components.shared.images import data_component


@data_component()
def filter_clean(
    raw_dataset: dsl.Input[dsl.Dataset],
    clean_dataset: dsl.Output[dsl.Dataset],
    dropped_rows: dsl.Output[dsl.Dataset],
    preview: dsl.Output[dsl.HTML],
    instruction_key: str = "instruction",
    input_key: str = "input",
    output_key: str = "output",
    min_chars: int = 16,
    max_chars: int = 4096,
    drop_if_missing_output: bool = True,
    repair: str = "control",
    languages: str = "",
    dedup: str = "exact",
    near_threshold: float = 0.8,
    eval_sets: list = [],
    eval_words: int = 13,
    pii: str = "report",
    phone_region: str = "US",
    chat_key: str = "",
    partition: dict = {},
    settings: dict = {},
    package_version: str = "",
):
    """Keeps the rows that are worth training on, trims their text and turns other values into text.

    Lengths count the characters of instruction, input and output together, after trimming; of a conversation, those of
    all its messages. Numbers, lists and structures in these columns become text (JSON) and are counted.

    Where the columns below are left as they are and the data has others, its layout is recognised: `prompt` and
    `completion`; `messages` (or `conversations`) with role and content, or with from and value (ShareGPT), which become
    role and content; or plain `text`. Columns of two layouts, and rows that keep their text in another layout's
    columns, are refused.

    Args:
        raw_dataset: The rows.
        clean_dataset: The rows that are kept, in their old order.
        dropped_rows: The others, with a column `reason`.
        preview: Rows in, kept and dropped by reason, lengths, personal data, the first 20 rows.
        instruction_key: Column with the instruction.
        input_key: Column with the input; empty for data without one.
        output_key: Column with the answer.
        min_chars: Rows with fewer characters are dropped.
        max_chars: Rows with more characters are dropped; 0 for no limit.
        drop_if_missing_output: Whether rows with a null or blank answer are dropped.
        repair: `off`; `control` removes control characters and terminal escapes; `unicode` also mends wrongly decoded
            text, odd widths of characters and line ends (ftfy).
        languages: Languages to keep, as ISO 639-1 codes with commas between (`en,de`); empty for all. Rows with fewer
            than 20 letters are kept.
        dedup: `none`; `exact` drops rows that differ from an earlier one in case and white space at most; `near` also
            those that share most of their text with an earlier one (the same runs of five bytes; of input and
            output, or of instruction and output where there is no input).
        near_threshold: Share of common text (Jaccard similarity) from which rows are near-duplicates, 0.3 to 1.
        eval_sets: Evaluation sets that must not be learned: each a path, a URL, the name of a Hub dataset (its split
            `test`) or a mapping of Load Dataset's settings. Rows that share a run of words with one are dropped.
        eval_words: Length of such a run: 13 words as for GPT-3; 8 is stricter.
        pii: `off`; `report` counts e-mail addresses, phone and card numbers, IBANs, IP addresses and the keys and
            tokens of known services in the kept rows; `redact` also replaces them, by [EMAIL] and the like, in every
            column.
        phone_region: Country whose phone numbers may stand without a country code, as two letters.
        chat_key: Column with a list of messages (role, content), for data that already is conversations.
        partition: Partition of the rows to read, an item of what Partition Rows returns; empty for all rows.
        settings: Settings by name that take precedence over the parameters above (the card's section of the recipe).
        package_version: Version that compiled the pipeline; the step refuses another one.
    """
    arguments = locals()
    from llm_finetune.components.data.filter_clean import step
    from llm_finetune.components.shared.card import card, lineage
    from llm_finetune.components.shared.metadata import recorded
    from llm_finetune.components.shared.partitions import chosen_rows

    with card(package_version):
        chosen = step.Settings.of(arguments)
        rows = chosen_rows("raw_dataset", raw_dataset, partition)
        facts = step.filter_clean(rows, clean_dataset.path, dropped_rows.path, preview.path, chosen)
        origin = {name: recorded(raw_dataset).get(name, "") for name in ("source", "revision")}
        part = {"part": int(partition["part"])} if partition else {}
        produced_by = origin | part | lineage({"raw_dataset": raw_dataset})
        clean_dataset.metadata.update(facts.metadata() | produced_by)
        dropped_rows.metadata.update(facts.dropped_metadata() | produced_by)
