"""A table as written: rows, columns, what they change in a preset, what was published. One YAML
file per table.

Importing this module imports neither jax nor numpy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from gnpcli.config import RunConfig
from gnpcli.config.loader import Layer, Tree, explain, parse_overrides, read_yaml
from gnpcli.config.section import Section
from gnpcli.errors import ConfigError, suggest
from gnpcli.recipes.presets import load_preset, preset_dir, resolve_layers

_NAME = re.compile(r"[a-z0-9][a-z0-9._+-]*")


class Axis(Section):
    """A row or a column."""

    label: str | None = None
    """What people read; null takes the name."""
    preset: str | None = None
    """Recipe of its cells; null takes the table's. A row and a column cannot both have one."""
    set: Tree = {}
    """What it changes in the recipe: sections of keys, as in a preset. A column goes over a row."""


class Metric(Section):
    """The number in a cell. All are better when lower."""

    split: Literal["test", "val"] = "test"
    """What is evaluated."""
    name: Literal["error_rate", "top5_error_rate", "loss"] = "error_rate"
    """Error rates are told as percentages."""
    at: Literal["last", "best"] = "last"
    """The last step, or the lowest of all evaluations, which on the test split chooses by what it
    measures.
    """


class Variant(Section):
    """A way to run the whole table."""

    about: str
    """One line."""
    set: Tree = {}
    """What it changes in every cell, over rows and columns."""


class Published(Section):
    """What others measured."""

    source: str
    """Where the values stand."""
    variant: str | None = None
    """The variant that is closest to how they were made: deviations are told from it. Null takes
    the first.
    """
    seeds: Annotated[int, Field(ge=1)] | None = None
    """How many runs a value is the mean of; null is not known."""
    values: dict[str, dict[str, float]] = {}
    """``{row: {column: value}}``, error rates in percent; what is not known is left out."""
    unknown: list[str] = []
    """What is not known of how they were made, or cannot be written as a key: told under every
    result.
    """


class Claim(Section):
    """A statement about two columns that the table tests in every row."""

    better: str
    """The column said to have the lower value."""
    than: str
    """The other one."""
    source: str
    """Who says so."""


class TableSpec(Section):
    """A table."""

    title: str
    """One line."""
    purpose: str
    """One line for the list of tables: what question it answers."""
    preset: str | None = None
    """Recipe of the cells whose row and column have none."""
    set: Tree = {}
    """What every cell changes in its recipe, under rows and columns."""
    metric: Metric = Metric()
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1)] = [0, 1, 2]
    """Seeds of every cell."""
    rows: Annotated[dict[str, Axis], Field(min_length=1)]
    """By name, which is that of a folder too."""
    columns: Annotated[dict[str, Axis], Field(min_length=1)]
    """By name, which is that of a folder too."""
    baseline: str
    """The column that every other one is compared with."""
    variants: dict[str, Variant] = {}
    """Ways to run the table; the first is the one that is run unless another is asked for."""
    published: Published | None = None
    claims: list[Claim] = []
    """Statements tested besides those that the published values make about the baseline."""
    notes: list[str] = []
    """What a reader of the result has to know: told under every result."""


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
    """A checked table, and where its keys were written."""

    name: str
    spec: TableSpec
    where: Mapping[str, str]

    def label(self, axis: Literal["rows", "columns"], name: str) -> str:
        """Return what people read for a row or a column."""
        return getattr(self.spec, axis)[name].label or name

    def preset(self, row: str, column: str) -> str:
        """Return the name of a cell's recipe."""
        return (
            self.spec.rows[row].preset or self.spec.columns[column].preset or str(self.spec.preset)
        )

    def variant(self, name: str | None) -> str | None:
        """Return the variant meant by `name`: itself, or the first one; None in a table without
        variants.

        Raises:
            ConfigError: There is no such variant.
        """
        if name is not None and name not in self.spec.variants:
            has = (
                f"its variants: {', '.join(self.spec.variants)}"
                if self.spec.variants
                else "it has none"
            )
            raise ConfigError(
                f"table {self.name} has no variant '{name}'{suggest(name, self.spec.variants)} "
                f"({has})"
            )
        return name or next(iter(self.spec.variants), None)

    def published_value(self, row: str, column: str) -> float | None:
        """Return the published value of a cell, error rates in percent."""
        return self.spec.published.values.get(row, {}).get(column) if self.spec.published else None

    def resolve(self, row: str, column: str, seed: int, changes: Changes) -> RunConfig:
        """Return the configuration of one cell.

        With ``changes.epochs`` the warmups of learning rate and GR keep their share of the
        training: their epochs are scaled with it.

        Raises:
            ConfigError: With file and line, or the option, that made the cell impossible.
        """
        at = {"row": f"rows.{row}.", "column": f"columns.{column}."}
        variant = self.variant(changes.variant)
        below = [*self._preset_layers(row, column), self._layer("set.", self.spec.set)]
        below += [
            self._layer(f"{at['row']}set.", self.spec.rows[row].set),
            self._layer(f"{at['column']}set.", self.spec.columns[column].set),
        ]
        if variant is not None:
            below.append(self._layer(f"variants.{variant}.set.", self.spec.variants[variant].set))
        flags: dict[str, tuple[str, Any]] = {
            "data.name": ("--dataset", changes.dataset),
            "data.dir": ("--data-dir", changes.data_dir),
            "train.seed": ("--seeds", seed),
        }
        if changes.epochs is not None:
            whole = resolve_layers(below)
            share = changes.epochs / whole.train.epochs
            flags["train.epochs"] = ("--epochs", changes.epochs)
            flags["schedule.warmup_epochs"] = (
                "--epochs",
                round(share * whole.schedule.warmup_epochs, 6),
            )
            flags["gr.warmup_epochs"] = (
                "--epochs",
                round(share * (whole.gr.warmup_epochs or 0.0), 6),
            )
        return resolve_layers([*below, *parse_overrides(changes.assignments, flags)])

    def _layer(self, prefix: str, values: Tree) -> Layer:
        where = {
            key.removeprefix(prefix): place
            for key, place in self.where.items()
            if key.startswith(prefix)
        }
        return Layer(values, where)

    def _preset_layers(self, row: str, column: str) -> tuple[Layer, ...]:
        spec = self.spec
        key = next(
            key
            for key, preset in (
                (f"rows.{row}.preset", spec.rows[row].preset),
                (f"columns.{column}.preset", spec.columns[column].preset),
                ("preset", spec.preset),
            )
            if preset is not None
        )
        try:
            return load_preset(self.preset(row, column)).layers
        except ConfigError as error:
            raise ConfigError(f"{self.where.get(key, self.name)}: {error}") from None


