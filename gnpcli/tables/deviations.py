"""How the runs of a table differ from the recipe that its published values come from.

It is told under every result.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gnpcli.config import RunConfig
from gnpcli.config.loader import flatten
from gnpcli.config.recipe import DATA_KEYS, recipe
from gnpcli.errors import ConfigError
from gnpcli.tables.schema import Variant
from gnpcli.tables.spec import Changes, Table
from gnpcli.terminal.words import listing

if TYPE_CHECKING:
    from gnpcli.data.listing import Listing

Place = tuple[str, str]
"""Row and column."""

_COMPARABLE = (*DATA_KEYS, "train.epochs")
"""Keys that the columns of a row must agree on, unless the table itself has them differ."""


@dataclass(frozen=True)
class RecipeDeviation:
    """One key whose value is another than the recipe's."""

    key: str
    published: Any
    ours: Any
    places: tuple[Place, ...]
    """The cells where it is so."""


def check_alike(table: Table, place: Place, configs: Mapping[int, RunConfig]) -> None:
    """Refuse to average runs of one cell that differ in more than the seed.

    Args:
        table: Its name is in the message.
        place: The cell.
        configs: By seed.

    Raises:
        ConfigError: Naming the cell, both seeds and the keys.
    """
    recipes = {seed: recipe(config) for seed, config in configs.items()}
    for seed, other in recipes.items():
        first_seed = next(iter(recipes))
        first = recipes[first_seed]
        keys = [key for key in first if first[key] != other.get(key)]
        if keys:
            told = "; ".join(f"{key}: {first[key]} and {other.get(key)}" for key in keys)
            raise ConfigError(
                f"table {table.name}, {' '.join(place)}: seeds {first_seed} and {seed} differ in "
                f"{told}: not averaged"
            )


def check_comparable(table: Table, configs: Mapping[Place, RunConfig], variant: str | None) -> None:
    """Refuse to compare columns of one row that differ in their data or their number of epochs.

    Raises:
        ConfigError: Naming row, columns and key.
    """
    by_row: dict[str, list[str]] = {}
    for row, column in configs:
        by_row.setdefault(row, []).append(column)
    for row, columns in by_row.items():
        for column in columns[1:]:
            _check_pair(table, row, columns[0], column, configs, variant)


def _check_pair(
    table: Table,
    row: str,
    first: str,
    other: str,
    configs: Mapping[Place, RunConfig],
    variant: str | None,
) -> None:
    meant_first, meant_other = (
        flatten(table.resolve(row, column, 0, Changes(variant=variant)))
        for column in (first, other)
    )
    ours_first, ours_other = flatten(configs[row, first]), flatten(configs[row, other])
    for key in _COMPARABLE:
        is_meant = meant_first[key] != meant_other[key]
        if ours_first[key] != ours_other[key] and not is_meant:
            raise ConfigError(
                f"table {table.name}, row {row}: {first} has {key} {ours_first[key]}, but "
                f"{other} has {ours_other[key]}: they are not compared; run both alike, in "
                "another --out"
            )


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
    places: dict[tuple[str, str, str], list[Place]] = {}
    values: dict[tuple[str, str, str], tuple[Any, Any]] = {}
    for place, config in configs.items():
        theirs, ours = recipe(table.resolve(*place, 0, reference)), recipe(config)
        for key in sorted(theirs.keys() | ours.keys()):
            before, after = theirs.get(key), ours.get(key)
            if before == after:
                continue
            change = (key, repr(before), repr(after))
            values[change] = (before, after)
            places.setdefault(change, []).append(place)
    return [
        RecipeDeviation(change[0], *values[change], tuple(own)) for change, own in places.items()
    ]


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
    columns = list(dict.fromkeys(column for _, column in places))
    if set(places) == {place for place in shown if place[1] in columns}:
        return [table.label("columns", column) for column in columns]
    rows = list(dict.fromkeys(row for row, _ in places))
    if set(places) == {place for place in shown if place[0] in rows}:
        return [table.label("rows", row) for row in rows]
    return [
        f"{table.label('rows', row)} {table.label('columns', column)}" for row, column in places
    ]


def _text(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def data_copies(configs: Iterable[RunConfig]) -> list[str]:
    """Say which published data sets were read from a folder of images.

    Such a copy may hold other pixels than the original. Where the folder is not here any more, that
    is said: a result must not pass for more than is known of it.
    """
    from gnpcli.data.registry import list_published

    names = sorted({(config.data.name, config.data.dir or "") for config in configs})
    lines = []
    for name, directory in names:
        found = list_published(name, directory or None)
        line = None if found is None else _copy_text(name, found)
        if line is not None:
            lines.append(line)
    return lines


def _copy_text(name: str, found: Listing) -> str | None:
    """Return what is to be said about a published data set; None where it is the original."""
    if found.where is None:
        return f"data: {name} is not on this machine now, so that its copy cannot be told"
    if found.format != "image folder":
        return None
    kinds = _suffixes(found.where)
    files = listing(kinds) or "image"
    lossy = ", re-encoded with losses" if {"jpg", "jpeg"} & set(kinds) else ""
    return f"data: a copy of {name} in a folder of {files} files{lossy}"


def _suffixes(folder: str) -> Sequence[str]:
    """Return the kinds of files in the first class of a folder of images."""
    with os.scandir(os.path.join(folder, "train")) as entries:
        first = next((entry.path for entry in entries if entry.is_dir()), None)
    names = os.listdir(first)[:100] if first else []
    return sorted({name.rpartition(".")[2].lower() for name in names if "." in name})
