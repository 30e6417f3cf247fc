"""Recipes as YAML files: parameters of the pipeline and sections of the cards."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llm_finetune.components.shared.errors import UserError, nearest
from llm_finetune.pipelines.recipe.wiring import PARAMETERS

RECIPES = Path(__file__).parents[1] / "recipes"


@dataclass(frozen=True)
class RunPlan:
    """What a run is started with.

    Attributes:
        parameters: Pipeline parameters by name; those left out keep the pipeline's defaults.
        recipe: Sections of settings by card.
    """

    parameters: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, dict[str, Any]] = field(default_factory=dict)

    def over(self, other: "RunPlan") -> "RunPlan":
        """Returns a plan in which this one's values take precedence over another's."""
        sections = {
            name: {**other.recipe.get(name, {}), **self.recipe.get(name, {})}
            for name in {**other.recipe, **self.recipe}
        }
        return RunPlan({**other.parameters, **self.parameters}, sections)

    @property
    def arguments(self) -> dict[str, Any]:
        """The pipeline's arguments."""
        return {**self.parameters, "recipe": self.recipe}


def read_recipe(path: Path) -> RunPlan:
    """Reads a recipe file.

    Args:
        path: YAML with `parameters:` (pipeline parameters) and a section per card; or the name of a recipe that ships
            with the package, such as `demo`.

    Returns:
        The plan.

    Raises:
        UserError: If there is no such file, it is no mapping, or a parameter is unknown.
    """
    shipped = RECIPES / f"{path}.yaml"
    file = path if path.is_file() else shipped
    if not file.is_file():
        names = sorted(recipe.stem for recipe in RECIPES.glob("*.yaml"))
        raise UserError(f"no recipe at {path}; give a YAML file, or one of those that ship: {', '.join(names)}")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{file} holds {type(content).__name__}, not a mapping of sections")
    sections = {name: section or {} for name, section in content.items() if name != "parameters"}
    parameters = content.get("parameters") or {}
    for holder, values in (("parameters", parameters), *sections.items()):
        if not isinstance(values, Mapping):
            raise UserError(f"{holder} in {file} is {values!r}: a section is a mapping of names to values")
    check_names(parameters, str(file))
    return RunPlan(dict(parameters), {name: dict(section) for name, section in sections.items()})


def check_names(parameters: Mapping[str, Any], where: str) -> None:
    """Refuses a parameter that the pipeline does not have.

    Args:
        parameters: Parameters by name.
        where: Where they were given, for the message.

    Raises:
        UserError: Naming the parameter and the nearest one.
    """
    for name in parameters:
        if name not in PARAMETERS:
            raise UserError(
                f"{where}: the pipeline has no parameter {name!r}{nearest(name, PARAMETERS)} ({', '.join(PARAMETERS)})"
            )
