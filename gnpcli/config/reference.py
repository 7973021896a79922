"""The reference of every key of a configuration, written from the sections' own docstrings.

``python -m gnpcli.config.reference > docs/configuration.md`` writes the page.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic.fields import FieldInfo

from gnpcli.config.schema import NAMED, RunConfig
from gnpcli.config.section import ModelSection, Section
from gnpcli.config.strategies import STRATEGIES

HEAD = """\
# Configuration

This page is written by `python -m gnpcli.config.reference > docs/configuration.md`.

A configuration is a preset, a file or a run's `config.yaml`, under `--set section.key=value`.
Time is in epochs, rates are per step, sizes are in examples or pixels.
"""


def reference(models: Mapping[str, type[ModelSection]] | None = None) -> str:
    """Return the page in Markdown: every section, its keys, types, ranges and defaults.

    Args:
        models: The options of the models by a heading, such as the family; None leaves them out.
    """
    parts = [HEAD]
    for section, info in RunConfig.model_fields.items():
        parts.append(f"## {section}\n")
        if section == "model":
            parts += _one(ModelSection)
            parts.append("\n`gnp models show NAME` lists the options of a model.")
            parts += _choices("family", models or {})
        elif section in NAMED:
            parts += _choices("name", NAMED[section])
        else:
            parts += _one(_declared(info))
        if section == "gr":
            parts += _strategies()
        parts.append("")
    return "\n".join(parts)


def _declared(info: FieldInfo) -> type[Section]:
    kind = info.annotation
    assert isinstance(kind, type)
    assert issubclass(kind, Section)
    return kind


def _one(kind: type[Section]) -> Iterator[str]:
    """Yield what a section is, and a table of its keys."""
    yield f"{_plain(kind.__doc__)}\n"
    yield "| key | value | default | meaning |"
    yield "| --- | --- | --- | --- |"
    for key, info in kind.model_fields.items():
        cells = (f"`{key}`", _value(info), _default(info), _plain(info.description))
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _choices(chooser: str, kinds: Mapping[str, type[Section]]) -> Iterator[str]:
    for name, kind in kinds.items():
        yield f"\n### {chooser}: {name}\n"
        yield from _one(kind)


def _strategies() -> Iterator[str]:
    yield "\n### Strategies\n"
    for strategy in STRATEGIES.values():
        yield f"- `{strategy.name}`: {strategy.help}"


def _plain(text: str | None) -> str:
    """Return a docstring in one line of Markdown."""
    return " ".join((text or "").split()).replace("``", "`")


def _value(info: FieldInfo) -> str:
    bounds = [text for item in info.metadata if (text := _bound(item))]
    return _with_bounds(_type(info.annotation), bounds)


_SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤", "min_length": "length ≥"}


def _bound(item: Any) -> str:
    """Return one limit of a value, such as ``≥ 0``; nothing for what is no limit."""
    for name, sign in _SIGNS.items():
        limit = getattr(item, name, None)
        if limit is not None:
            return f"{sign} {limit:g}"
    return ""


_WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false"}


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


def _annotated(annotation: Any, *metadata: Any) -> str:
    limits: list[Any] = []
    for item in metadata:
        limits += item.metadata if isinstance(item, FieldInfo) else [item]
    bounds = [text for item in limits if (text := _bound(item))]
    return _with_bounds(_type(annotation), bounds)


def _with_bounds(values: str, bounds: list[str]) -> str:
    return f"{values} {', '.join(bounds)}" if bounds else values


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"`{value}`" if value != "" else ""


if __name__ == "__main__":
    print(reference(), end="")
