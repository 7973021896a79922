"""What every section of a configuration is, and sections whose ``name`` chooses their class."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, ValidatorFunctionWrapHandler
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """A frozen group of keys.

    It refuses unknown keys, and converts no type into another but int to float.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


class NamedSection(Section):
    """A section whose ``name`` chooses its class, and so its other keys."""

    name: str
    """Which of the choices this is."""


class ModelSection(NamedSection):
    """The architecture: its name, and in a subclass the options of its family."""


ModelSections = Callable[[str], type[ModelSection]]
"""The class of the `model` section of each model, by name; raises ConfigError for an unknown one.

`gnpcli.config` knows no model: who validates a configuration hands this in. Every field of the
class but the name has a default, which is the model's own.
"""

Choices = Mapping[str, type[NamedSection]]
"""A registry of section classes by name."""

Chooser = Callable[[Any, ValidatorFunctionWrapHandler, ValidationInfo], Any]
"""What pydantic calls in the place of validating a field by its annotation."""


def chosen_from(choices: Choices) -> Chooser:
    """Return the validator of a field whose class is that of `choices` under the given ``name``.

    Used as ``Annotated[Base, WrapValidator(chosen_from(REGISTRY))]``. The registry is read when a
    value is validated, so that what is added to it later works.
    """

    def choose(value: Any, validate: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        if not isinstance(value, Mapping):
            return validate(value)  # an instance, or the error that it is no section
        if "name" not in value:
            raise PydanticCustomError("name_missing", "no name", {"choices": list(choices)})
        name = str(value["name"])
        if name not in choices:
            raise PydanticCustomError("name_unknown", "unknown name", _about(name, choices))
        return choices[name].model_validate(value, context=info.context)

    return choose


def _about(name: str, choices: Collection[str]) -> dict[str, Any]:
    return {"name": name, "choices": list(choices)}
