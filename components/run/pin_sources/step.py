"""Pins what a run reads to what it holds now, so that a changed source is read anew and not taken from a cache."""

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
SEEN = ("etag", "commit")  # tell a cache that something has changed; no card does anything else with them


def pin_sources(
    parameters: Mapping[str, Any], sections: Mapping[str, Mapping[str, Any]], plan: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Pins data and base model to what their names mean now, those of mixtures and evaluation sets too.

    A Hub dataset gets the commit, a file on this machine its checksum, one elsewhere its ETag, a base model on the Hub
    its commit. What is pinned already stays so. What can't be found is left to its card, which says what is wrong.

    Args:
        parameters: The pipeline's parameters `source_type`, `hf_dataset`, `jsonl_path`, `jsonl_url` and `model_name`.
        sections: Checked settings of `load_dataset`, `filter_clean` and `load_model`.
        plan: The run's plan, as the model card shows it.

    Returns:
        The three sections with their pins, and the plan with those that a later run can be held to.
    """
    load, clean, model = (dict(sections[card]) for card in ("load_dataset", "filter_clean", "load_model"))
    source = {name: value for name, value in parameters.items() if name in Settings.model_fields}
    pins = {"load_dataset": _pins(Settings.of({**source, "settings": load}))}
    if clean.get("eval_sets"):
        pins["filter_clean"] = {"eval_sets": [_pinned_set(named) for named in clean["eval_sets"]]}
    lasting = {card: all_without_secrets(_lasting(found)) for card, found in pins.items()}
    chosen = LoadModel.of({"model_name": parameters["model_name"], "settings": model})
    return {
        "load_dataset": load | pins["load_dataset"],
        "filter_clean": clean | pins.get("filter_clean", {}),
        "load_model": model | _commit(chosen.model_name, chosen.revision),
        "plan": {**plan, **{card: {**plan.get(card, {}), **found} for card, found in lasting.items() if found}},
    }


def _pins(chosen: Settings) -> dict[str, Any]:
    if chosen.mixture:
        return {
            "mixture": [
                member.model_dump(exclude_defaults=True)
                | _pin(member.hf_dataset, member.hf_revision, member.path, member.sha256)
                for member in chosen.mixture
            ]
        }
    if chosen.source_type == "huggingface":
        return _pin(chosen.hf_dataset, chosen.hf_revision, "", "")
    return _pin("", "", getattr(chosen, chosen.source_type), chosen.sha256)


def _pinned_set(named: str | Mapping[str, Any]) -> str | Mapping[str, Any]:
    chosen = eval_set_source(named)
    pins = _pins(chosen)
    given = named if isinstance(named, Mapping) else chosen.model_dump(exclude_defaults=True)
    return {**given, **pins} if pins else named


def _pin(dataset: str, revision: str, path: str, sha256: str) -> dict[str, str]:
    try:
        if dataset:
            return {} if COMMIT.fullmatch(revision) else {"hf_revision": hub.resolve(dataset, revision)[0]}
        if not path or sha256:
            return {}
        files = locations.find_files(path)
        if all(file.is_local for file in files):
            return {"sha256": ",".join(_sha256(file.location) for file in files)}
        found = locations.joint_etag(files)
    except (UserError, OSError) as error:
        print(f"not pinned: {error}", flush=True)
        return {}
    return {"etag": found} if found else {}


def _commit(model_name: str, revision: str) -> dict[str, str]:
    try:
        found = commit_of(model_name, revision)
    except UserError as error:
        print(f"not pinned: {error}", flush=True)
        return {}
    return {"commit": found} if found else {}


def _lasting(found: Any) -> Any:
    """Returns pins without those that no later run can be held to."""
    if isinstance(found, Mapping):
        return {name: _lasting(value) for name, value in found.items() if name not in SEEN}
    return [_lasting(value) for value in found] if isinstance(found, list) else found


def _sha256(path: str) -> str:
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
