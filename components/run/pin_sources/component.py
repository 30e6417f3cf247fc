"""Pin Sources: resolves datasets and base model to their current revisions."""

from typing import NamedTuple

from llm_finetune.components.shared.images import data_component


@data_component()
def pin_sources(
    source_type: str,
    hf_dataset: str,
    jsonl_path: str,
    jsonl_url: str,
    model_name: str,
    load_dataset: dict,
    filter_clean: dict,
    load_model: dict,
    plan: dict,
    package_version: str = "",
) -> NamedTuple("Pinned", [("load_dataset", dict), ("filter_clean", dict), ("load_model", dict), ("plan", dict)]):
    """Pins datasets and base model to their current revisions, so that a changed source invalidates cached results.

    Datasets and models on the Hub are pinned to a commit, files on a volume to a checksum, other files to an ETag. This
    card is never cached; the cards after it use cached results if no pin has changed.

    Args:
        source_type: Pipeline parameter.
        hf_dataset: Pipeline parameter.
        jsonl_path: Pipeline parameter.
        jsonl_url: Pipeline parameter.
        model_name: Pipeline parameter.
        load_dataset: Validated settings of Load Dataset.
        filter_clean: Validated settings of Filter & Clean; its eval_sets are pinned too.
        load_model: Validated settings of Load Base Model.
        plan: Plan of the run, as published on the model card.
        package_version: Version that compiled the pipeline; the step fails if it has another version.

    Returns:
        The settings of the three cards with pins, and the plan with the pins that a later run can reproduce.
    """
    arguments = locals()
    from llm_finetune.components.run.pin_sources import step
    from llm_finetune.components.shared.card import card

    with card(package_version):
        pinned = step.pin_sources(
            {name: arguments[name] for name in ("source_type", "hf_dataset", "jsonl_path", "jsonl_url", "model_name")},
            {"load_dataset": load_dataset, "filter_clean": filter_clean, "load_model": load_model},
            plan,
        )
    return tuple(pinned.values())
