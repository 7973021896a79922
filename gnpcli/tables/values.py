"""The number that a run contributes to a table."""

from __future__ import annotations

from pathlib import Path

from gnpcli.runs.folder import METRICS
from gnpcli.runs.log import Record, read_metrics
from gnpcli.tables.cells import read_summary
from gnpcli.tables.spec import Metric


def is_percentage(metric: Metric) -> bool:
    """Return whether the metric is told in percent, and its differences in points."""
    return metric.name.endswith("error_rate")


def scaled(metric: Metric, value: float) -> float:
    """Return a value as people read it."""
    return 100 * value if is_percentage(metric) else value


def final_value(run_dir: Path, metric: Metric) -> float | None:
    """Return the metric of a finished run, error rates in percent; None where it has none.

    Of a run whose ``metrics.jsonl`` is damaged the best value is that of the part before the
    damage.
    """
    last = read_summary(run_dir).get(metric.split, {}).get(metric.name)
    if metric.at == "last" or last is None:
        return None if last is None else scaled(metric, last)
    values = [value for _, value in _evaluations(read_metrics(run_dir / METRICS), metric)]
    return scaled(metric, min([last, *values]))


def latest_value(run_dir: Path, metric: Metric) -> tuple[float | None, float | None]:
    """Return the epoch that a run has reached and the latest value of the metric, each None before
    the first.
    """
    records = read_metrics(run_dir / METRICS)
    values = _evaluations(records, metric)
    return records[-1].get("epoch") if records else None, scaled(
        metric, values[-1][1]
    ) if values else None


def _evaluations(records: list[Record], metric: Metric) -> list[tuple[int, float]]:
    found = (
        (record["step"], record.get(metric.name))
        for record in records
        if record["split"] == metric.split
    )
    return [(step, value) for step, value in found if value is not None]
