"""Means, deviations and intervals of a few runs. Pure; scipy gives Student's t."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
"""Level of every interval."""


@dataclass(frozen=True)
class Sample:
    """Values of one cell over seeds."""

    n: int
    mean: float
    std: float | None
    """Sample standard deviation, ``sqrt(sum((x - mean)^2) / (n - 1))``; None for n = 1."""


def summarize(values: Sequence[float]) -> Sample:
    """Return number, mean and sample standard deviation.

    >>> summarize([1.0, 2.0, 4.0]).std
    1.5275252316519468

    Raises:
        ValueError: There are no values.
    """
    if not values:
        raise ValueError("no values")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Sample(1, mean, None)
    variance = math.fsum((x - mean) ** 2 for x in values) / (len(values) - 1)
    return Sample(len(values), mean, math.sqrt(variance))


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval, ``mean +- half_width``."""

    n: int
    mean: float
    half_width: float | None
    """None for n = 1: one value says nothing of its own spread."""

    @property
    def low(self) -> float | None:
        """Lower end."""
        return None if self.half_width is None else self.mean - self.half_width

    @property
    def high(self) -> float | None:
        """Upper end."""
        return None if self.half_width is None else self.mean + self.half_width

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside. Never for n = 1; for equal values the interval is a point."""
        return self.half_width is not None and abs(self.mean) > self.half_width


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Return the interval of Student's t for the mean of `values`, taken as independent and normal.

    Its half width is ``t((1 + confidence) / 2; n - 1) * std / sqrt(n)``. Given the differences of
    pairs it is the interval of the paired t-test; given the differences to a constant, that of the
    one-sample test.

    Raises:
        ValueError: There are no values.
    """
    sample = summarize(values)
    if sample.std is None:
        return Interval(1, sample.mean, None)
    from scipy.special import stdtrit  # a fraction of what importing scipy.stats costs

    t = float(stdtrit(sample.n - 1, (1 + confidence) / 2))
    return Interval(sample.n, sample.mean, t * sample.std / math.sqrt(sample.n))


def paired(values: Mapping[int, float], against: Mapping[int, float]) -> list[float]:
    """Return ``values[seed] - against[seed]`` for every seed that both have, by seed."""
    return [values[seed] - against[seed] for seed in sorted(values.keys() & against.keys())]
