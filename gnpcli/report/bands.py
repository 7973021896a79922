"""Runs that differ in nothing but their seed, as one curve: the mean over them and how far they
spread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from gnpcli.errors import DataError
from gnpcli.report.metrics import Curve, Panel, present_panels
from gnpcli.runs.grouping import by_seed, data_sets
from gnpcli.runs.history import History, Values, XAxis, read_histories

Spread = Literal["range", "std"]
"""What the band around a mean shows: from the lowest to the highest run, or one standard deviation
either way.
"""

MAX_POINTS = 400
"""Points of a curve; of longer ones equal stretches are averaged, so that a page stays small."""


@dataclass(frozen=True)
class Group:
    """Runs that are drawn as one curve."""

    label: str
    runs: tuple[History, ...]

    @property
    def title(self) -> str:
        """The label, with the number of runs where they are several."""
        return self.label if len(self.runs) == 1 else f"{self.label} ({len(self.runs)} seeds)"


@dataclass(frozen=True, eq=False)
class Band:
    """A curve over the runs of a group; arrays ``[N]``, NaN where a value was not finite."""

    x: Values
    mean: Values
    low: Values
    high: Values
    num_runs: int


def group_runs(histories: Sequence[History]) -> list[Group]:
    """Put runs together that differ only in their seed, as `gnpcli.runs.grouping.by_seed`."""
    return [Group(label, tuple(runs)) for label, runs in by_seed(histories).items()]


def named_groups(groups: Mapping[str, Sequence[Path]]) -> list[Group]:
    """Read groups of runs that have their names already.

    Raises:
        ConfigError, DataError: As `read_histories`; DataError also where the runs of one group are
            of several data sets, which have no mean.
    """
    read = [
        Group(label, tuple(read_histories(folders))) for label, folders in groups.items() if folders
    ]
    for group in read:
        if len(names := data_sets(group.runs)) > 1:
            raise DataError(
                f"{group.label!r} has runs of several data sets ({', '.join(names)}): no mean is "
                "taken"
            )
    return read


def panels_of(groups: Sequence[Group]) -> list[Panel]:
    """Return the panels for which some run of `groups` has values."""
    runs = [run for group in groups for run in group.runs]
    return present_panels(
        {
            split: {k: None for run in runs for k in run.keys(split)}
            for split in ("train", "val", "test")
        }
    )


def band(group: Group, curve: Curve, axis: XAxis, spread: Spread) -> Band | None:
    """Return one metric of a group at the steps that all its runs have logged; None where there is
    none.

    The mean and the spread are over the runs, at each step on its own; the standard deviation is
    the sample's (n - 1). Of a single run they are its values.
    """
    read = [run.series(curve.split, curve.key, axis) for run in group.runs]
    steps = read[0][0]
    for other, _, _ in read[1:]:
        steps = np.intersect1d(steps, other)
    if not len(steps):
        return None
    at = [np.searchsorted(own, steps) for own, _, _ in read]
    x = np.mean([xs[places] for (_, xs, _), places in zip(read, at, strict=True)], axis=0)
    y = np.stack([ys[places] for (_, _, ys), places in zip(read, at, strict=True)])
    mean = y.mean(axis=0)
    if spread == "range" or len(y) == 1:
        low, high = y.min(axis=0), y.max(axis=0)
    else:
        deviation = y.std(axis=0, ddof=1)
        low, high = mean - deviation, mean + deviation
    x, mean, low, high = (_thinned(values) for values in (x, mean, low, high))
    return None if np.isnan(mean).all() else Band(x, mean, low, high, len(group.runs))


def _thinned(values: Values) -> Values:
    """Average equal stretches, so that at most `MAX_POINTS` points are left."""
    count = len(values)
    if count <= MAX_POINTS:
        return values
    edges = np.linspace(0, count, MAX_POINTS + 1).astype(int)
    thinned: Values = np.add.reduceat(values, edges[:-1]) / np.diff(edges)
    return thinned
