"""Which runs may be averaged, and which columns compared: those that saw the same."""

from __future__ import annotations

from collections.abc import Mapping

from gnpcli.config.loader import flatten
from gnpcli.config.recipe import DATA_KEYS, recipe
from gnpcli.config.schema import RunConfig
from gnpcli.errors import ConfigError
from gnpcli.tables.spec import Changes, Place, Table

_COMPARABLE = (*DATA_KEYS, "train.epochs")
"""Keys that the columns of a row must agree on, unless the table itself has them differ."""


def check_alike(table: Table, place: Place, configs: Mapping[int, RunConfig]) -> None:
    """Refuse to average runs of one cell that differ in more than the seed.

    Args:
        table: Its name is in the message.
        place: The cell.
        configs: By seed.

    Raises:
        ConfigError: Naming the cell, both seeds and the keys.
    """
    seeds = list(configs)
    for seed in seeds[1:]:
        different = _recipe_differences(configs[seeds[0]], configs[seed])
        if different:
            raise ConfigError(
                f"table {table.name}, {' '.join(place)}: seeds {seeds[0]} and {seed} differ in "
                f"{'; '.join(different)}: not averaged"
            )


def _recipe_differences(first: RunConfig, other: RunConfig) -> list[str]:
    """Return the keys that decide a result and differ, with both values."""
    ours, theirs = recipe(first), recipe(other)
    keys = [key for key in ours if ours[key] != theirs.get(key)]
    return [f"{key}: {ours[key]} and {theirs.get(key)}" for key in keys]


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
