"""The number that a run contributes to a table."""

from __future__ import annotations

from gnpcli.runs.contents import Record
from gnpcli.runs.folder import RunFolder
from gnpcli.runs.log import reached_epoch
from gnpcli.tables.spec import Metric


def is_percentage(metric: Metric) -> bool:
    """Return whether the metric is told in percent, and its differences in points."""
    return metric.name.endswith("error_rate")


def scaled(metric: Metric, value: float) -> float:
    """Return a value as people read it."""
    return 100 * value if is_percentage(metric) else value


def final_value(run: RunFolder, metric: Metric) -> float | None:
    """Return the metric of a finished run, error rates in percent; None where it has none.

    Of a run whose ``metrics.jsonl`` is damaged the best value is that of the part before the
    damage.
    """
    last = run.summary().get(metric.split, {}).get(metric.name)
    if metric.at == "last" or last is None:
        return None if last is None else scaled(metric, last)
    values = [value for _, value in _evaluations(run.records(), metric)]
    return scaled(metric, min([last, *values]))


def latest_value(run: RunFolder, metric: Metric) -> tuple[float | None, float | None]:
    """Return the epoch that a run has reached and the latest value of the metric, each None before
    the first.
    """
    records = run.records()
    values = _evaluations(records, metric)
    value = scaled(metric, values[-1][1]) if values else None
    return reached_epoch(records), value


def _evaluations(records: list[Record], metric: Metric) -> list[tuple[int, float]]:
    found = (
        (record["step"], record.get(metric.name))
        for record in records
        if record["split"] == metric.split
    )
    return [(step, value) for step, value in found if value is not None]
