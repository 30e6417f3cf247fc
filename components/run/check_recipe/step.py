"""Check Recipe: validates all settings of a run before anything is downloaded or a GPU is requested."""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from llm_finetune.components.data.format_sft.settings import WRITTEN_COLUMNS
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

NOT_IN_PLAN = ("vllm_serve", "cluster")
WITH_URLS = ("load_dataset", "filter_clean", "merge_export")


def check_recipe(
    parameters: Mapping[str, Any], recipe: Mapping[str, Any], checkpoint_root: str = ""
) -> dict[str, dict[str, Any]]:
    """Validates the settings of all cards, from pipeline parameters and recipe together.

    Args:
        parameters: Pipeline parameters by name; numbers and booleans may be strings, as KFP passes them.
        recipe: A section per card, `fields` (columns of the dataset), and `cluster`.
        checkpoint_root: Folder in which each training creates its checkpoint folder; empty for none.

    Returns:
        Settings of the recipe by card, without the settings that pipeline parameters set.

    Raises:
        UserError: If a section, setting or value is unknown or invalid, or a section contains a setting that a pipeline
            parameter sets.
    """
    known = (*SETTINGS, "fields", "cluster")
    for name, content in recipe.items():
        if name not in known:
            raise UserError(f"unknown section {name!r} in the recipe{nearest(name, known)} ({', '.join(known)})")
        if not isinstance(content, Mapping):
            raise UserError(f"recipe.{name} = {content!r}; expected a mapping of settings to values")
    sections = {
        card: replace_old_names(settings, recipe.get(card, {}), f"recipe.{card}") for card, settings in SETTINGS.items()
    }
    for card, section in sections.items():
        _reject_parameters(card, section)
    if node_selector := check_cluster(recipe).node_selector:
        sections["vllm_serve"].setdefault("node_selector", node_selector)
    if checkpoint_root:
        sections["finetune_lora"].setdefault("checkpoint_root", checkpoint_root)
    fields = validate(FieldSettings, recipe.get("fields", {}), "recipe.fields").model_dump()
    for card in FIELD_CARDS:
        _set_shared(sections[card], card, fields if "fields" in recipe else {})
    for (card, setting), others in SHARED_SETTINGS.items():
        for other in others:
            _set_shared(sections[other], other, {setting: sections[card][setting]} if setting in sections[card] else {})
    _keep_slice_columns(sections)
    validated = {}
    for card, section in sections.items():
        values = {**settings_of(card, parameters), **section}
        validated[card] = validate(SETTINGS[card], values, f"recipe.{card}").model_dump(mode="json")
    _check_gate(validated["quality_gate"]["rules"], validated["evaluate"]["tasks"])
    return {card: {name: validated[card][name] for name in section} for card, section in sections.items()}


def check_cluster(recipe: Mapping[str, Any]) -> ClusterSettings:
    """Validates the recipe's section `cluster`.

    Args:
        recipe: The recipe.

    Returns:
        The settings of the section.

    Raises:
        UserError: If a setting is unknown or invalid.
    """
    return validate(ClusterSettings, recipe.get("cluster", {}), "recipe.cluster")


def plan_of(parameters: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the plan of a run as the content of a recipe file, without serving and cluster settings.

    The plan is published on the model card, so passwords and signatures are removed from its URLs.

    Args:
        parameters: Pipeline parameters by name; numbers and booleans may be strings, as KFP passes them.
        recipe: The recipe.

    Returns:
        `parameters`, converted to their types, and the sections of the recipe.
    """
    typed = {}
    for name, value in parameters.items():
        card, setting = PARAMETERS[name][0]
        if card not in NOT_IN_PLAN:
            kind: Any = SETTINGS[card].model_fields[setting].annotation
            own = TypeAdapter(kind).validate_python(value)
            typed[name] = all_without_secrets(own) if card in WITH_URLS else own
    sections: dict[str, Any] = {name: dict(section) for name, section in recipe.items() if name not in NOT_IN_PLAN}
    for place in ("checkpoint_folder", "checkpoint_root"):
        sections.get("finetune_lora", {}).pop(place, None)
    sections |= {card: all_without_secrets(sections[card]) for card in WITH_URLS if card in sections}
    return {"parameters": typed, **sections}


def _reject_parameters(card: str, section: Mapping[str, Any]) -> None:
    for parameter, places in PARAMETERS.items():
        for name, setting in places:
            if name == card and setting in section:
                raise UserError(
                    f"recipe.{card}.{setting} is set by the pipeline's parameter {parameter}: set the parameter instead"
                )


def _keep_slice_columns(sections: dict[str, dict[str, Any]]) -> None:
    """Adds the columns that Evaluate slices by to the columns that Format for SFT keeps."""
    own, slices = sections["format_sft"].get("keep_columns", ""), sections["evaluate"].get("slice_by", "")
    if isinstance(own, str) and isinstance(slices, str):  # other types are rejected with the settings of the cards
        columns = [*split_names(own), *(name for name in split_names(slices) if name not in WRITTEN_COLUMNS)]
        if columns:
            sections["format_sft"]["keep_columns"] = ",".join(dict.fromkeys(columns))


def _check_gate(rules: str, tasks: str) -> None:
    """Rejects gate rules about tasks if no task is evaluated: the gate would stay closed after the training."""
    of_tasks = [rule.text for rule in parse_rules(rules) if rule.metric.startswith("task.")]
    if of_tasks and not split_names(tasks):
        raise UserError(
            f"gate_rules has {of_tasks[0]!r}, but no task is evaluated: add it to recipe.evaluate.tasks, or remove the "
            "rule"
        )


def _set_shared(section: dict[str, Any], card: str, shared: Mapping[str, Any]) -> None:
    for name, value in shared.items():
        if name in SETTINGS[card].model_fields and section.setdefault(name, value) != value:
            raise UserError(
                f"recipe.{card}.{name} = {section[name]!r}, but {value!r} is set for all cards: set it only once"
            )
