"""Layers of YAML and overrides, merged into a `RunConfig`."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from gnpcli.config.checks import check_together, complete
from gnpcli.config.messages import Places, explain, located
from gnpcli.config.schedules import DEFAULT_SCHEDULE
from gnpcli.config.schema import NAMED, RunConfig
from gnpcli.config.section import MODEL_SECTION, ModelSections, NamedSection, Section
from gnpcli.errors import ConfigError

Tree = dict[str, Any]


class _Loader(yaml.SafeLoader):
    """Reads the scalars of YAML 1.2.

    ``1e-3`` is a number, which PyYAML reads as text. ``on``, ``off``, ``yes`` and ``no`` are text.
    """


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if not tag.endswith((":float", ":bool", ":timestamp"))
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_FINITE = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$"
_INFINITE = r"[-+]?\.(inf|Inf|INF)$"
_NOT_A_NUMBER = r"\.(nan|NaN|NAN)$"
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(f"{_FINITE}|{_INFINITE}|{_NOT_A_NUMBER}"),
    list("-+.0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


@dataclass(frozen=True)
class Layer:
    """One source of values."""

    values: Tree
    """Nested by section."""
    where: Places = field(default_factory=dict)
    """Where the keys were written."""


def read_yaml(path: Path) -> Layer:
    """Read a mapping from a YAML file, with the line of every key.

    Raises:
        ConfigError: The file cannot be read, is not YAML, is not a mapping, or has a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read {path}: {getattr(error, 'strerror', None) or error}"
        ) from error
    where: dict[str, str] = {}
    try:
        node = yaml.compose(text, Loader=_Loader)
        if node is None:
            return Layer({})
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{path}: expected 'key: value' lines at the top level")
        _note_lines(node, "", str(path), where)
        values = _construct(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: not a configuration: it is nested too deeply") from error
    return Layer(values, where)


def _construct(text: str) -> Any:
    """Return the values of a YAML text.

    Raises:
        yaml.YAMLError: It is not YAML, or a scalar is not of the type of its tag.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (AttributeError, KeyError, ValueError) as error:  # from the constructor of a scalar
        raise yaml.YAMLError(
            f"a value is not of the type that it is written as: {error}"
        ) from error


def _note_lines(node: yaml.MappingNode, prefix: str, path: str, where: dict[str, str]) -> None:
    for key_node, value_node in node.value:
        key, here = f"{prefix}{key_node.value}", f"{path}:{key_node.start_mark.line + 1}"
        if key in where:
            raise ConfigError(f"{here}: '{key}' is given twice (first at {where[key]})")
        where[key] = here
        if isinstance(value_node, yaml.MappingNode):
            _note_lines(value_node, f"{key}.", path, where)


def parse_overrides(
    assignments: Sequence[str], flags: Mapping[str, tuple[str, Any]] | None = None
) -> list[Layer]:
    """Turn flags and assignments into layers, the lowest first: assignments win over flags.

    The values of assignments are read as YAML. So numbers, ``true``, ``null`` and ``[0.3, 0.6]``
    mean what they mean in a preset.

    Args:
        assignments: Texts ``key=value``.
        flags: ``{key: (flag, value)}``; a value of None was not given.

    Raises:
        ConfigError: An assignment without ``=`` or key, or a value that is not YAML.
    """
    layers = [
        Layer(nest(key, value), _sources(key, flag))
        for key, (flag, value) in (flags or {}).items()
        if value is not None
    ]
    for text in assignments:
        key, equals, raw = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise ConfigError(
                f"--set {text}: expected key=value, for example --set optimizer.lr=0.01"
            )
        try:
            value = _construct(raw)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {text}: the value is not valid YAML") from error
        layers.append(Layer(nest(key, value), _sources(key, "--set")))
    return layers


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
        if isinstance(value, dict) and isinstance(below.get(key), dict):
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
    schedule = values.get("schedule", {})
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
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _name_first(keys: Tree) -> Tree:
    """Return the keys of a section with the name, which chooses the others, before them."""
    return dict(sorted(keys.items(), key=lambda item: item[0] != "name"))


def flatten(config: RunConfig) -> dict[str, Any]:
    """Return ``{"section.key": value}`` for every key of `config`."""
    tree = config.model_dump(mode="json")
    return {
        f"{section}.{key}": value for section, keys in tree.items() for key, value in keys.items()
    }


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """Return one ``key: old -> new`` line for each key whose values differ."""
    before, after = flatten(old), flatten(new)
    return [
        f"{key}: {before.get(key, '-')} -> {after.get(key, '-')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
