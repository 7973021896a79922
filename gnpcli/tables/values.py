"""The number that a run contributes to a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gnpcli.runs.contents import Record
from gnpcli.runs.folder import RunFolder
from gnpcli.runs.log import reached_epoch
from gnpcli.tables.schema import Metric


def final_value(run: RunFolder, metric: Metric) -> float | None:
    """Return the metric of a finished run, error rates in percent; None where it has none.

    Of a run whose ``metrics.jsonl`` is damaged the best value is that of the part before the
    damage.
    """
    evaluation: Mapping[str, object] = run.summary().get(metric.split, {})
    last = evaluation.get(metric.name)
    if not isinstance(last, int | float):
        return None
    if metric.at == "last":
        return metric.kind.shown(last)
    return metric.kind.shown(min([last, *_evaluations(run.records(), metric)]))


def latest_value(run: RunFolder, metric: Metric) -> tuple[float | None, float | None]:
    """Return the epoch that a run has reached and the latest value of the metric.

    Each is None before the first.
    """
    records = run.records()
    values = _evaluations(records, metric)
    value = metric.kind.shown(values[-1]) if values else None
    return reached_epoch(records), value


def _evaluations(records: Sequence[Record], metric: Metric) -> list[float]:
    """Return the metric of every evaluation of its split, in the order of the log."""
    values = [record.get(metric.name) for record in records if record["split"] == metric.split]
    return [value for value in values if value is not None]
