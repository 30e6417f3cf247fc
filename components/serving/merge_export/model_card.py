"""The model card that travels with the weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCard

from llm_finetune.components.shared.summary import cell

TEMPLATE = "model_card.md.jinja"
LINEAGE = ("package_version", "inputs", "seed", "content_hash", "adapter_content_hash")


def write_model_card(
    folder: Path,
    model_config: Path,
    ft_result: Path,
    base: Mapping[str, Any],
    training: Mapping[str, Any],
    evaluation: Mapping[str, Any],
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
        **values: What else the template shows.
    """
    name = str(base.get("model_name") or "unknown")
    text = _template().render(
        base_name=name.rpartition("/")[2],
        hub_id=_hub_id(name, model_config),
        licence=str(base.get("licence") or "unknown"),
        revision=str(base.get("revision", "")),
        adapter=json.loads((ft_result / "adapter_config.json").read_text(encoding="utf-8")),
        training=_figures(training),
        evaluation=_figures(evaluation),
        lineage=_lineage(training),
        **values,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


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
