"""Format for SFT: rows as prompt and completion."""

from kfp import dsl

from llm_finetune.components.shared.images import data_component


@data_component()
def format_sft(
    train_dataset: dsl.Input[dsl.Dataset],
    val_dataset: dsl.Input[dsl.Dataset],
    train_sft: dsl.Output[dsl.Dataset],
    val_sft: dsl.Output[dsl.Dataset],
    preview: dsl.Output[dsl.HTML],
    template: str = "### Instruction:\\n{instruction}\\n\\n### Input:\\n{input}\\n\\n### Response:\\n{output}",
    instruction_key: str = "instruction",
    input_key: str = "input",
    output_key: str = "output",
    chat_key: str = "",
    system_prompt: str = "",
    drop_empty_sections: bool = False,
    keep_columns: str = "",
    settings: dict = {},
    package_version: str = "",
):
    r"""Formats every row as the prompt that the model reads and the completion that it learns.

    Beside an instruction format lies the chat template that renders a chat request in the same way, so that the served
    model sees what it was trained on. A row whose output is null or blank has nothing to learn: it is left out and
    counted.

    Where the columns below are left as they are and the data has others, its layout is recognised: `prompt` and
    `completion`; `messages` (or `conversations`) with role and content, or with from and value (ShareGPT); or plain
    `text`, which is learned whole. Conversations need template = chat and keep all their turns; the result's `messages`
    have role and content, and, for data with tool calls, `tool_calls` (the calls as JSON text), `tool_call_id` and
    `name`, with a column `tools` of JSON text beside them, all for the model's own chat template.

    Args:
        train_dataset: Rows for training.
        val_dataset: Rows for validation.
        train_sft: The same rows as prompt and completion.
        val_sft: The same rows as prompt and completion.
        preview: Five samples of each split.
        template: Text with {instruction}, {input} and {output}; a written \n is a newline, {{ and }} are braces.
            `chat` instead of a text makes conversations for the base model's own chat template.
        instruction_key: Column with the instruction; empty, with an empty input_key, for plain text in output_key.
        input_key: Column with the input; empty for data without one.
        output_key: Column with the answer.
        chat_key: Column with a list of messages, which template = chat passes on; empty for data without one.
        system_prompt: With template = chat: system message of the conversations that have none.
        drop_empty_sections: Whether a section of the template (a block between blank lines) whose fields are all
            empty is left out.
        keep_columns: Columns of the data that are kept beside, separated by commas: for the slices of Evaluate.
        settings: Settings by name that take precedence over the parameters above (the card's section of the recipe).
        package_version: Version that compiled the pipeline; the step refuses another one.
    """
    arguments = locals()
    from llm_finetune.components.data.format_sft import step
    from llm_finetune.components.shared.card import card, lineage
    from llm_finetune.components.shared.row_counts import check_whole

    with card(package_version):
        check_whole({"train_dataset": train_dataset, "val_dataset": val_dataset})
        chosen = step.Settings.of(arguments)
        train, val = step.format_sft(
            train_dataset.path, val_dataset.path, train_sft.path, val_sft.path, preview.path, chosen
        )
        train_sft.metadata.update(train.metadata() | lineage({"train_dataset": train_dataset}))
        val_sft.metadata.update(val.metadata() | lineage({"val_dataset": val_dataset}))
