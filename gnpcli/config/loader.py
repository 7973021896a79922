"""Layers of YAML and overrides, merged into a `RunConfig`."""

from __future__ import annotations

import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gnpcli.config import yaml12
from gnpcli.config.checks import check_together, complete
from gnpcli.config.messages import Places, explain, located
from gnpcli.config.paths import is_usable
from gnpcli.config.schedules import DEFAULT_SCHEDULE
from gnpcli.config.schema import NAMED, RunConfig
from gnpcli.config.section import (
    MODEL_SECTION,
    ModelSections,
    NamedSection,
    Section,
)
from gnpcli.errors import ConfigError
from gnpcli.git_lfs import pointer_advice

Tree = dict[str, Any]


@dataclass(frozen=True)
class Layer:
    """One source of values."""

    values: Tree
    """Nested by section."""
    where: Places = field(default_factory=dict)
    """Where the keys were written."""
    is_typed: bool = False
    """Whether a person gave the values, in options or in a call; a file may be anybody's."""


def read_yaml(path: Path) -> Layer:
    """Read a mapping from a YAML file, with the line of every key.

    An empty section is a section without keys.

    Raises:
        ConfigError: The file cannot be read, is not YAML, is not a mapping, or has a key twice.
    """
    try:
        document = yaml12.read_file(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot read {path}: {reason}") from error
    except yaml12.NotYaml as error:
        place = f"{path}:{error.line}" if error.line else str(path)
        raise ConfigError(f"{place}: {error}") from error
    if document.value is None:
        return Layer({})
    if not isinstance(document.value, dict):
        unknown = f"{path}: expected 'key: value' lines at the top level"
        raise ConfigError(pointer_advice(path) or unknown)
    where = {key: f"{path}:{line}" for key, line in document.lines.items()}
    for key, place in where.items():
        if not is_usable(key):
            raise ConfigError(f"{place}: the key {key!a} holds half a character or a NUL")
    return Layer(document.value, where)


def parse_overrides(
    assignments: Sequence[str], flags: Mapping[str, tuple[str, Any]] | None = None
) -> list[Layer]:
    """Turn flags and assignments into layers, the lowest first: assignments win over flags.

    The values of assignments are read as YAML. So numbers, ``true``, ``null`` and ``[0.3, 0.6]``
    mean what they mean in a preset. The value of a key that takes text is text as typed, unless it
    is ``null`` or stands in quotes: ``data.dir=010`` is no number.

    Args:
        assignments: Texts ``key=value``.
        flags: ``{key: (flag, value)}``; a value of None was not given.

    Raises:
        ConfigError: An assignment without ``=`` or key, or a value that is not YAML.
    """
    return [
        Layer(nest(key, value), _sources(key, source), is_typed=True)
        for key, value, source in _overrides(assignments, flags or {})
    ]


def parse_changes(
    assignments: Sequence[str], flags: Mapping[str, tuple[str, Any]] | None = None
) -> Tree:
    """Return ``{"section.key": value}`` of flags and assignments; as `parse_overrides`."""
    return {key: value for key, value, _ in _overrides(assignments, flags or {})}


def _overrides(
    assignments: Sequence[str], flags: Mapping[str, tuple[str, Any]]
) -> Iterator[tuple[str, Any, str]]:
    """Yield key, value and source of flags, and then of assignments."""
    for key, (flag, value) in flags.items():
        if value is not None:
            yield key, value, flag
    for text in assignments:
        key, equals, raw = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise ConfigError(
                f"--set {text}: expected key=value, for example --set optimizer.lr=0.01"
            )
        yield key, _typed(text, key, raw), "--set"


def _typed(assignment: str, key: str, raw: str) -> Any:
    """Return the value of an assignment."""
    text = raw.strip()
    is_text = _takes_text(key) and not text.startswith(("'", '"'))
    if is_text and text not in yaml12.NULLS:
        return text
    try:
        return yaml12.read(text).value
    except yaml12.NotYaml as error:
        shown = assignment if len(assignment) < 80 else f"{assignment[:80]}..."
        raise ConfigError(f"--set {shown}: {error}") from error


def _takes_text(key: str) -> bool:
    """Return whether the values of a key are any text."""
    section, _, name = key.partition(".")
    if section not in RunConfig.model_fields:
        return False
    fields = [kind.model_fields.get(name) for kind in _classes(section, None, None)]
    return any(info is not None and info.annotation in (str, str | None) for info in fields)


def nest(key: str, value: Any) -> Tree:
    """Return ``{"a": {"b": value}}`` for the key ``a.b``."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return typing.cast(Tree, value)


def _sources(key: str, source: str) -> dict[str, str]:
    parts = key.split(".")
    return {".".join(parts[: end + 1]): source for end in range(len(parts))}


def merge(layers: Sequence[Layer], model_section: ModelSections | None = None) -> Layer:
    """Lay later values over earlier ones, section by section.

    The ``name`` of a section may choose its keys. Where a later layer changes such a name, the
    earlier values of keys that the new choice lacks are dropped. For example, ``--set
    optimizer.name=sgd`` over an AdamW preset keeps the learning rate and drops ``b1``.

    Args:
        layers: The lowest first.
        model_section: The class of the `model` section by the model's name. Without it a `model`
            section keeps all earlier values.
    """
    values: Tree = {}
    where: dict[str, str] = {}
    for layer in layers:
        for section in ("model", *NAMED):
            old, new = values.get(section), layer.values.get(section)
            if isinstance(old, dict) and isinstance(new, dict) and _is_renamed(old, new):
                values[section] = _shared(old, _choice(section, new["name"], model_section))
        _lay(values, layer.values)
        where.update(layer.where)
    return Layer(values, where)


def _is_renamed(old: Tree, new: Tree) -> bool:
    return "name" in new and new["name"] != old.get("name")


def _shared(old: Tree, choice: type[NamedSection] | None) -> Tree:
    if choice is None:
        return old  # validating says what is wrong with the name
    return {key: value for key, value in old.items() if key in choice.key_names()}


def _choice(
    section: str, name: Any, model_section: ModelSections | None
) -> type[NamedSection] | None:
    """Return the class of a section of that name; None where there is no such name."""
    if section in NAMED:
        return NAMED[section].get(str(name))
    if model_section is None or not isinstance(name, str):
        return None
    try:
        return model_section(name)
    except ConfigError:
        return None


def _lay(below: Tree, above: Tree) -> None:
    for key, value in above.items():
        is_section = isinstance(below.get(key), dict)
        if is_section and value is None:
            continue  # an empty section changes nothing
        if is_section and isinstance(value, dict):
            _lay(below[key], value)
        else:
            below[key] = _copy(value)


def _copy(value: Any) -> Any:
    return {key: _copy(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def validate(layer: Layer, model_section: ModelSections | None = None) -> RunConfig:
    """Check each key, then what the keys say together, and fill what follows.

    Args:
        layer: The merged values.
        model_section: The class of the `model` section by the model's name. Without it the section
            is a `ModelSection`, which has a name alone.

    Raises:
        ConfigError: With the key, its place, what is allowed, and a count of the other problems.
    """
    values = _with_default_schedule(layer.values)
    try:
        config = RunConfig.model_validate(values, context={MODEL_SECTION: model_section})
        check_together(config)
    except ValidationError as error:
        keys = list(known_keys(layer.values, model_section))
        raise explain(error, layer.where, keys) from None
    except ConfigError as error:
        raise located(error, layer.where) from None
    return complete(config)


def _with_default_schedule(values: Tree) -> Tree:
    schedule = values.get("schedule") or {}
    if not isinstance(schedule, dict):
        return values
    return {**values, "schedule": {"name": DEFAULT_SCHEDULE, **schedule}}


def known_keys(values: Tree, model_section: ModelSections | None = None) -> Iterator[str]:
    """Yield every dotted key that a configuration may have.

    A section that is chosen by name has the keys of the choice in `values`. Where `values` names
    none, it has those of every choice.
    """
    for section in RunConfig.model_fields:
        given = values.get(section)
        name = given.get("name") if isinstance(given, dict) else None
        for kind in _classes(section, name, model_section):
            for key in kind.key_names():
                yield f"{section}.{key}"


def _classes(section: str, name: Any, model_section: ModelSections | None) -> list[type[Section]]:
    """Return the classes that a section of that name may have."""
    choice = _choice(section, name, model_section) if section in ("model", *NAMED) else None
    if choice is not None:
        return [choice]
    if section in NAMED:
        return list(NAMED[section].values())
    declared = RunConfig.model_fields[section].annotation
    assert isinstance(declared, type)
    assert issubclass(declared, Section)
    return [declared]


def dump(config: RunConfig) -> str:
    """Return `config` as YAML with every key.

    `read_yaml` and `validate` give the same configuration back.
    """
    sections = config.model_dump(mode="json")
    tree = {section: _name_first(keys) for section, keys in sections.items()}
    return yaml12.write(tree)


def _name_first(keys: Tree) -> Tree:
    """Return the keys of a section with the name, which chooses the others, before them."""
    return dict(sorted(keys.items(), key=lambda item: item[0] != "name"))


def flatten(config: RunConfig) -> dict[str, Any]:
    """Return ``{"section.key": value}`` for every key of `config`."""
    tree = config.model_dump(mode="json")
    return {
        f"{section}.{key}": value for section, keys in tree.items() for key, value in keys.items()
    }


def differences(old: RunConfig, new: RunConfig, besides: Collection[str] = ()) -> list[str]:
    """Return one ``key: old -> new`` line for each key, none of `besides`, whose values differ."""
    before, after = flatten(old), flatten(new)
    return [
        f"{key}: {before.get(key, '-')} -> {after.get(key, '-')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key not in besides
    ]
