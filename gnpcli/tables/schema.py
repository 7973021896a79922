"""What a table's YAML file may say: its sections and keys.

Importing this module imports neither jax nor numpy.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from gnpcli.config.loader import Tree
from gnpcli.config.ranges import Seed, Steps
from gnpcli.config.section import EMPTY, Section
from gnpcli.tables.metrics import METRICS, MetricKind


def _known_metric(name: str) -> str:
    if name not in METRICS:
        raise PydanticCustomError("unknown_choice", "unknown", {"choices": list(METRICS)})
    return name


Keys = Annotated[dict[str, Annotated[Tree, EMPTY]], EMPTY]
"""Sections of keys, as in a preset."""


class RowOrColumn(Section):
    """A row or a column."""

    label: str | None = None
    """What people read; null takes the name."""
    preset: str | None = None
    """Recipe of its cells; null takes the table's. A row and a column cannot both have one."""
    set: Keys = {}
    """What it changes in the recipe: sections of keys, as in a preset. A column goes over a row."""


class Metric(Section):
    """The number in a cell. All are better when lower."""

    split: Literal["test", "val"] = "test"
    """What is evaluated."""
    name: Annotated[str, AfterValidator(_known_metric)] = "error_rate"
    """A name of `gnpcli.tables.metrics.METRICS`; error rates are told as percentages."""
    at: Literal["last", "best"] = "last"
    """The last step, or the lowest of all evaluations.

    On the test split the latter chooses by what it measures.
    """

    @property
    def kind(self) -> MetricKind:
        """What the metric is, in which unit it is told."""
        return METRICS[self.name]


class Variant(Section):
    """A way to run the whole table."""

    about: str
    """One line."""
    set: Keys = {}
    """What it changes in every cell, over rows and columns."""


class PublishedValues(Section):
    """What others measured."""

    source: str
    """Where the values stand."""
    variant: str | None = None
    """The variant that is closest to how they were made; null takes the first.

    Deviations are told from it.
    """
    seeds: Steps | None = None
    """How many runs a value is the mean of; null is not known."""
    values: dict[str, dict[str, float]] = {}
    """``{row: {column: value}}``, error rates in percent; what is not known is left out."""
    unknown: list[str] = []
    """What is not known of how they were made, or cannot be written as a key.

    It is told under every result.
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
    set: Keys = {}
    """What every cell changes in its recipe, under rows and columns."""
    metric: Metric = Metric()
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0, 1, 2]
    """Seeds of every cell."""
    rows: Annotated[dict[str, RowOrColumn], EMPTY, Field(min_length=1)]
    """By name, which is that of a folder too."""
    columns: Annotated[dict[str, RowOrColumn], EMPTY, Field(min_length=1)]
    """By name, which is that of a folder too."""
    baseline: str
    """The column that every other one is compared with."""
    variants: Annotated[dict[str, Variant], EMPTY] = {}
    """Ways to run the table; the first is the one that is run unless another is asked for."""
    published: PublishedValues | None = None
    claims: list[Claim] = []
    """Statements tested besides those that the published values make about the baseline."""
    notes: list[str] = []
    """What a reader of the result has to know: told under every result."""
