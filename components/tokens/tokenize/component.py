"""Tokenize: prompts and completions to packed token rows."""

from kfp import dsl

from llm_finetune.components.shared.images import data_component


@data_component()
def tokenize(
    train_sft: dsl.Input[dsl.Dataset],
    val_sft: dsl.Input[dsl.Dataset],
    train_tokens: dsl.Output[dsl.Dataset],
    val_tokens: dsl.Output[dsl.Dataset],
    preview: dsl.Output[dsl.HTML],
    model_config: dsl.Input[dsl.Model] = None,
    model_name: str = "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    max_length: int = 1024,
    packing: bool = True,
    overlength: str = "drop",
    train_on: str = "all",
    num_proc: int = 0,
    seed: int = 42,
    settings: dict = {},
    package_version: str = "",
):
    """Turns prompts and completions into token rows in which only the completions are trained.

    Args:
        train_sft: Training rows of Format for SFT.
        val_sft: Validation rows of Format for SFT.
        train_tokens: Token rows for training; several documents share a row when packed.
        val_tokens: Token rows for validation, one per document.
        preview: Counts of both splits and a few rows token by token, trained tokens coloured.
        model_config: Base model of Load Base Model; its tokenizer is used instead of model_name's.
        model_name: Hub id or folder to take the tokenizer from when no model_config is given.
        max_length: Most tokens in a row.
        packing: Fill each training row with several documents (best fit; documents do not see each other).
        overlength: What happens to a document longer than max_length: drop, truncate or error.
        train_on: Answers of a conversation that are trained: all, or the last one alone.
        num_proc: Threads of the tokenizer; 0 uses all cores.
        seed: Seed of the order of packed rows.
        settings: Settings by name that take precedence over the parameters above (the card's section of the recipe).
        package_version: Version that compiled the pipeline; the step refuses another one.
    """
    arguments = locals()
    from llm_finetune.components.shared.card import card, lineage
    from llm_finetune.components.shared.metadata import recorded
    from llm_finetune.components.shared.row_counts import check_whole
    from llm_finetune.components.tokens.tokenize import step, vocabulary

    with card(package_version):
        check_whole({"train_sft": train_sft, "val_sft": val_sft})
        vocabulary.leave_torch_out()
        train, val = step.tokenize(
            train_sft.path,
            val_sft.path,
            train_tokens.path,
            val_tokens.path,
            preview.path,
            step.Settings.of(arguments),
            model_config.path if model_config else "",
            str(recorded(model_config).get("model_name", "")) if model_config else "",
        )
        train_tokens.metadata.update(train | lineage({"train_sft": train_sft, "model_config": model_config}))
        val_tokens.metadata.update(val | lineage({"val_sft": val_sft, "model_config": model_config}))
