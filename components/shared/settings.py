"""Settings of a card: typed, checked, and refused with the nearest right name."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llm_finetune.components.shared.errors import UserError, nearest

Model = TypeVar("Model", bound=BaseModel)


class CardSettings(BaseModel):
    """Base of every card's `Settings`, the only place where a setting is declared: type, default, limits, description.

    The signature of the card's `component.py` is generated from it. Numbers that travelled through JSON come back as
    floats, so `3.0` is taken as the integer 3.

    Attributes:
        renamed: Old name to new name, of settings whose old name is still accepted, with a warning.
    """

    renamed: ClassVar[Mapping[str, str]] = {}
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Self:
        """Builds the settings from a card's arguments.

        Args:
            arguments: The card's `locals()`: its parameters by name, among them `settings`, the card's section of the
                recipe, which takes precedence. Artifacts and other names are passed over.

        Returns:
            The checked settings.

        Raises:
            UserError: If a value is impossible or a name in `settings` is unknown.
        """
        own = {name: value for name, value in arguments.items() if name in cls.model_fields}
        return checked(cls, {**own, **with_new_names(cls, arguments.get("settings") or {})})


class FieldSettings(CardSettings):
    """The settings that say where a row's text is; several cards share them.

    Attributes:
        instruction_key: Column with the instruction; empty for plain text.
        input_key: Column with the input; empty for data without one.
        output_key: Column with the answer.
        chat_key: Column with a list of messages (`role`, `content`); when set, the three others are not looked at.
    """

    instruction_key: str = Field(
        default="instruction",
        description="Column with the instruction; empty, with an empty input_key, for plain text in output_key.",
    )
    input_key: str = Field(default="input", description="Column with the input; empty for data without one.")
    output_key: str = Field(default="output", min_length=1, description="Column with the answer.")
    chat_key: str = Field(
        default="",
        description="Column with a list of messages (role, content), for data that is conversations; the three "
        "other keys are then not looked at.",
    )

    @property
    def keys(self) -> list[str]:
        """The columns that hold the text."""
        if self.chat_key:
            return [self.chat_key]
        return [key for key in (self.instruction_key, self.input_key, self.output_key) if key]


def with_new_names(settings: type[CardSettings], values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Replaces old names of renamed settings, and prints a warning for each.

    Args:
        settings: The card's settings.
        values: Values by old or new name.
        where: What the values are, for the message, such as `recipe.evaluate`.

    Returns:
        Values by new name.

    Raises:
        UserError: If a setting is given by both names.
    """
    prefix = f"{where}." if where else ""
    for old, new in settings.renamed.items():
        if old in values and new in values:
            raise UserError(f"{prefix}{old} is the old name of {prefix}{new}: give {new} alone")
        if old in values:
            print(f"warning: {prefix}{old} is now called {new}; the next version no longer accepts {old}", flush=True)
    return {settings.renamed.get(name, name): value for name, value in values.items()}


def listed(text: str) -> list[str]:
    """Returns the names in a list separated by commas, each once."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def checked(model: type[Model], values: Mapping[str, Any], where: str = "") -> Model:
    """Validates values against a pydantic model and explains every mistake in one message.

    Args:
        model: The model class.
        values: Values by name.
        where: What the values are, for the message, such as `recipe`.

    Returns:
        The validated model.

    Raises:
        UserError: Naming each wrong key with its path, its value and, for an unknown key, the nearest right one.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        lines = [_explain(model, mistake, where) for mistake in error.errors()]
        raise UserError("; ".join(lines)) from None


def _explain(model: type[BaseModel], mistake: Any, where: str) -> str:
    path = [str(part) for part in mistake["loc"]]
    name = ".".join(([where] if where else []) + path)
    if mistake["type"] == "extra_forbidden":
        owner = model
        for part in path[:-1]:
            field = owner.model_fields.get(part)
            if field is None and part.isdigit():
                continue  # the place in a list of models
            inner = _model_of(field.annotation) if field else None
            if inner is None:
                break
            owner = inner
        known = sorted(owner.model_fields)
        return f"unknown setting {name!r}{nearest(path[-1], known)} (known here: {', '.join(known)})"
    return f"{name} = {mistake['input']!r}: {mistake['msg'].removeprefix('Value error, ')}"


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """Returns the model that a field holds, or a list of which it holds."""
    kinds = (annotation, *get_args(annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
