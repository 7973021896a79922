"""How the runs of a table differ from the recipe that its published values come from.

It is told under every result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gnpcli.config.loader import flatten
from gnpcli.config.recipe import recipe
from gnpcli.config.schema import RunConfig
from gnpcli.tables.schema import Variant
from gnpcli.tables.spec import Changes, Part, Place, Table


@dataclass(frozen=True)
class RecipeDeviation:
    """One key whose value is another than the recipe's."""

    key: str
    published: object
    ours: object
    places: tuple[Place, ...]
    """The cells where it is so."""


def variant_of(table: Table, configs: Iterable[RunConfig]) -> str | None:
    """Return the variant that all of `configs` were run in.

    It is the last one whose values they have, else the first.
    """
    flat = [flatten(config) for config in configs]
    for name, variant in reversed(table.spec.variants.items()):
        wanted = _flat_values(variant)
        if flat and wanted and all(_has(values, wanted) for values in flat):
            return name
    return table.variant(None)


def _flat_values(variant: Variant) -> dict[str, Any]:
    """Return what a variant sets, by dotted key."""
    return {
        f"{section}.{key}": value
        for section, keys in variant.set.items()
        for key, value in keys.items()
    }


def _has(values: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(values.get(key) == value for key, value in wanted.items())


def deviations(table: Table, configs: Mapping[Place, RunConfig]) -> list[RecipeDeviation]:
    """Compare the configuration of every cell with the published recipe.

    That is the table's, in its published variant.
    """
    published = table.spec.published
    reference = Changes(variant=published.variant if published else None)
    found: dict[str, RecipeDeviation] = {}
    for place, config in configs.items():
        theirs, ours = recipe(table.resolve(*place, 0, reference)), recipe(config)
        for key in sorted(theirs.keys() | ours.keys()):
            new = RecipeDeviation(key, theirs.get(key), ours.get(key), (place,))
            if new.published != new.ours:
                _add(found, new)
    return list(found.values())


def _add(found: dict[str, RecipeDeviation], new: RecipeDeviation) -> None:
    """Add a deviation, to one of the same values where there is one."""
    group = f"{new.key} {new.published!r} {new.ours!r}"
    known = found.get(group)
    found[group] = new if known is None else replace(new, places=known.places + new.places)


def deviation_text(deviation: RecipeDeviation, table: Table, shown: Iterable[Place]) -> str:
    """Return a deviation as a line; `shown` is all cells of the result."""
    theirs, ours = _text(deviation.published), _text(deviation.ours)
    text = f"{deviation.key}: {theirs} in the recipe, {ours} here"
    where = _where(deviation.places, table, set(shown))
    return f"{text} ({', '.join(where)})" if where else text


def _where(places: Sequence[Place], table: Table, shown: set[Place]) -> list[str]:
    """Return labels for some of the cells shown; nothing for all of them.

    Whole columns and whole rows have one label each.
    """
    if set(places) == shown:
        return []
    parts: tuple[tuple[Part, int], ...] = (("columns", 1), ("rows", 0))
    for part, index in parts:
        names = list(dict.fromkeys(place[index] for place in places))
        if set(places) == {place for place in shown if place[index] in names}:
            return [table.label(part, name) for name in names]
    return [table.cell_label(*place) for place in places]


def _text(value: object) -> str:
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
