"""What every section of a configuration is, and sections whose ``name`` chooses their class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    JsonValue,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from gnpcli.config.paths import is_usable
from gnpcli.errors import ConfigError
from gnpcli.terminal.words import readable

EMPTY = BeforeValidator(lambda keys: {} if keys is None else keys)
"""Reads ``section:`` with nothing below it as a section without keys."""


class Section(BaseModel):
    """A frozen group of keys.

    It refuses unknown keys. It converts int to float, and no other type. Nothing at all is a
    section without keys.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    @model_validator(mode="before")
    @classmethod
    def _empty(cls, values: Any) -> Any:
        return {} if values is None else values

    @field_validator("*", mode="before")
    @classmethod
    def _usable(cls, value: Any) -> Any:
        if isinstance(value, str) and not is_usable(value):
            raise PydanticCustomError("unusable_text", "unusable")
        return value

    @classmethod
    def key_names(cls) -> tuple[str, ...]:
        """Return the names of the keys."""
        return tuple(cls.model_fields)

    def replaced(self, changes: Mapping[str, Any]) -> Self:
        """Return the section with the values of `changes`, which are validated.

        Raises:
            ConfigError: A value that is wrong, with its key in this section.
        """
        try:
            return type(self).model_validate({**dict(self), **changes})
        except ValidationError as error:
            problem = error.errors()[0]
            key = ".".join(str(part) for part in problem["loc"])
            raise ConfigError(f"{key}: {problem['msg']}", key) from None


class NamedSection(Section):
    """A section whose ``name`` chooses its class, and so its other keys."""

    name: str
    """Which of the choices this is."""


class ModelSection(NamedSection):
    """The architecture: its name, and the options of its family.

    An option that is null counts as not given. It takes the model's own default, and a model may
    lack it.
    """

    name: str
    """Registered name, for example ``vit-s`` or ``wrn-28-10``; ``gnp models list`` shows them."""

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {key: value for key, value in values.items() if value is not None}


class UnloadedModel(ModelSection):
    """The section of a model of a user's own whose code has not run: its options as written.

    It can be shown and compared. A model cannot be built of it.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]


ModelSections = Callable[[str], type[ModelSection]]
"""``model_section(name)``: the class of the `model` section for that model.

`gnpcli.config` knows no model: the caller that validates a configuration passes this. Every field
of the class but the name has a default, which is the model's own. For a name that no model has it
raises ConfigError with the key ``model.name``.
"""

MODEL_SECTION = "model_section"
"""Where the validation context has the `ModelSections`."""


def chosen_model(value: Any, validate: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    """Validate a `model` section by the class that the context gives for its name.

    Used as ``Annotated[ModelSection, WrapValidator(chosen_model)]``. Without such a context the
    section is validated by its annotation.
    """
    find: ModelSections | None = (info.context or {}).get(MODEL_SECTION)
    if find is None or not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        return validate(value)
    return find(value["name"]).model_validate(value, context=info.context)


Choices = Mapping[str, type[NamedSection]]
"""A registry of section classes by name."""

Chooser = Callable[[Any, ValidatorFunctionWrapHandler, ValidationInfo], Any]
"""What pydantic calls in the place of validating a field by its annotation."""


def chosen_from(choices: Choices) -> Chooser:
    """Return the validator of a field whose class is that of `choices` under the given ``name``.

    Used as ``Annotated[Base, WrapValidator(chosen_from(REGISTRY))]``. The registry is read when a
    value is validated, so that later additions work.
    """

    def choose(value: Any, validate: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            return validate(value)  # an instance, or the error that it is no section
        if "name" not in value:
            raise PydanticCustomError("name_missing", "no name", {"choices": list(choices)})
        name = str(value["name"])
        if name not in choices:
            about = {"name": readable(name), "choices": list(choices)}
            raise PydanticCustomError("name_unknown", "unknown name", about)
        return choices[name].model_validate(value, context=info.context)

    return choose
