"""Reads recipes: YAML files with pipeline parameters and sections of settings."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from llm_finetune.components.run.check_recipe.wiring import PARAMETERS, parameter_type
from llm_finetune.components.shared.errors import UserError, nearest

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class RunPlan:
    """Pipeline parameters and recipe of a run.

    Attributes:
        parameters: Pipeline parameters by name; the others have their defaults.
        recipe: Section of settings of each card.
    """

    parameters: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, dict[str, Any]] = field(default_factory=dict)

    def over(self, other: "RunPlan") -> "RunPlan":
        """Returns a merged plan in which the values of this plan take precedence."""
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
        path: YAML file with `parameters` and a section per card, or the name of a shipped recipe, such as `demo`.

    Returns:
        The plan.

    Raises:
        UserError: If the file does not exist, is not a mapping, or contains an unknown parameter.
    """
    shipped = RECIPES / f"{path}.yaml"
    file = path if path.is_file() else shipped
    if not file.is_file():
        names = sorted(recipe.stem for recipe in RECIPES.glob("*.yaml"))
        raise UserError(
            f"no recipe at {path}; pass a YAML file, or the name of a recipe of this package: {', '.join(names)}"
        )
    return _parse(file.read_text(encoding="utf-8"), file)


def read_card(path: Path) -> RunPlan:
    """Reads the recipe in a model card of Merge & Export.

    Args:
        path: README.md of a merged model.

    Returns:
        The plan that reproduces the adapter.

    Raises:
        UserError: If the file does not exist or contains no recipe.
    """
    if not path.is_file():
        raise UserError(f"no model card at {path}; pass the README.md of a merged model")
    found = re.search(r"^## Repeat$.*?^```yaml\n(.*?)^```$", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    if not found:
        raise UserError(f"{path} contains no recipe: it is not the model card of a model from this pipeline")
    return _parse(found[1], path)


def _parse(text: str, file: Path) -> RunPlan:
    try:
        content = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{file} contains a {type(content).__name__}; expected a mapping of sections")
    sections = {name: section or {} for name, section in content.items() if name != "parameters"}
    parameters = content.get("parameters") or {}
    for name, values in (("parameters", parameters), *sections.items()):
        if not isinstance(values, Mapping):
            raise UserError(f"{name} in {file} is {values!r}; expected a mapping of names to values")
    return RunPlan(
        convert_parameters(parameters, str(file)), {name: dict(section) for name, section in sections.items()}
    )


def read_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """Reads pipeline parameters from the command line.

    Args:
        assignments: Parameters as `name=value`.

    Returns:
        Values by name, with the types of the pipeline's parameters.

    Raises:
        UserError: If an assignment has another form, or its parameter is unknown or has another type.
    """
    values = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise UserError(f"--set {assignment!r} does not have the form name=value")
        values[name] = value
    return convert_parameters(values, "--set")


def convert_parameters(parameters: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Converts parameters to the types of the settings that they set.

    KFP rejects 1 for the number 1.0, and the string '1e-4', which is what YAML reads 1e-4 as.

    Args:
        parameters: Values by name, or strings to parse.
        where: Source of the values, for error messages.

    Returns:
        Values by name.

    Raises:
        UserError: If a parameter is unknown, with the most similar name, or a value has another type.
    """
    values = {}
    for name, value in parameters.items():
        if name not in PARAMETERS:
            raise UserError(
                f"{where}: the pipeline has no parameter {name!r}{nearest(name, PARAMETERS)} ({', '.join(PARAMETERS)})"
            )
        adapter: TypeAdapter[object] = TypeAdapter(parameter_type(name), config=ConfigDict(coerce_numbers_to_str=True))
        try:
            values[name] = adapter.validate_python(value)
        except ValidationError as error:
            raise UserError(f"{where}: {name} = {value!r}: {error.errors()[0]['msg']}") from None
    return values
