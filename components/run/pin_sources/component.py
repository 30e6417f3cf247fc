"""Pin Sources: what data and base model hold now."""

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
    """Finds what the run's data and base model hold now, so that a cache never answers for what they held before.

    A Hub dataset and a base model on the Hub get their commit, files on a volume their checksum, files elsewhere their
    ETag. This card always runs; the cards after it are taken from the cache where nothing has changed.

    Args:
        source_type: The pipeline's parameter; so are the next four.
        hf_dataset: Dataset on the Hub.
        jsonl_path: Files, some of them maybe in an object store.
        jsonl_url: Files at URLs.
        model_name: Base model.
        load_dataset: Checked settings of Load Dataset.
        filter_clean: Checked settings of Filter & Clean, whose eval_sets are pinned too.
        load_model: Checked settings of Load Base Model.
        plan: The run's plan, as the model card shows it.
        package_version: Version that compiled the pipeline; the step refuses another one.

    Returns:
        The settings of the three cards with their pins, and the plan with those that a later run can be held to.
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
