"""Recipes as YAML files: parameters of the pipeline and sections of the cards."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from llm_finetune.components.run.check_recipe.wiring import PARAMETERS
from llm_finetune.components.shared.errors import UserError, nearest

RECIPES = Path(__file__).parent / "recipes"


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
    return _parsed(file.read_text(encoding="utf-8"), file)


def read_card(path: Path) -> RunPlan:
    """Reads the recipe in a model card of Merge & Export.

    Args:
        path: The card, README.md beside the weights.

    Returns:
        The plan that trains the same adapter again.

    Raises:
        UserError: If there is no such file, or no recipe in it.
    """
    if not path.is_file():
        raise UserError(f"no model card at {path}; it is the README.md beside a merged model's weights")
    found = re.search(r"^## Repeat$.*?^```yaml\n(.*?)^```$", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    if not found:
        raise UserError(f"{path} holds no recipe: it is not the card of a model that this pipeline has made")
    return _parsed(found[1], path)


def _parsed(text: str, file: Path) -> RunPlan:
    try:
        content = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{file} holds {type(content).__name__}, not a mapping of sections")
    sections = {name: section or {} for name, section in content.items() if name != "parameters"}
    parameters = content.get("parameters") or {}
    for holder, values in (("parameters", parameters), *sections.items()):
        if not isinstance(values, Mapping):
            raise UserError(f"{holder} in {file} is {values!r}: a section is a mapping of names to values")
    return RunPlan(typed(parameters, str(file)), {name: dict(section) for name, section in sections.items()})


def read_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """Reads pipeline parameters from the command line.

    Args:
        assignments: Parameters as `name=value`.

    Returns:
        Values by name, of the pipeline's types.

    Raises:
        UserError: If one is not of that form, unknown, or of another type.
    """
    values = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise UserError(f"--set {assignment!r} is not of the form name=value")
        values[name] = value
    return typed(values, "--set")


def typed(parameters: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Gives parameters the types that the pipeline declares; KFP refuses 1 for 1.0 and '1e-4', as YAML reads it.

    Args:
        parameters: Parameters by name: values, or text that stands for them.
        where: Where they were given, for the message.

    Returns:
        Parameters by name.

    Raises:
        UserError: If the pipeline has no such parameter, naming the nearest one, or the value is of another type.
    """
    from llm_finetune.pipelines.finetune import finetune  # imports kfp, which takes a second

    values = {}
    for name, value in parameters.items():
        if name not in PARAMETERS:
            raise UserError(
                f"{where}: the pipeline has no parameter {name!r}{nearest(name, PARAMETERS)} ({', '.join(PARAMETERS)})"
            )
        kind = type(finetune.component_spec.inputs[name].default)
        try:
            values[name] = TypeAdapter(kind, config=ConfigDict(coerce_numbers_to_str=True)).validate_python(value)
        except ValidationError as error:
            raise UserError(f"{where}: {name} = {value!r}: {error.errors()[0]['msg']}") from None
    return values
