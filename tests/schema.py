"""Every key of a configuration, for tests that go over all of them."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gnpcli.config.schema import NAMED, RunConfig
from gnpcli.config.section import Section
from gnpcli.recipes.reference import models_by_options

LEAST: dict[str, Any] = {
    "model": {"name": "vit-nano"},
    "data": {"name": "digits"},
    "optimizer": {"name": "adamw"},
    "schedule": {"name": "cosine"},
    "train": {"epochs": 3},
}
"""A configuration that leaves out what it may."""


@dataclass(frozen=True)
class Key:
    """A key of one of the classes that a section may have."""

    section: str
    choice: str | None
    """The name that chooses the class; None where the section has one class."""
    name: str
    types: frozenset[type]
    """What it takes, the items of lists among them."""
    is_list: bool

    def __str__(self) -> str:
        choice = f"[{self.choice}]" if self.choice else ""
        return f"{self.section}{choice}.{self.name}"

    def values(self, value: Any) -> dict[str, Any]:
        """Return the least configuration with a value of this key."""
        keys = {**LEAST.get(self.section, {}), self.name: value}
        if self.choice is not None and self.name != "name":
            keys["name"] = self.choice
        return {**LEAST, self.section: keys}


def every_key() -> Iterator[Key]:
    """Yield the keys of all classes of all sections."""
    for section, choice, kind in _classes():
        for name, info in kind.model_fields.items():
            types = frozenset(_types(info.annotation))
            is_list = "list" in str(info.annotation)
            yield Key(section, choice, name, types, is_list)


def _classes() -> Iterator[tuple[str, str | None, type[Section]]]:
    for section, info in RunConfig.model_fields.items():
        if section == "model":
            for kind, models in models_by_options().items():
                yield section, models[0], kind
        elif section in NAMED:
            for name, choice in NAMED[section].items():
                yield section, name, choice
        else:
            assert isinstance(info.annotation, type)
            yield section, None, info.annotation


def _types(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type) and not typing.get_args(annotation):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _types(argument)
