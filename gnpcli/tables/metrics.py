"""What a cell of a table can measure, in one table. To add a metric is to add a row to `METRICS`.

The schema, the values, the units, the sentences and the columns of every output read the row.
Importing this module imports nothing else of the project.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MetricKind:
    """A number that a run is evaluated to. All are better when lower."""

    name: str
    """Its key in the evaluations of a run, and `metric.name` of a table."""
    words: str
    """What people read."""
    is_fraction: bool
    """Whether it lies in [0, 1]; it is then told in percent, and its differences in points."""

    @property
    def unit(self) -> str:
        """What follows a value: `` %`` or nothing."""
        return " %" if self.is_fraction else ""

    @property
    def difference_unit(self) -> str:
        """What follows a difference of two values: `` points`` or nothing."""
        return " points" if self.is_fraction else ""

    def shown(self, value: float) -> float:
        """Return a value as people read it: a fraction in percent.

        >>> METRICS["error_rate"].shown(0.034), METRICS["loss"].shown(0.1)
        (3.4, 0.1)
        """
        return 100 * value if self.is_fraction else value


_TABLE = (
    MetricKind("error_rate", "error", is_fraction=True),
    MetricKind("top5_error_rate", "top-5 error", is_fraction=True),
    MetricKind("loss", "cross-entropy", is_fraction=False),
)

METRICS: dict[str, MetricKind] = {metric.name: metric for metric in _TABLE}
"""Every metric by its name."""
