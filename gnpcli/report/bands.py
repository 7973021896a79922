"""Runs that differ only in their seed, as one curve: their mean and their spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from gnpcli.errors import DataError
from gnpcli.report.metrics import Curve, Panel, present_panels
from gnpcli.runs.contents import HELD_OUT
from gnpcli.runs.grouping import by_seed, data_sets
from gnpcli.runs.history import History, Values, XAxis, read_histories

Spread = Literal["range", "std"]
"""What the band around a mean shows.

``range`` is from the lowest to the highest run. ``std`` is one standard deviation either way.
"""

MAX_POINTS = 400
"""The most points of a curve. Longer ones are averaged over equal stretches: pages stay small."""


@dataclass(frozen=True)
class Group:
    """Runs that are drawn as one curve."""

    label: str
    runs: tuple[History, ...]

    @property
    def title(self) -> str:
        """The label, with the number of runs where they are several."""
        if len(self.runs) == 1:
            return self.label
        return f"{self.label} ({len(self.runs)} seeds)"


@dataclass(frozen=True, eq=False)
class Band:
    """A curve over the runs of a group.

    The arrays are ``[N]``. They are NaN where a value was not finite.
    """

    x: Values
    mean: Values
    low: Values
    high: Values
    num_runs: int


def group_runs(histories: Sequence[History]) -> list[Group]:
    """Put runs together that differ only in their seed; see `gnpcli.runs.grouping.by_seed`."""
    return [Group(label, tuple(runs)) for label, runs in by_seed(histories).items()]


def named_groups(groups: Mapping[str, Sequence[Path]]) -> list[Group]:
    """Read groups of runs that have their names already. A group without runs is left out.

    Raises:
        ConfigError, DataError: As `read_histories`. DataError also where one group has runs of
            several data sets, which have no mean.
    """
    read = []
    for label, folders in groups.items():
        if folders:
            read.append(Group(label, tuple(read_histories(folders))))
    for group in read:
        _check_one_data_set(group)
    return read


def _check_one_data_set(group: Group) -> None:
    names = data_sets(group.runs)
    if len(names) > 1:
        raise DataError(
            f"{group.label!r} has runs of several data sets ({', '.join(names)}): no mean is taken"
        )


def panels_of(groups: Sequence[Group]) -> list[Panel]:
    """Return the panels for which some run of `groups` has values."""
    runs = [run for group in groups for run in group.runs]
    keys = {}
    for split in ("train", *HELD_OUT):
        keys[split] = dict.fromkeys(key for run in runs for key in run.keys(split))
    return present_panels(keys)


def band(group: Group, curve: Curve, axis: XAxis, spread: Spread) -> Band | None:
    """Return one metric of a group at the steps that all its runs have logged.

    Mean and spread are over the runs, at each step on its own. The standard deviation is that of a
    sample (n - 1). A single run has no spread.

    Returns:
        None where the runs have no step in common, or no mean is finite.
    """
    series = [run.series(curve.split, curve.key, axis) for run in group.runs]
    steps = _common_steps([own for own, _, _ in series])
    if not len(steps):
        return None
    xs, ys = [], []
    for own, x, y in series:
        places = np.searchsorted(own, steps)
        xs.append(x[places])
        ys.append(y[places])
    values = np.stack(ys)
    mean = _thinned(values.mean(axis=0))
    if np.isnan(mean).all():
        return None
    low, high = _limits(values, spread)
    x = np.mean(xs, axis=0)
    return Band(_thinned(x), mean, _thinned(low), _thinned(high), len(group.runs))


def _common_steps(steps: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """Return the steps that are in all arrays, rising."""
    common = steps[0]
    for other in steps[1:]:
        common = np.intersect1d(common, other)
    return common


def _limits(values: Values, spread: Spread) -> tuple[Values, Values]:
    """Return the lower and the upper edge of a band, ``[N]`` each, from ``[runs, N]``."""
    if spread == "range" or len(values) == 1:
        return values.min(axis=0), values.max(axis=0)
    mean, deviation = values.mean(axis=0), values.std(axis=0, ddof=1)
    return mean - deviation, mean + deviation


def _thinned(values: Values) -> Values:
    """Average equal stretches, so that at most `MAX_POINTS` points are left."""
    count = len(values)
    if count <= MAX_POINTS:
        return values
    edges = np.linspace(0, count, MAX_POINTS + 1).astype(int)
    thinned: Values = np.add.reduceat(values, edges[:-1]) / np.diff(edges)
    return thinned
