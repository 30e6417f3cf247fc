"""Check Recipe: refuses an impossible run before anything is downloaded or any GPU is asked for."""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from llm_finetune.components.data.format_sft.settings import WRITTEN
from llm_finetune.components.evaluation.quality_gate.rules import parse_rules
from llm_finetune.components.run.check_recipe.cluster import ClusterSettings
from llm_finetune.components.run.check_recipe.wiring import (
    FIELD_CARDS,
    PARAMETERS,
    SETTINGS,
    SHARED_SETTINGS,
    settings_of,
)
from llm_finetune.components.shared.errors import UserError, nearest
from llm_finetune.components.shared.settings import FieldSettings, replace_old_names, split_names, validate
from llm_finetune.components.shared.urls import all_without_secrets

NOT_OF_THE_MODEL = ("vllm_serve", "cluster")
WITH_ADDRESSES = ("load_dataset", "filter_clean", "merge_export")


def check_recipe(
    parameters: Mapping[str, Any], recipe: Mapping[str, Any], checkpoint_root: str = ""
) -> dict[str, dict[str, Any]]:
    """Checks every card's settings, those of the pipeline's parameters and those of the recipe, together.

    Args:
        parameters: Pipeline parameters by name; text is taken for numbers and booleans too, as KFP passes it.
        recipe: A section per card, `fields` for the names of the dataset's fields, and `cluster`.
        checkpoint_root: Folder in which a training gets one of its own for its checkpoints; empty gives it none.

    Returns:
        Per card, the settings that the recipe gives it; the pipeline's parameters are not among them.

    Raises:
        UserError: If a section, a setting or a value is unknown or impossible, or a section holds what is a pipeline
            parameter.
    """
    known = (*SETTINGS, "fields", "cluster")
    for name, content in recipe.items():
        if name not in known:
            raise UserError(f"unknown section {name!r} in the recipe{nearest(name, known)} ({', '.join(known)})")
        if not isinstance(content, Mapping):
            raise UserError(f"recipe.{name} = {content!r}: a section is a mapping of settings to values")
    sections = {
        card: replace_old_names(settings, recipe.get(card, {}), f"recipe.{card}") for card, settings in SETTINGS.items()
    }
    for card, section in sections.items():
        _refuse_parameters(card, section)
    if node_selector := check_cluster(recipe).node_selector:
        sections["vllm_serve"].setdefault("node_selector", node_selector)
    if checkpoint_root:
        sections["finetune_lora"].setdefault("checkpoint_root", checkpoint_root)
    fields = validate(FieldSettings, recipe.get("fields", {}), "recipe.fields").model_dump()
    for card in FIELD_CARDS:
        _share(sections[card], card, fields if "fields" in recipe else {})
    for (card, setting), others in SHARED_SETTINGS.items():
        for other in others:
            _share(sections[other], other, {setting: sections[card][setting]} if setting in sections[card] else {})
    _keep_slices(sections)
    chosen = {}
    for card, section in sections.items():
        values = {**settings_of(card, parameters), **section}
        chosen[card] = validate(SETTINGS[card], values, f"recipe.{card}").model_dump(mode="json")
    _check_gate(chosen["quality_gate"]["rules"], chosen["evaluate"]["tasks"])
    return {card: {name: chosen[card][name] for name in section} for card, section in sections.items()}


def check_cluster(recipe: Mapping[str, Any]) -> ClusterSettings:
    """Checks the recipe's section `cluster`.

    Args:
        recipe: The recipe.

    Returns:
        Its settings.

    Raises:
        UserError: If a setting is unknown or impossible.
    """
    return validate(ClusterSettings, recipe.get("cluster", {}), "recipe.cluster")


def plan_of(parameters: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what decides a run's model, as a recipe file holds it: not where it is served, nor on what cluster.

    It is published on the model card, so its URLs have no passwords and signatures any more.

    Args:
        parameters: Pipeline parameters by name, as KFP passes them: text for numbers and booleans.
        recipe: The recipe.

    Returns:
        `parameters`, of their own types again, and the recipe's sections.
    """
    typed = {}
    for name, value in parameters.items():
        card, setting = PARAMETERS[name][0]
        if card not in NOT_OF_THE_MODEL:
            kind: Any = SETTINGS[card].model_fields[setting].annotation
            own = TypeAdapter(kind).validate_python(value)
            typed[name] = all_without_secrets(own) if card in WITH_ADDRESSES else own
    sections: dict[str, Any] = {name: dict(section) for name, section in recipe.items() if name not in NOT_OF_THE_MODEL}
    for place in ("checkpoint_folder", "checkpoint_root"):
        sections.get("finetune_lora", {}).pop(place, None)
    sections |= {card: all_without_secrets(sections[card]) for card in WITH_ADDRESSES if card in sections}
    return {"parameters": typed, **sections}


def _refuse_parameters(card: str, section: Mapping[str, Any]) -> None:
    for parameter, places in PARAMETERS.items():
        for name, setting in places:
            if name == card and setting in section:
                raise UserError(
                    f"recipe.{card}.{setting} is set by the pipeline's parameter {parameter}: give it there instead"
                )


def _keep_slices(sections: dict[str, dict[str, Any]]) -> None:
    """Lets Format for SFT keep the columns that Evaluate slices by."""
    own, slices = sections["format_sft"].get("keep_columns", ""), sections["evaluate"].get("slice_by", "")
    if isinstance(own, str) and isinstance(slices, str):  # else their cards' settings refuse them
        wanted = [*split_names(own), *(name for name in split_names(slices) if name not in WRITTEN)]
        if wanted:
            sections["format_sft"]["keep_columns"] = ",".join(dict.fromkeys(wanted))


def _check_gate(rules: str, tasks: str) -> None:
    """Refuses rules about tasks where none will be run: the gate would stay closed after the whole training."""
    of_tasks = [rule.text for rule in parse_rules(rules) if rule.figure.startswith("task.")]
    if of_tasks and not split_names(tasks):
        raise UserError(
            f"gate_rules has {of_tasks[0]!r}, but no task is evaluated: name it in recipe.evaluate.tasks, or leave the "
            "rule out"
        )


def _share(section: dict[str, Any], card: str, shared: Mapping[str, Any]) -> None:
    for name, value in shared.items():
        if name in SETTINGS[card].model_fields and section.setdefault(name, value) != value:
            raise UserError(
                f"recipe.{card}.{name} = {section[name]!r}, but {value!r} was given for all cards: give it once"
            )
