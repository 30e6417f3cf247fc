"""The model card that travels with the weights."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from llm_finetune.components.serving.merge_export import licences
from llm_finetune.components.shared.summary import cell

TEMPLATE = "model_card.md.jinja"
LINEAGE = ("package_version", "inputs", "origin", "seed", "content_hash", "adapter_content_hash")
COMMIT = re.compile("[0-9a-f]{40}")
# Licence names of the Hub.
UNNAMED = ("unknown", "other")
NONCOMMERCIAL = re.compile(r"(^|-)nc(-|$)|non-?commercial|research")
OWN_TERMS = ("llama", "gemma", "openrail", "bigscience", "creativeml", "deepseek", "apple", "intel-research")


def write_model_card(
    folder: Path,
    model_config: Path,
    ft_result: Path,
    base: Mapping[str, Any],
    training: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    plan: Mapping[str, Any],
    **values: Any,
) -> None:
    """Writes README.md.

    Args:
        folder: Folder of the merged model.
        model_config: Folder of the base model.
        ft_result: Folder of the adapter.
        base: Metadata of the base model.
        training: Metadata of the adapter.
        evaluation: Metadata of the evaluation; may be empty.
        plan: The pipeline's parameters and recipe that the run was started with; empty if unknown.
        **values: What else the template shows.
    """
    name = str(base.get("model_name") or "unknown")
    licence, revision = str(base.get("licence") or "unknown"), str(base.get("revision", ""))
    hub_id, figures = _hub_id(name, model_config), _figures(evaluation)
    origin = {name: value for name, value in (training.get("origin") or {}).items() if value}
    text = _template().render(
        front_matter=_front_matter(
            name.rpartition("/")[2], hub_id, licences.front_matter(licence, folder), figures, origin
        ),
        base_name=name.rpartition("/")[2],
        hub_id=hub_id,
        revision=revision,
        adapter=json.loads((ft_result / "adapter_config.json").read_text(encoding="utf-8")),
        data={name.removeprefix("dataset_"): value for name, value in origin.items() if name.startswith("dataset_")},
        training=_figures(training),
        evaluation=figures,
        lineage=_lineage(training),
        limits=_limits(licence, origin, evaluation),
        plan=yaml.safe_dump(pinned(plan, revision, origin), sort_keys=False).rstrip() if plan else "",
        **values,
    )
    ModelCard(text)  # refuses front matter that the Hub would not read
    (folder / "README.md").write_text(text, encoding="utf-8")


def pinned(plan: Mapping[str, Any], base_revision: str, origin: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a plan in which base model and dataset are those that were found, whatever their branches hold later.

    Args:
        plan: `parameters` and a section per card, as a recipe file holds them.
        base_revision: Commit or content hash of the base model.
        origin: Where data and base came from.

    Returns:
        The plan as a recipe.
    """
    recipe: dict[str, Any] = {name: dict(section) for name, section in plan.items() if section}
    if base_revision:
        recipe.setdefault("load_model", {})["revision"] = base_revision
    from_hub = recipe.get("parameters", {}).get("source_type", "huggingface") == "huggingface"
    if from_hub and COMMIT.fullmatch(str(origin.get("dataset_revision", ""))):
        recipe.setdefault("load_dataset", {})["hf_revision"] = origin["dataset_revision"]
    return recipe


def _front_matter(
    name: str, hub_id: str, licence: Mapping[str, Any], figures: Mapping[str, Any], origin: Mapping[str, Any]
) -> str:
    data = str(origin.get("dataset_source") or "validation rows")
    measured = [
        EvalResult("text-generation", licences.slug(data), data, name.removeprefix("tuned_"), value, metric_name=name)
        for name, value in figures.items()
        if name.startswith("tuned_") and isinstance(value, int | float)
    ]
    card = ModelCardData(
        base_model=hub_id or None,
        base_model_relation="finetune" if hub_id else None,
        **licence,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["lora", "sft", "llm-finetune"],
        model_name=f"{name}, fine-tuned",
        eval_results=measured or None,
    )
    return str(card.to_yaml()).strip()


def _limits(licence: str, origin: Mapping[str, Any], evaluation: Mapping[str, Any]) -> list[str]:
    """Returns what a reader has to know before the model is used."""
    notes = [
        "It was trained and measured on the data above and may be wrong on anything else; figures without an interval "
        "are of one run.",
        "The adapter changes what the base model says, not what it knows: its faults and biases are still there.",
    ]
    if not evaluation:
        notes.append("It was not evaluated.")
    data_licence = str(origin.get("dataset_license") or origin.get("dataset_licence") or "unknown")
    for of, named in (("base model", licence), *(("data", name) for name in data_licence.split(" and "))):
        if named.lower() in UNNAMED:
            notes.append(f"**The licence of the {of} isn't known**: find out whether you may use and serve the result.")
        elif NONCOMMERCIAL.search(named.lower()):
            notes.append(f"**The licence of the {of} ({cell(named)}) forbids commercial use**, of this model too.")
        elif named.lower().startswith(OWN_TERMS):
            notes.append(
                f"**The licence of the {of} ({cell(named)}) has terms of its own** on use, naming and passing on; "
                "they hold for this model too."
            )
    return notes


def _hub_id(name: str, model_config: Path) -> str:
    """Returns the base model's id on the Hub: its name or, for a folder, the one that the folder's card names."""
    if name.count("/") == 1 and not name.startswith("/"):
        return name
    card = model_config / "README.md"
    named = ModelCard.load(card, ignore_metadata_errors=True).data.base_model if card.is_file() else None
    return named if isinstance(named, str) else ""


def _figures(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is a figure or a word, without lineage."""
    plain = {name: value for name, value in metadata.items() if isinstance(value, int | float | str)}
    return {name: value for name, value in plain.items() if name not in LINEAGE and value != ""}


def _lineage(training: Mapping[str, Any]) -> dict[str, Any]:
    made_from = {"adapter": training.get("content_hash", "unknown")}
    made_from |= {name: value for name, value in (training.get("inputs") or {}).items() if value}
    made_from |= {name: training[name] for name in ("seed", "package_version") if name in training}
    return made_from


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = cell
    return environment.get_template(TEMPLATE)