def table_names() -> list[str]:
    """Return the names of the shipped tables, sorted."""
    return sorted(path.stem for path in (preset_dir() / "tables").glob("*.yaml"))


def load_table(name: str) -> Table:
    """Read a shipped table by name, or any YAML file by path.

    Raises:
        ConfigError: No such table or file, a key that is unknown or out of range, or names that do
            not fit together; with file and line.
    """
    is_path = name.endswith((".yaml", ".yml")) or "/" in name
    path = Path(name).expanduser() if is_path else preset_dir() / "tables" / f"{name}.yaml"
    if not is_path and not path.is_file():
        raise ConfigError(
            f"unknown table '{name}'{suggest(name, table_names())}; see `gnp tables list`"
        )
    layer = read_yaml(path)
    try:
        spec = TableSpec.model_validate(layer.values)
    except ValidationError as error:
        message = str(explain(error, layer, list(_known_keys(layer.values))))
        raise ConfigError(
            message if message.startswith(f"{path}:") else f"{path}: {message}"
        ) from None
    table = Table(path.stem, spec, layer.where)
    _check(table, path)
    return table


def _known_keys(values: Tree) -> Iterable[str]:
    yield from TableSpec.model_fields
    sections: dict[str, type[Section]] = {"metric": Metric, "published": Published}
    for axis in ("rows", "columns", "variants"):
        names = values.get(axis)
        kind = Variant if axis == "variants" else Axis
        sections |= {f"{axis}.{name}": kind for name in (names if isinstance(names, dict) else ())}
    for section, model in sections.items():
        yield from (f"{section}.{key}" for key in model.model_fields)


def _check(table: Table, path: Path) -> None:
    """Refuse names that do not fit together."""
    spec, where = table.spec, table.where

    def fail(key: str, message: str) -> ConfigError:
        parts = key.split(".")
        known = (where.get(".".join(parts[:end])) for end in range(len(parts), 0, -1))
        return ConfigError(f"{next((place for place in known if place), path)}: {message}")

    def known(key: str, kind: str, name: str, choices: Mapping[str, Any]) -> None:
        if name not in choices:
            raise fail(
                key,
                f"unknown {kind} '{name}'{suggest(name, choices)} ({kind}s: {', '.join(choices)})",
            )

    for section in ("rows", "columns", "variants"):
        for name in getattr(spec, section):
            if not _NAME.fullmatch(name):
                raise fail(
                    f"{section}.{name}",
                    f"'{name}' must be a name of small letters, digits, '.', '_', '+' and '-'",
                )
    known("baseline", "column", spec.baseline, spec.columns)
    for claim in spec.claims:
        known("claims", "column", claim.better, spec.columns)
        known("claims", "column", claim.than, spec.columns)
    if len(set(spec.seeds)) < len(spec.seeds):
        raise fail("seeds", "a seed is given twice")
    if spec.published is not None:
        if spec.published.variant is not None:
            known("published.variant", "variant", spec.published.variant, spec.variants)
        for row, values in spec.published.values.items():
            known(f"published.values.{row}", "row", row, spec.rows)
            for column in values:
                known(f"published.values.{row}.{column}", "column", column, spec.columns)
    for row, row_axis in spec.rows.items():
        for column, column_axis in spec.columns.items():
            if row_axis.preset is not None and column_axis.preset is not None:
                raise fail(
                    f"columns.{column}.preset",
                    f"row {row} and column {column} both name a preset: leave one out",
                )
            if not (row_axis.preset or column_axis.preset or spec.preset):
                raise fail(
                    f"rows.{row}", f"the cell of row {row} and column {column} has no preset"
                )
    for key in where:
        if key.endswith("set.train.seed"):
            raise fail(key, "train.seed is what `seeds` is for")


def choose(
    table: Table, axis: Literal["rows", "columns"], option: str, wanted: Sequence[str] | None
) -> list[str]:
    """Return the names of the rows or columns asked for, in the table's order; all of them for
    None.

    Args:
        table: The table.
        axis: Which names.
        option: The option that `wanted` comes from.
        wanted: Names or labels, whatever their case.

    Raises:
        ConfigError: The table has no such row or column.
    """
    names = list(getattr(table.spec, axis))
    if wanted is None:
        return names
    known = {name.casefold(): name for name in names}
    known |= {
        table.label(axis, name).casefold(): name
        for name in names
        if table.label(axis, name) not in known
    }
    for word in wanted:
        if word.casefold() not in known:
            kind = axis.removesuffix("s")
            raise ConfigError(
                f"{option}: table {table.name} has no {kind} "
                f"'{word}'{suggest(word.casefold(), names)} "
                f"({axis}: {', '.join(names)})"
            )
    chosen = {known[word.casefold()] for word in wanted}
    return [name for name in names if name in chosen]
