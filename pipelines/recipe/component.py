"""Check Recipe: refuses an impossible run at once."""

from typing import NamedTuple

from llm_finetune.components.shared.images import control_component


@control_component()
def check_recipe(
    parameters: dict,
    recipe: dict = {},
    package_version: str = "",
) -> NamedTuple(
    "Sections",
    [
        ("load_dataset", dict),
        ("filter_clean", dict),
        ("train_val_split", dict),
        ("format_sft", dict),
        ("tokenize", dict),
        ("load_model", dict),
        ("apply_lora", dict),
        ("finetune_lora", dict),
        ("evaluate", dict),
        ("quality_gate", dict),
        ("merge_export", dict),
        ("vllm_serve", dict),
    ],
):
    """Checks all settings of all cards before anything is downloaded or any GPU is asked for.

    Args:
        parameters: The pipeline's parameters by name.
        recipe: A section of settings per card, and fields for the names of the dataset's fields.
        package_version: Version that compiled the pipeline; the step refuses another one.

    Returns:
        Each card's section of the recipe, checked.
    """
    from llm_finetune.components.shared.card import card
    from llm_finetune.pipelines.recipe import step
    from llm_finetune.pipelines.recipe.wiring import CARDS

    with card(package_version):
        sections = step.check_recipe(parameters, recipe)
    return tuple(sections[name] for name in CARDS)
