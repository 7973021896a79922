"""The reference of every key of a configuration, written from the docstrings of the sections."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic.fields import FieldInfo

from gnpcli.config.schema import NAMED, RunConfig
from gnpcli.config.section import ModelSection, Section
from gnpcli.config.strategies import STRATEGIES

HEAD = """\
# Configuration

This page is written by `python -m gnpcli.recipes.reference > docs/configuration.md`.

A configuration is a preset, a file, or the `config.yaml` of a run. `--set section.key=value`
changes a key of it. Time is in epochs, rates are per step, sizes are in examples or pixels.

Values are those of YAML 1.2: `1e5` is a number and `010` is 10, while `yes`, `1:30` and `1_000`
are text. In a file, text that reads as a number stands in quotes. With `--set`, the value of a key
that takes text is text as typed, and `null` is null.
"""

Models = Mapping[type[ModelSection], Sequence[str]]
"""The names of the models that share options, by the class of the options."""


def reference(models: Models) -> str:
    """Return the page in Markdown: every section, its keys, types, ranges and defaults.

    Args:
        models: The models whose options are listed.
    """
    parts = [HEAD]
    for section, info in RunConfig.model_fields.items():
        kind = _declared(info)
        parts += [f"## {section}\n", f"{_plain(kind.__doc__)}\n"]
        parts += _choices(section) if section in NAMED else _table(kind, kind.model_fields)
        if section == "model":
            parts += _models(models)
        if section == "gr":
            parts += _strategies()
        parts.append("")
    return "\n".join(parts)


def _declared(info: FieldInfo) -> type[Section]:
    kind = info.annotation
    assert isinstance(kind, type)
    assert issubclass(kind, Section)
    return kind


def _choices(section: str) -> Iterator[str]:
    """Yield the keys of each choice of a section."""
    yield f"`{section}.name` chooses the other keys."
    for name, kind in NAMED[section].items():
        yield f"\n### {section}.name: {name}\n"
        yield f"{_plain(kind.__doc__)}\n"
        yield from _table(kind, _without_name(kind))


def _models(models: Models) -> Iterator[str]:
    """Yield the options that models share, and which models these are."""
    for kind, names in models.items():
        listed = ", ".join(f"`{name}`" for name in names)
        yield f"\n### {_plain(kind.__doc__).removesuffix('.')}\n"
        yield f"Models: {listed}.\n"
        yield from _table(kind, _without_name(kind))


def _strategies() -> Iterator[str]:
    yield "\n### gr.strategy\n"
    for strategy in STRATEGIES.values():
        yield f"- `{strategy.name}`: {strategy.help}"


def _without_name(kind: type[Section]) -> list[str]:
    return [key for key in kind.model_fields if key != "name"]


def _table(kind: type[Section], keys: Iterable[str]) -> Iterator[str]:
    yield "| key | value | default | meaning |"
    yield "| --- | --- | --- | --- |"
    for key in keys:
        info = kind.model_fields[key]
        cells = (f"`{key}`", _value(info), _default(info), _plain(info.description))
        yield f"| {' | '.join(map(_escaped, cells))} |"


def _escaped(cell: str) -> str:
    return cell.replace("|", r"\|")


def _plain(text: str | None) -> str:
    """Return a docstring in one line of Markdown."""
    return " ".join((text or "").split()).replace("``", "`")


def _value(info: FieldInfo) -> str:
    return _with_limits(_type(info.annotation), info.metadata)


def _type(annotation: Any) -> str:
    """Return the values that an annotation allows, in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _annotated(*arguments)
    if origin is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(arm) for arm in arguments)
    if origin is list:
        return f"list of: {_type(arguments[0])}"
    if annotation is types.NoneType:
        return "null"
    return _WORDS[annotation]


_WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false"}


def _annotated(annotation: Any, *metadata: Any) -> str:
    limits: list[Any] = []
    for item in metadata:
        limits += item.metadata if isinstance(item, FieldInfo) else [item]
    return _with_limits(_type(annotation), limits)


def _with_limits(values: str, metadata: Iterable[Any]) -> str:
    limits = ", ".join(filter(None, map(_limit, metadata)))
    return f"{values} {limits}" if limits else values


_SIGNS = {
    "gt": ">",
    "ge": "≥",
    "lt": "<",
    "le": "≤",
    "min_length": "of length ≥",
    "max_length": "of length ≤",
}


def _limit(item: Any) -> str:
    """Return one limit of a value, such as ``≥ 0``; nothing for what is no limit."""
    for name, sign in _SIGNS.items():
        limit = getattr(item, name, None)
        if limit is not None:
            return f"{sign} {limit}"
    return ""


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else f"`{value}`"
