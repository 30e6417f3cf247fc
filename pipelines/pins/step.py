"""Pins a run's data to its content, so that a changed source is read anew and not taken from the cache."""

import contextlib
import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llm_finetune.components.data.filter_clean.settings import source_of
from llm_finetune.components.data.load_dataset import hub, locations
from llm_finetune.components.data.load_dataset.settings import Settings
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.urls import without_secrets
from llm_finetune.pipelines.recipe.files import RunPlan
from llm_finetune.pipelines.recipe.wiring import settings_of

COMMIT = re.compile("[0-9a-f]{40}")


def pinned(plan: RunPlan, note: Callable[[str], object]) -> RunPlan:
    """Adds checksums of local files and commits of Hub datasets, those of mixtures and evaluation sets too.

    What is pinned already stays so. A source that is not there is left to its card, which says so.

    Args:
        plan: A checked plan.
        note: Is told of files elsewhere, in which a change would go unseen.

    Returns:
        The plan with its pins.
    """
    load, clean = (dict(plan.recipe.get(card, {})) for card in ("load_dataset", "filter_clean"))
    load |= _pins(Settings.of({**settings_of("load_dataset", plan.parameters), "settings": load}), note)
    if "eval_sets" in clean:
        clean["eval_sets"] = [_pinned_set(named, note) for named in clean["eval_sets"]]
    sections = {"load_dataset": load, "filter_clean": clean}
    return RunPlan({}, {card: section for card, section in sections.items() if section}).over(plan)


def _pinned_set(named: str | Mapping[str, Any], note: Callable[[str], object]) -> str | Mapping[str, Any]:
    chosen = source_of(named)
    pins = _pins(chosen, note)
    given = named if isinstance(named, Mapping) else chosen.model_dump(exclude_defaults=True)
    return {**given, **pins} if pins else named


def _pins(chosen: Settings, note: Callable[[str], object]) -> dict[str, Any]:
    if chosen.mixture:
        return {
            "mixture": [
                member.model_dump(exclude_defaults=True)
                | _pin(member.hf_dataset, member.hf_revision, member.path, member.sha256, note)
                for member in chosen.mixture
            ]
        }
    if chosen.source_type == "huggingface":
        return _pin(chosen.hf_dataset, chosen.hf_revision, "", "", note)
    return _pin("", "", getattr(chosen, chosen.source_type), chosen.sha256, note)


def _pin(dataset: str, revision: str, path: str, sha256: str, note: Callable[[str], object]) -> dict[str, str]:
    if dataset and not COMMIT.fullmatch(revision):
        with contextlib.suppress(UserError):  # the Hub can't be reached, or its card says what is wrong
            return {"hf_revision": hub.resolved(dataset, revision)[0]}
    elif path and not sha256:
        if "://" in path.replace("file://", ""):
            note(
                f"{without_secrets(path)} is not pinned: a change in it goes unseen where earlier results are taken. "
                "Give its sha256, or run without --resume"
            )
            return {}
        with contextlib.suppress(UserError, OSError):
            return {"sha256": ",".join(_sha256(source.location) for source in locations.files(path))}
    return {}


def _sha256(path: str) -> str:
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
