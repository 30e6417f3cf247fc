"""Writes the model card."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from llm_finetune.components.serving.merge_export import licenses
from llm_finetune.components.serving.merge_export.parity import Parity
from llm_finetune.components.shared.markdown import cell

TEMPLATE = "model_card.md.jinja"
LINEAGE = ("package_version", "inputs", "origin", "seed", "content_hash", "adapter_content_hash")
COMMIT = re.compile("[0-9a-f]{40}")
# License identifiers of the Hub.
UNKNOWN_LICENSES = ("unknown", "other")
NONCOMMERCIAL = re.compile(r"(^|-)nc(-|$)|non-?commercial|research")
CUSTOM_TERMS = ("llama", "gemma", "openrail", "bigscience", "creativeml", "deepseek", "apple", "intel-research")


@dataclass(frozen=True)
class MergedWeights:
    """Properties of the merged weights.

    Attributes:
        load_in_4bit: Whether the adapter was trained on NF4 weights.
        dtype: Type of the stored weights.
        dtype_reason: Why this type was chosen.
        save_format: `safetensors` or `pt`.
        parity: Differences between merged model and adapter.
    """

    load_in_4bit: bool
    dtype: str
    dtype_reason: str
    save_format: str
    parity: Parity


def write_model_card(
    folder: Path,
    model_config: Path,
    ft_result: Path,
    base: Mapping[str, Any],
    training: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    plan: Mapping[str, Any],
    merged: MergedWeights,
) -> None:
    """Writes README.md.

    Args:
        folder: Folder of the merged model.
        model_config: Folder of the base model.
        ft_result: Folder of the adapter.
        base: Metadata of the base model.
        training: Metadata of the adapter.
        evaluation: Metadata of the evaluation; may be empty.
        plan: Parameters and recipe of the run; empty if unknown.
        merged: Properties of the merged weights.
    """
    name = str(base.get("model_name") or "unknown")
    license, revision = str(base.get("licence") or "unknown"), str(base.get("revision", ""))
    hub_id, figures = _hub_id(name, model_config), _figures(evaluation)
    origin = {name: value for name, value in (training.get("origin") or {}).items() if value}
    text = _template().render(
        front_matter=_front_matter(
            name.rpartition("/")[2], hub_id, licenses.front_matter(license, folder), figures, origin
        ),
        base_name=name.rpartition("/")[2],
        hub_id=hub_id,
        revision=revision,
        adapter=json.loads((ft_result / "adapter_config.json").read_text(encoding="utf-8")),
        data={name.removeprefix("dataset_"): value for name, value in origin.items() if name.startswith("dataset_")},
        training=_figures(training),
        evaluation=figures,
        lineage=_lineage(training),
        limits=_limits(license, origin, evaluation),
        plan=yaml.safe_dump(pinned(plan, revision, origin), sort_keys=False).rstrip() if plan else "",
        merged=merged,
        parity=asdict(merged.parity),
    )
    ModelCard(text)  # raises for front matter that the Hub rejects
    (folder / "README.md").write_text(text, encoding="utf-8")


def pinned(plan: Mapping[str, Any], base_revision: str, origin: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a plan with the revisions of base model and dataset that the run has used.

    Args:
        plan: `parameters` and a section per card, as in a recipe file.
        base_revision: Commit or content hash of the base model.
        origin: Origin of data and base model.

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
    name: str, hub_id: str, license: Mapping[str, Any], figures: Mapping[str, object], origin: Mapping[str, object]
) -> str:
    data = str(origin.get("dataset_source") or "validation rows")
    measured = [
        EvalResult("text-generation", licenses.slug(data), data, name.removeprefix("tuned_"), value, metric_name=name)
        for name, value in figures.items()
        if name.startswith("tuned_") and isinstance(value, int | float)
    ]
    card = ModelCardData(
        base_model=hub_id or None,
        base_model_relation="finetune" if hub_id else None,
        **license,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["lora", "sft", "llm-finetune"],
        model_name=f"{name}, fine-tuned",
        eval_results=measured or None,
    )
    return str(card.to_yaml()).strip()


def _limits(license: str, origin: Mapping[str, object], evaluation: Mapping[str, object]) -> list[str]:
    """Returns limitations of the model and warnings about licenses."""
    notes = [
        "The model was trained and evaluated on the data above; other inputs are not covered. Metrics without an "
        "interval are of one run.",
        "Errors and biases of the base model remain.",
    ]
    if not evaluation:
        notes.append("The model was not evaluated.")
    data_license = str(origin.get("dataset_license") or origin.get("dataset_licence") or "unknown")
    for of, named in (("base model", license), *(("data", name) for name in data_license.split(" and "))):
        if named.lower() in UNKNOWN_LICENSES:
            notes.append(f"**The license of the {of} is unknown**: check whether you may use and serve this model.")
        elif NONCOMMERCIAL.search(named.lower()):
            notes.append(f"**The license of the {of} ({cell(named)}) forbids commercial use**, also of this model.")
        elif named.lower().startswith(CUSTOM_TERMS):
            notes.append(
                f"**The license of the {of} ({cell(named)}) has special terms** for use, naming and distribution, "
                "which also apply to this model."
            )
    return notes


def _hub_id(name: str, model_config: Path) -> str:
    """Returns the Hub id of the base model: its name or, for a folder, the id in the folder's model card."""
    if name.count("/") == 1 and not name.startswith("/"):
        return name
    card = model_config / "README.md"
    named = ModelCard.load(card, ignore_metadata_errors=True).data.base_model if card.is_file() else None
    return named if isinstance(named, str) else ""


def _figures(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the numbers and texts of metadata, without lineage."""
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
