"""Layers of YAML and overrides, merged into a `RunConfig`; messages name the key, and file and line
where known.
"""

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
from gnpcli.config.optimizers import OPTIMIZERS
from gnpcli.config.schedules import DEFAULT_SCHEDULE, SCHEDULES
from gnpcli.config.schema import RunConfig
from gnpcli.config.section import (
    MODEL_SECTION,
    Choices,
    ModelSections,
    NamedSection,
    Section,
)
from gnpcli.errors import ConfigError, suggest

Tree = dict[str, Any]


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: ``1e-3`` is a number (PyYAML reads it as text) and
    ``on``/``off``/``yes``/``no`` are text.
    """


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if not tag.endswith((":float", ":bool", ":timestamp"))
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
    ),
    list("-+.0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


@dataclass(frozen=True)
class Layer:
    """One source of values: nested `values`, and for each dotted key where it was written
    (``file:line``).
    """

    values: Tree
    where: Mapping[str, str] = field(default_factory=dict)


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
        values = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: not a configuration: it is nested too deeply") from error
    return Layer(values, where)


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
    """Turn ``key=value`` assignments, and flags given as ``{key: (flag, value)}``, into layers,
    later ones winning.

    Values are read as YAML, so numbers, ``true``, ``null`` and ``[0.3, 0.6]`` mean what they mean
    in a preset.

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
            value = yaml.load(raw, Loader=_Loader)
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

    The ``name`` of a section may choose its keys. Where a later layer changes such a name, those
    earlier values stay that the new choice has too, and the others go: ``--set
    optimizer.name=sgd`` over an AdamW preset keeps the learning rate and drops ``b1``.

    Args:
        layers: The lowest first.
        model_section: The class of the `model` section by the model's name; without it a `model`
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
    """Check types, ranges and names of keys, then what they say together, and fill what follows.

    Args:
        layer: The merged values.
        model_section: The class of the `model` section by the model's name; without it any option
            of any model may stand there.

    Raises:
        ConfigError: With the key, where it was written, what is allowed, and how many other
            problems there are.
    """
    values = _with_default_schedule(layer.values)
    try:
        config = RunConfig.model_validate(values, context={MODEL_SECTION: model_section})
        check_together(config)
    except ValidationError as error:
        raise explain(error, layer, list(known_keys(layer.values, model_section))) from None
    except ConfigError as error:
        raise located(error, layer) from None
    return complete(config)


def _with_default_schedule(values: Tree) -> Tree:
    schedule = values.get("schedule", {})
    if not isinstance(schedule, dict):
        return values
    return {**values, "schedule": {"name": DEFAULT_SCHEDULE, **schedule}}


def located(error: ConfigError, layer: Layer) -> ConfigError:
    """Return `error` with the place where its key was written put in front of the message, if that
    is known.
    """
    source = _source(error.key, layer) if error.key else ""
    return ConfigError(f"{source}{error}", error.key)


def _source(key: str, layer: Layer) -> str:
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        if source := layer.where.get(".".join(parts[:end])):
            return f"{source}: "
    return ""


def explain(error: ValidationError, layer: Layer, keys: Sequence[str]) -> ConfigError:
    """Return what pydantic found in the values of `layer` as one line: the first problem, with its
    place, and a count.

    A key that is unknown goes before one that is missing: written wrongly, it is often the same.

    Args:
        error: From validating `layer.values`.
        layer: The values, and where they were written.
        keys: Every dotted key that may stand there.
    """
    found = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    problems = [_describe(problem, layer, keys) for problem in found]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return ConfigError(f"{problems[0]}{more}")


def _describe(problem: Any, layer: Layer, keys: Sequence[str]) -> str:
    loc = [str(part) for part in problem["loc"]]
    key, given, context = ".".join(loc), problem["input"], problem.get("ctx", {})
    source = _source(key, layer)
    match problem["type"]:
        case "extra_forbidden":
            # A key of another kind may be the closest in letters and still be no slip of the pen.
            belongs = any(loc[-1] in kind for kind in _kinds().get(loc[0], {}).values())
            near = "" if belongs else suggest(key, keys) or _suggest_last(loc[-1], keys)
            parent = key.rpartition(".")[0]
            section = [
                k.removeprefix(f"{parent}.") for k in keys if parent and k.startswith(f"{parent}.")
            ]
            listing = f"; {parent} has {', '.join(section)}" if section and not near else ""
            return f"{source}unknown key '{key}'{near}{listing}"
        case "missing":
            return f"{source}missing key '{key}'"
        case "name_missing":
            return f"{source}missing key '{key}.name' (one of {', '.join(context['choices'])})"
        case "name_unknown":
            name, choices = context["name"], list(context["choices"])
            where = _source(f"{key}.name", layer)
            listing = f"(one of {', '.join(choices)})"
            return f"{where}unknown {key} '{name}'{suggest(name, choices)} {listing}"
        case "literal_error":
            choices = [choice.strip("' ") for choice in re.split(r",| or ", context["expected"])]
            return f"{source}{key}: '{given}' is not one of {', '.join(choices)}{suggest(str(given), choices)}"
        case "unknown_choice":
            choices = list(context["choices"])
            return f"{source}{key}: '{given}' is not one of {', '.join(choices)}{suggest(str(given), choices)}"
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            sign, bound = next(iter((_SIGNS[name], value) for name, value in context.items()))
            return f"{source}{key}: {given} is out of range (must be {sign} {bound:g})"
        case "finite_number":
            return f"{source}{key}: {given} is not a finite number"
        case _:
            wanted = _WANTED.get(problem["type"], problem["msg"])
            return f"{source}{key}: expected {wanted}, got {given!r}"


_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
_WANTED = {
    "int_type": "a whole number", "int_from_float": "a whole number", "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text", "list_type": "a list", "model_type": "a section of keys", "dict_type": "a section of keys",
    "model_attributes_type": "a section of keys",
}  # fmt: skip


def _suggest_last(word: str, keys: Sequence[str]) -> str:
    """Suggest by the last part alone: ``lr`` or ``optimzer.lr`` are close to ``optimizer.lr``."""
    for key in keys:
        if key.rpartition(".")[2] == word:
            return f" - did you mean '{key}'?"
    return ""


NAMED: Mapping[str, Choices] = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES}
"""Sections whose ``name`` chooses their class from a registry."""


def _kinds() -> dict[str, dict[str, frozenset[str]]]:
    """Return, for the sections of `NAMED`, the keys of each choice."""
    return {
        section: {name: frozenset(kind.key_names()) for name, kind in choices.items()}
        for section, choices in NAMED.items()
    }


def known_keys(values: Tree, model_section: ModelSections | None = None) -> Iterator[str]:
    """Yield every dotted key that a configuration may have.

    Of a section that is chosen by name, those are the keys of the choice in `values`; of all
    choices where it names none.
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
    """Return `config` as YAML with every key; `read_yaml` and `validate` give the same config back."""
    tree = {
        section: dict(
            sorted(keys.items(), key=lambda item: item[0] != "name")
        )  # the name, which chooses the rest, first
        for section, keys in config.model_dump(mode="json").items()
    }
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


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
