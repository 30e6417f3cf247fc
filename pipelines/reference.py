"""Writes the reference of all settings and the JSON schema of recipes, from the cards' settings.

`make compile` writes `docs/settings.md` and `pipelines/recipes/recipe.schema.json`; `make test` compares them.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo
from pydantic.json_schema import models_json_schema

from llm_finetune.components.run.check_recipe.cluster import ClusterSettings
from llm_finetune.components.run.check_recipe.wiring import PARAMETERS, SETTINGS, describe_parameter
from llm_finetune.components.shared.files import write_text
from llm_finetune.components.shared.markdown import Markdown, code, table
from llm_finetune.components.shared.settings import FieldSettings

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "settings.md"
SCHEMA = ROOT / "pipelines" / "recipes" / "recipe.schema.json"
SECTIONS: dict[str, type[BaseModel]] = {"fields": FieldSettings, "cluster": ClusterSettings, **SETTINGS}
LIMITS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minLength": "at least {} character(s)",
    "maxLength": "at most {} characters",
    "pattern": "`{}`",
}
INTRODUCTION = """# Settings

Written by `make compile` from the cards' `settings.py`. A recipe has one section per card:

```yaml
parameters: {num_epochs: 2}          # pipeline parameters
finetune_lora: {warmup_ratio: 0.05}  # settings of one card
```

A setting that names a *parameter* is set by that parameter of the pipeline; in a recipe it belongs under `parameters`.
Settings of `fields` go to every card that reads the dataset's columns. An editor with a YAML language server completes
and checks a recipe whose first line is `# yaml-language-server: $schema=` and the path of
[recipe.schema.json](../pipelines/recipes/recipe.schema.json).
"""


def parameter_of(card: str, setting: str) -> str:
    """Returns the pipeline parameter that sets a card's setting, or an empty string."""
    return next((name for name, places in PARAMETERS.items() if (card, setting) in places), "")


def reference() -> str:
    """Returns the reference: one table per section of a recipe."""
    parts = [INTRODUCTION]
    for section, model in SECTIONS.items():
        rows = [_row(section, name, field) for name, field in model.model_fields.items()]
        head = ("setting", "values", "default", "meaning", "parameter")
        parts.append("\n".join([f"## {section}", "", *table(head, rows), ""]))
    return "\n".join(parts)


def _row(section: str, name: str, field: FieldInfo) -> tuple[str, ...]:
    parameter = parameter_of(section, name)
    default = field.get_default(call_default_factory=True)
    if isinstance(default, list):
        default = [item.model_dump(exclude_defaults=True) if isinstance(item, BaseModel) else item for item in default]
    shown = code(json.dumps(default, ensure_ascii=False)) if default not in ("", [], {}) else "empty"
    meaning = Markdown(field.description or "")
    return code(name), Markdown(_values(field)), shown, meaning, code(parameter) if parameter else ""


def _values(field: FieldInfo) -> str:
    """Returns a setting's type, or its choices, and its limits."""
    schema = field_schema(field)
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kind = {"string": "text", "number": "number", "integer": "integer", "boolean": "true, false", "object": "mapping"}
    text = "text or list" if "anyOf" in schema else kind.get(schema.get("type", ""), "list")
    return ", ".join([text, *(form.format(schema[key]) for key, form in LIMITS.items() if key in schema)])


def field_schema(field: FieldInfo) -> dict[str, Any]:
    """Returns the JSON schema of one setting's values."""
    return TypeAdapter(field.rebuild_annotation()).json_schema()


def recipe_schema() -> dict[str, Any]:
    """Returns the JSON schema of a recipe file: its parameters and a section per card."""
    names, definitions = models_json_schema(
        [(model, "validation") for model in SECTIONS.values()], ref_template="#/$defs/{model}"
    )
    sections: dict[str, Any] = {"parameters": _parameters()}
    for section, model in SECTIONS.items():
        definition = definitions["$defs"].pop(names[model, "validation"]["$ref"].rpartition("/")[2])
        own = {name: schema for name, schema in definition["properties"].items() if not parameter_of(section, name)}
        sections[section] = {
            "type": "object",
            "description": definition.get("description", "").split("\n")[0],
            "properties": own,
            "additionalProperties": False,
        }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Recipe of llm-finetune",
        "type": "object",
        "properties": sections,
        "additionalProperties": False,
        "$defs": definitions["$defs"],
    }


def _parameters() -> dict[str, Any]:
    properties = {}
    for name, ((card, setting), *_) in PARAMETERS.items():
        field = SETTINGS[card].model_fields[setting]
        properties[name] = {
            **field_schema(field),
            "default": field.get_default(call_default_factory=True),
            "description": describe_parameter(name),
        }
    return {
        "type": "object",
        "description": "The pipeline's parameters.",
        "properties": properties,
        "additionalProperties": False,
    }


def write_reference() -> list[Path]:
    """Writes the reference and the schema where they differ from the settings.

    Returns:
        The files that were written.
    """
    texts = {REFERENCE: reference(), SCHEMA: json.dumps(recipe_schema(), indent=1, ensure_ascii=False) + "\n"}
    changed = [
        (path, text) for path, text in texts.items() if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    for path, text in changed:
        write_text(path, text)
    return [path for path, _ in changed]
