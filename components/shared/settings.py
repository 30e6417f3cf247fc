"""Base classes of the cards' settings, and their validation with readable errors."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from llm_finetune.components.shared.errors import UserError, nearest

Model = TypeVar("Model", bound=BaseModel)


class CardSettings(BaseModel):
    """Base class of every card's `Settings`: the only place that declares type, default, limits and description.

    The signature of the card's `component.py` is generated from it. JSON turns integers into floats on the way to a
    card, so `3.0` is accepted as the integer 3.

    Attributes:
        renamed: Old name to new name of renamed settings; the old name is accepted with a warning.
    """

    renamed: ClassVar[Mapping[str, str]] = {}
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Self:
        """Builds the settings from a card's arguments.

        Args:
            arguments: The card's `locals()`: parameters by name. `settings`, the card's section of the recipe, takes
                precedence. Artifacts and other names are ignored.

        Returns:
            The validated settings.

        Raises:
            UserError: If a value is invalid or a name in `settings` is unknown.
        """
        own = {name: value for name, value in arguments.items() if name in cls.model_fields}
        return validate(cls, {**own, **replace_old_names(cls, arguments.get("settings") or {})})


class FieldSettings(CardSettings):
    """Settings for the columns of a dataset; several cards share them."""

    instruction_key: str = Field(
        default="instruction",
        description="Column with the instruction; empty, with an empty input_key, for plain text in output_key.",
    )
    input_key: str = Field(default="input", description="Column with the input; empty for datasets without one.")
    output_key: str = Field(default="output", min_length=1, description="Column with the answer.")
    chat_key: str = Field(
        default="",
        description="Column with a list of messages (role, content), for datasets of conversations; the three other "
        "keys are then ignored.",
    )

    @property
    def keys(self) -> list[str]:
        """Names of the columns with the text."""
        if self.chat_key:
            return [self.chat_key]
        return [key for key in (self.instruction_key, self.input_key, self.output_key) if key]


def replace_old_names(settings: type[CardSettings], values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Replaces old names of renamed settings, and prints a warning for each.

    Args:
        settings: Settings class of the card.
        values: Values by old or new name.
        where: Prefix of the names in messages, such as `recipe.evaluate`.

    Returns:
        Values by new name.

    Raises:
        UserError: If both names of a setting are given.
    """
    prefix = f"{where}." if where else ""
    for old, new in settings.renamed.items():
        if old in values and new in values:
            raise UserError(f"{prefix}{old} is the old name of {prefix}{new}: set only {new}")
        if old in values:
            print(f"warning: {prefix}{old} was renamed to {new}; the next version no longer accepts {old}", flush=True)
    return {settings.renamed.get(name, name): value for name, value in values.items()}


def split_names(text: str) -> list[str]:
    """Splits a comma-separated list of names; duplicates are removed."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def validate(model: type[Model], values: Mapping[str, Any], where: str = "") -> Model:
    """Validates values against a pydantic model and reports all errors in one message.

    Args:
        model: The model class.
        values: Values by name.
        where: Prefix of the names in messages, such as `recipe.evaluate`.

    Returns:
        The validated model.

    Raises:
        UserError: With path and value of each invalid setting, and the most similar name for an unknown one.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        lines = [_explain(model, details, where) for details in error.errors()]
        raise UserError("; ".join(lines)) from None


def _explain(model: type[BaseModel], details: ErrorDetails, where: str) -> str:
    path = [str(part) for part in details["loc"]]
    name = ".".join(([where] if where else []) + path)
    if details["type"] == "extra_forbidden":
        owner = model
        for part in path[:-1]:
            field = owner.model_fields.get(part)
            if field is None and part.isdigit():
                continue  # index in a list of models
            inner = _model_of(field.annotation) if field else None
            if inner is None:
                break
            owner = inner
        known = sorted(owner.model_fields)
        return f"unknown setting {name!r}{nearest(path[-1], known)} (known settings: {', '.join(known)})"
    return f"{name} = {details['input']!r}: {details['msg'].removeprefix('Value error, ')}"


def _model_of(annotation: object) -> type[BaseModel] | None:
    """Returns the model class in the annotation of a field: `Model`, `list[Model]` or `Model | None`."""
    kinds = (annotation, *get_args(annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
