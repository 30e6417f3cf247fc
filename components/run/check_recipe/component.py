"""Check Recipe: refuses an impossible run at once."""

from typing import NamedTuple

from llm_finetune.components.shared.images import control_component


@control_component()
def check_recipe(
    parameters: dict,
    jsonl_path: str = "",
    jsonl_url: str = "",
    template: str = "",
    gate_rules: str = "",
    recipe: dict = {},
    checkpoint_root: str = "",
    package_version: str = "",
) -> NamedTuple(
    "Sections",
    [
        ("load_dataset", dict),
        ("filter_clean", dict),
        ("train_val_split", dict),
        ("format_sft", dict),
        ("tokenize", dict),
        ("data_report", dict),
        ("load_model", dict),
        ("apply_lora", dict),
        ("finetune_lora", dict),
        ("evaluate", dict),
        ("quality_gate", dict),
        ("merge_export", dict),
        ("vllm_serve", dict),
        ("node_selector", dict),
        ("tolerations", list),
        ("model_cache_claim", str),
        ("checkpoint_claim", str),
        ("hub_token_secret", str),
        ("object_store_secret", str),
        ("api_keys_secret", str),
        ("evaluation_gpus", str),
        ("plan", dict),
    ],
):
    """Checks all settings of all cards before anything is downloaded or any GPU is asked for.

    Args:
        parameters: The pipeline's parameters by name, but for the following, which may hold quotes and new lines.
        jsonl_path: The pipeline's parameter; this and the next are not looked at where they are empty.
        jsonl_url: The pipeline's parameter.
        template: The pipeline's parameter.
        gate_rules: The pipeline's parameter.
        recipe: A section of settings per card, fields for the names of the dataset's fields, and cluster.
        checkpoint_root: Volume for the checkpoints of all trainings; empty without one.
        package_version: Version that compiled the pipeline; the step refuses another one.

    Returns:
        Each card's section of the recipe, checked; the settings of its section cluster; GPUs for Evaluate; the
        whole plan.
    """
    arguments = locals()
    from llm_finetune.components.run.check_recipe import step
    from llm_finetune.components.run.check_recipe.wiring import CARDS, FREE_TEXT
    from llm_finetune.components.shared.card import card

    with card(package_version):
        parameters = parameters | {name: arguments[name] for name in FREE_TEXT if arguments[name]}
        sections = step.check_recipe(parameters, recipe, checkpoint_root)
        cluster = step.check_cluster(recipe)
        evaluation_gpus = "0" if parameters.get("gpu_count") == "0" else "1"  # one is all that it uses
        plan = step.plan_of(parameters, recipe)
    return (*(sections[name] for name in CARDS), *cluster.outputs.values(), evaluation_gpus, plan)
