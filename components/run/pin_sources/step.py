"""Pins datasets and base model to their current revisions, so that a changed source invalidates cached results."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_finetune.components.data.filter_clean.settings import eval_set_source
from llm_finetune.components.data.load_dataset.settings import Settings
from llm_finetune.components.data.sources import hub, locations
from llm_finetune.components.model.load_model.settings import Settings as LoadModel
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.modeling.base_model import commit_of
from llm_finetune.components.shared.urls import all_without_secrets

COMMIT = re.compile("[0-9a-f]{40}")
CACHE_PINS = ("etag", "commit")  # only invalidate caches; no card reads them


def pin_sources(
    parameters: Mapping[str, Any], sections: Mapping[str, Mapping[str, Any]], plan: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Pins datasets, including mixtures and evaluation sets, and the base model to their current revisions.

    Datasets and models on the Hub are pinned to a commit, local files to a checksum, other files to an ETag. Existing
    pins are kept. A source that cannot be resolved is not pinned; the card that reads it reports the error.

    Args:
        parameters: Pipeline parameters `source_type`, `hf_dataset`, `jsonl_path`, `jsonl_url` and `model_name`.
        sections: Validated settings of `load_dataset`, `filter_clean` and `load_model`.
        plan: Plan of the run, as published on the model card.

    Returns:
        The three sections with pins, and the plan with the pins that a later run can reproduce.
    """
    load, clean, model = (dict(sections[card]) for card in ("load_dataset", "filter_clean", "load_model"))
    source = {name: value for name, value in parameters.items() if name in Settings.model_fields}
    pins = {"load_dataset": _pins(Settings.of({**source, "settings": load}))}
    if clean.get("eval_sets"):
        pins["filter_clean"] = {"eval_sets": [_pin_eval_set(eval_set) for eval_set in clean["eval_sets"]]}
    lasting_pins = {card: all_without_secrets(_without_cache_pins(found)) for card, found in pins.items()}
    model_settings = LoadModel.of({"model_name": parameters["model_name"], "settings": model})
    return {
        "load_dataset": load | pins["load_dataset"],
        "filter_clean": clean | pins.get("filter_clean", {}),
        "load_model": model | _pin_model(model_settings.model_name, model_settings.revision),
        "plan": {**plan, **{card: {**plan.get(card, {}), **found} for card, found in lasting_pins.items() if found}},
    }


def _pins(settings: Settings) -> dict[str, Any]:
    if settings.mixture:
        return {
            "mixture": [
                member.model_dump(exclude_defaults=True)
                | _pin(member.hf_dataset, member.hf_revision, member.path, member.sha256)
                for member in settings.mixture
            ]
        }
    if settings.source_type == "huggingface":
        return _pin(settings.hf_dataset, settings.hf_revision, "", "")
    return _pin("", "", getattr(settings, settings.source_type), settings.sha256)


def _pin_eval_set(eval_set: str | Mapping[str, Any]) -> str | Mapping[str, Any]:
    settings = eval_set_source(eval_set)
    pins = _pins(settings)
    values = eval_set if isinstance(eval_set, Mapping) else settings.model_dump(exclude_defaults=True)
    return {**values, **pins} if pins else eval_set


def _pin(dataset: str, revision: str, path: str, sha256: str) -> dict[str, str]:
    try:
        if dataset:
            return {} if COMMIT.fullmatch(revision) else {"hf_revision": hub.resolve(dataset, revision)[0]}
        if not path or sha256:
            return {}
        files = locations.find_files(path)
        if all(file.is_local for file in files):
            return {"sha256": ",".join(_sha256(file.location) for file in files)}
        etag = locations.joint_etag(files)
    except (UserError, OSError) as error:
        print(f"not pinned: {error}", flush=True)
        return {}
    return {"etag": etag} if etag else {}


def _pin_model(model_name: str, revision: str) -> dict[str, str]:
    try:
        commit = commit_of(model_name, revision)
    except UserError as error:
        print(f"not pinned: {error}", flush=True)
        return {}
    return {"commit": commit} if commit else {}


def _without_cache_pins(pins: Any) -> Any:
    """Removes the pins that a later run cannot reproduce."""
    if isinstance(pins, Mapping):
        return {name: _without_cache_pins(value) for name, value in pins.items() if name not in CACHE_PINS}
    return [_without_cache_pins(value) for value in pins] if isinstance(pins, list) else pins


def _sha256(path: str) -> str:
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
