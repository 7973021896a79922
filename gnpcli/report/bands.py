"""Runs that differ in nothing but their seed, as one curve: the mean over them and how far they spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from gnpcli.config.loader import flatten
from gnpcli.errors import DataError
from gnpcli.report.history import Axis, History, Values, read_histories
from gnpcli.report.metrics import Curve, Panel, present_panels

Spread = Literal["range", "std"]
"""What the band around a mean shows: from the lowest to the highest run, or one standard deviation either way."""

MAX_POINTS = 400
"""Points of a curve; of longer ones equal stretches are averaged, so that a page stays small."""

_NO_DIFFERENCE = ("train.seed", "train.log_every_steps", "data.dir", "data.workers", "data.eval_batch_size")
_NO_DIFFERENCE_SECTIONS = ("checkpoint.", "mesh.")


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
    """Put runs together that differ only in their seed, and label the groups by the keys in which they differ.

    What cannot change a result (where data lies, when it is saved, how often it is logged, the number of devices)
    keeps no two runs apart. A second run of the same configuration and seed is a group of its own: it is no other
    sample. A label is ``key=value`` for up to three keys that differ among the groups, always with the data set where
    there are several, and the name of the folder where that says nothing or too much.
    """
    sets: dict[tuple[object, ...], list[History]] = {}
    for history in histories:
        setting = tuple((key, repr(value)) for key, value in _settings(history).items())
        again = sum(
            history.config.train.seed == other.config.train.seed
            for (seen, _), others in sets.items()
            if seen == setting
            for other in others
        )
        sets.setdefault((setting, again), []).append(history)
    groups = list(sets.values())
    labels = _labels([group[0] for group in groups])
    return [Group(label, tuple(group)) for label, group in zip(labels, groups, strict=True)]


def named_groups(groups: Mapping[str, Sequence[Path]]) -> list[Group]:
    """Read groups of runs that have their names already.

    Raises:
        ConfigError, DataError: As `read_histories`; DataError also where the runs of one group are of several data
            sets, which have no mean.
    """
    read = [Group(label, tuple(read_histories(folders))) for label, folders in groups.items() if folders]
    for group in read:
        if len(names := {run.config.data.name for run in group.runs}) > 1:
            raise DataError(
                f"{group.label!r} has runs of several data sets ({', '.join(sorted(names))}): no mean is taken"
            )
    return read


def panels_of(groups: Sequence[Group]) -> list[Panel]:
    """Return the panels for which some run of `groups` has values."""
    runs = [run for group in groups for run in group.runs]
    return present_panels(
        {split: {k: None for run in runs for k in run.keys(split)} for split in ("train", "val", "test")}
    )


def band(group: Group, curve: Curve, axis: Axis, spread: Spread) -> Band | None:
    """Return one metric of a group at the steps that all its runs have logged; None where there is none.

    The mean and the spread are over the runs, at each step on its own; the standard deviation is the sample's (n - 1).
    Of a single run they are its values.
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


def _settings(history: History) -> dict[str, object]:
    return {
        key: value
        for key, value in flatten(history.config).items()
        if key not in _NO_DIFFERENCE and not key.startswith(_NO_DIFFERENCE_SECTIONS)
    }


def _labels(firsts: Sequence[History]) -> list[str]:
    names = [history.folder.resolve().name for history in firsts]
    if len(firsts) == 1:
        return names
    settings = [_settings(history) for history in firsts]
    keys = [key for key in dict.fromkeys(key for own in settings for key in own)
            if len({repr(own.get(key)) for own in settings}) > 1]  # fmt: skip
    shown = keys if 0 < len(keys) <= 3 else [key for key in keys if key == "data.name"]
    labels = [
        ", ".join(f"{key.rpartition('.')[2] if key != 'data.name' else 'data'}={own.get(key, '-')}" for key in shown)
        for own in settings
    ]
    if len(keys) > 3 or len(set(labels)) < len(labels):
        labels = [", ".join(filter(None, (name, label))) for name, label in zip(names, labels, strict=True)]
    if len(set(labels)) < len(labels):
        labels = [str(history.folder) for history in firsts]
    return labels
