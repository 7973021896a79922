"""How the runs of a table differ from the recipe that its published values come from: told under
every result.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gnpcli.config import RunConfig
from gnpcli.config.loader import flatten
from gnpcli.config.recipe import DATA_KEYS, recipe
from gnpcli.errors import ConfigError
from gnpcli.tables.spec import Changes, Table

Place = tuple[str, str]
"""Row and column."""

_COMPARABLE = (*DATA_KEYS, "train.epochs")
"""Keys that the columns of a row must agree on, unless the table itself has them differ."""


@dataclass(frozen=True)
class Deviation:
    """One key whose value is another than the recipe's."""

    key: str
    published: Any
    ours: Any
    places: tuple[Place, ...]
    """The cells where it is so."""


def check_alike(table: Table, place: Place, configs: Mapping[int, RunConfig]) -> None:
    """Refuse to average runs of one cell that differ in more than the seed.

    Raises:
        ConfigError: Naming the cell, both seeds and the keys.
    """
    seeds = list(configs)
    for seed in seeds[1:]:
        first, other = recipe(configs[seeds[0]]), recipe(configs[seed])
        keys = [key for key in first if first[key] != other.get(key)]
        if keys:
            told = "; ".join(f"{key}: {first[key]} and {other.get(key)}" for key in keys)
            raise ConfigError(
                f"table {table.name}, {' '.join(place)}: seeds {seeds[0]} and {seed} differ in "
                f"{told}: not averaged"
            )


def check_comparable(table: Table, configs: Mapping[Place, RunConfig], variant: str | None) -> None:
    """Refuse to compare columns of one row that were run on other data or for another number of
    epochs.

    Raises:
        ConfigError: Naming row, columns and key.
    """
    by_row: dict[str, list[str]] = {}
    for row, column in configs:
        by_row.setdefault(row, []).append(column)
    for row, (first, *others) in by_row.items():
        for column in others:
            meant = [
                flatten(table.resolve(row, name, 0, Changes(variant=variant)))
                for name in (first, column)
            ]
            ours = [flatten(configs[row, name]) for name in (first, column)]
            for key in _COMPARABLE:
                if meant[0][key] == meant[1][key] and ours[0][key] != ours[1][key]:
                    raise ConfigError(
                        f"table {table.name}, row {row}: {first} has {key} {ours[0][key]}, but "
                        f"{column} has "
                        f"{ours[1][key]}: they are not compared; run both alike, in another --out"
                    )


def variant_of(table: Table, configs: Iterable[RunConfig]) -> str | None:
    """Return the variant that all of `configs` were run in: the last one whose values they have,
    else the first.
    """
    flat = [flatten(config) for config in configs]
    for name, variant in reversed(table.spec.variants.items()):
        wanted = {
            f"{section}.{key}": value
            for section, keys in variant.set.items()
            for key, value in keys.items()
        }
        if (
            flat
            and wanted
            and all(values.get(key) == wanted[key] for values in flat for key in wanted)
        ):
            return name
    return table.variant(None)


def deviations(table: Table, configs: Mapping[Place, RunConfig]) -> list[Deviation]:
    """Compare the configuration of every cell with the published recipe: the table's, in its
    published variant.
    """
    published = table.spec.published
    reference = Changes(variant=published.variant if published else None)
    found: dict[tuple[str, str, str], Deviation] = {}
    for place, config in configs.items():
        theirs, ours = (recipe(each) for each in (table.resolve(*place, 0, reference), config))
        for key in sorted(theirs.keys() | ours.keys()):
            before, after = theirs.get(key), ours.get(key)
            if before == after:
                continue
            group = (key, repr(before), repr(after))
            places = found[group].places if group in found else ()
            found[group] = Deviation(key, before, after, (*places, place))
    return list(found.values())


def tell(deviation: Deviation, table: Table, shown: Iterable[Place]) -> str:
    """Return a deviation as a line; `shown` is all cells of the result."""
    shown = list(shown)
    text = (
        f"{deviation.key}: {_text(deviation.published)} in the recipe, {_text(deviation.ours)} here"
    )
    where = set(deviation.places)
    if where == set(shown):
        return text
    columns = list(dict.fromkeys(column for _, column in deviation.places))
    if where == {place for place in shown if place[1] in columns}:
        return f"{text} ({', '.join(table.label('columns', column) for column in columns)})"
    rows = list(dict.fromkeys(row for row, _ in deviation.places))
    if where == {place for place in shown if place[0] in rows}:
        return f"{text} ({', '.join(table.label('rows', row) for row in rows)})"
    places = (
        f"{table.label('rows', row)} {table.label('columns', column)}"
        for row, column in deviation.places
    )
    return f"{text} ({', '.join(places)})"


def data_copies(configs: Iterable[RunConfig]) -> list[str]:
    """Say which published data sets were read from a folder of images, which may hold other pixels
    than the original.

    Where the folder is not here any more, that is said: a result must not pass for more than is
        known of it.
    """
    from gnpcli.data.registry import list_published

    lines = []
    for name, directory in sorted(
        {(config.data.name, config.data.dir or "") for config in configs}
    ):
        listing = list_published(name, directory or None)
        if listing is not None and listing.where is None:
            lines.append(
                f"data: {name} is not on this machine now, so that its copy cannot be told"
            )
        elif listing is not None and listing.where is not None and listing.format == "image folder":
            kinds = _suffixes(listing.where)
            lossy = ", re-encoded with losses" if {"jpg", "jpeg"} & set(kinds) else ""
            lines.append(
                f"data: a copy of {name} in a folder of {' and '.join(kinds) or 'image'} "
                f"files{lossy}"
            )
    return lines


def _suffixes(folder: str) -> Sequence[str]:
    with os.scandir(os.path.join(folder, "train")) as entries:
        first = next((entry.path for entry in entries if entry.is_dir()), None)
    names = os.listdir(first)[:100] if first else []
    return sorted({name.rpartition(".")[2].lower() for name in names if "." in name})


def _text(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
