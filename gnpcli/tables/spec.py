"""A table as written: rows, columns, what they change in a preset. One YAML file per table.

Importing this module imports neither jax nor numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from gnpcli.config.loader import Layer, Tree, parse_overrides, read_yaml
from gnpcli.config.messages import explain
from gnpcli.config.paths import user_path
from gnpcli.config.resolved import Resolved, settle
from gnpcli.config.schema import RunConfig
from gnpcli.errors import ConfigError, suggest
from gnpcli.recipes.presets import Code, compose_layers, load_preset, preset_dir
from gnpcli.tables.checks import check_names, known_keys
from gnpcli.tables.schema import RowOrColumn, TableSpec

Part = Literal["rows", "columns"]
"""The rows or the columns of a table."""

Place = tuple[str, str]
"""Row and column of a cell."""


@dataclass(frozen=True)
class Changes:
    """What a user changes in every cell: the options of the command line."""

    variant: str | None = None
    epochs: int | None = None
    dataset: str | None = None
    data_dir: str | None = None
    assignments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A checked table, and where it and its keys were written."""

    name: str
    spec: TableSpec
    where: Mapping[str, str]
    folder: Path
    """Where its file is: relative paths of presets are relative to it."""

    def label(self, part: Part, name: str) -> str:
        """Return what people read for a row or a column."""
        return self.entries(part)[name].label or name

    def cell_label(self, row: str, column: str) -> str:
        """Return what people read for a cell."""
        return f"{self.label('rows', row)} {self.label('columns', column)}"

    def entries(self, part: Part) -> dict[str, RowOrColumn]:
        """Return the rows or the columns by name."""
        return self.spec.rows if part == "rows" else self.spec.columns

    def preset(self, row: str, column: str) -> str:
        """Return the name of a cell's recipe."""
        return self._preset(row, column)[1]

    def _preset(self, row: str, column: str) -> tuple[str, str]:
        """Return the key that names a cell's recipe, and the name."""
        choices = {
            f"rows.{row}.preset": self.spec.rows[row].preset,
            f"columns.{column}.preset": self.spec.columns[column].preset,
            "preset": self.spec.preset,
        }
        return next((key, name) for key, name in choices.items() if name is not None)

    def variant(self, name: str | None) -> str | None:
        """Return the variant meant by `name`: itself, or the first one for None.

        A table without variants has None.

        Raises:
            ConfigError: There is no such variant.
        """
        variants = self.spec.variants
        if name is None:
            return next(iter(variants), None)
        if name not in variants:
            listed = f"its variants: {', '.join(variants)}" if variants else "it has none"
            hint = suggest(name, variants)
            raise ConfigError(f"table {self.name} has no variant '{name}'{hint} ({listed})")
        return name

    def published_value(self, row: str, column: str) -> float | None:
        """Return the published value of a cell, error rates in percent."""
        published = self.spec.published
        if published is None:
            return None
        return published.values.get(row, {}).get(column)

    def resolve(
        self, row: str, column: str, seed: int, changes: Changes, code: Code = "none"
    ) -> RunConfig:
        """Return the configuration of one cell.

        With ``changes.epochs`` the warmups of learning rate and GR keep their share of the
        training: their epochs are scaled with it. `code` is as in `gnpcli.recipes.presets.resolve`.

        Raises:
            ConfigError: With file and line, or the option, that made the cell impossible.
        """
        layers = self._layers(row, column, self.variant(changes.variant))
        flags: dict[str, tuple[str, Any]] = {
            "data.name": ("--dataset", changes.dataset),
            "data.dir": ("--data-dir", changes.data_dir),
            "train.seed": ("--seeds", seed),
        }
        if changes.epochs is not None:
            scaled = _scaled_epochs(settle(compose_layers(layers), lambda: 1), changes.epochs)
            flags |= {key: ("--epochs", value) for key, value in scaled.items()}
        return compose_layers([*layers, *parse_overrides(changes.assignments, flags)], code)

    def _layers(self, row: str, column: str, variant: str | None) -> list[Layer]:
        """Return the recipe of a cell and what goes over it: table, row, column, variant."""
        spec = self.spec
        layers = [
            *self._preset_layers(row, column),
            self._layer("set.", spec.set),
            self._layer(f"rows.{row}.set.", spec.rows[row].set),
            self._layer(f"columns.{column}.set.", spec.columns[column].set),
        ]
        if variant is not None:
            layers.append(self._layer(f"variants.{variant}.set.", spec.variants[variant].set))
        return layers

    def _layer(self, prefix: str, values: Tree) -> Layer:
        """Return values of the table with the places of their keys."""
        where = {
            key.removeprefix(prefix): place
            for key, place in self.where.items()
            if key.startswith(prefix)
        }
        return Layer(values, where)

    def _preset_layers(self, row: str, column: str) -> tuple[Layer, ...]:
        key, name = self._preset(row, column)
        try:
            return load_preset(name, self.folder).layers
        except ConfigError as error:
            raise ConfigError(f"{self.where.get(key, self.name)}: {error}") from None


def _scaled_epochs(config: Resolved, epochs: int) -> dict[str, float]:
    """Return the epochs of a shorter or longer training, and its warmups in proportion."""
    share = epochs / config.train.epochs
    return {
        "train.epochs": epochs,
        "schedule.warmup_epochs": round(share * config.schedule.warmup_epochs, 6),
        "gr.warmup_epochs": round(share * config.gr.warmup_epochs, 6),
    }


def table_names() -> list[str]:
    """Return the names of the shipped tables, sorted."""
    return sorted(path.stem for path in (preset_dir() / "tables").glob("*.yaml"))


def load_table(name: str) -> Table:
    """Read a shipped table by name, or any YAML file by path.

    Raises:
        ConfigError: No such table or file, a key that is unknown or out of range, or names that do
            not fit together; with file and line.
    """
    path = _table_path(name)
    layer = read_yaml(path)
    try:
        spec = TableSpec.model_validate(layer.values)
    except ValidationError as error:
        message = str(explain(error, layer.where, list(known_keys(layer.values))))
        if not message.startswith(f"{path}:"):
            message = f"{path}: {message}"
        raise ConfigError(message) from None
    check_names(spec, layer.where, path)
    return Table(path.stem, spec, layer.where, path.parent)


def _table_path(name: str) -> Path:
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return user_path(name)
    path = preset_dir() / "tables" / f"{name}.yaml"
    if not path.is_file():
        hint = suggest(name, table_names())
        raise ConfigError(f"unknown table '{name}'{hint}; see `gnp tables list`")
    return path


def choose(table: Table, part: Part, option: str, wanted: Sequence[str] | None) -> list[str]:
    """Return the rows or columns asked for, in the table's order; all of them for None.

    Args:
        table: The table.
        part: Whether rows or columns are meant.
        option: The option that `wanted` comes from.
        wanted: Names or labels, whatever their case.

    Raises:
        ConfigError: The table has no such row or column.
    """
    names = list(table.entries(part))
    if wanted is None:
        return names
    labels = {table.label(part, name).casefold(): name for name in names}
    known = labels | {name.casefold(): name for name in names}
    for word in wanted:
        if word.casefold() not in known:
            kind, hint = part.removesuffix("s"), suggest(word.casefold(), names)
            raise ConfigError(
                f"{option}: table {table.name} has no {kind} '{word}'{hint} "
                f"({part}: {', '.join(names)})"
            )
    chosen = {known[word.casefold()] for word in wanted}
    return [name for name in names if name in chosen]
