"""What finished cells say: a value per cell, differences with intervals, verdicts, deviations, what
it ran on.

Reads run folders and nothing else, so that a result can be told again at any time, anywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from gnpcli.config import RunConfig
from gnpcli.runs.contents import Session, Status, Summary
from gnpcli.runs.folder import RunFolder
from gnpcli.runs.log import reached_epoch, training_time_s
from gnpcli.tables.cells import find_runs, run_dir
from gnpcli.tables.deviations import (
    check_alike,
    check_comparable,
    data_copies,
    deviations,
    tell,
    variant_of,
)
from gnpcli.tables.spec import Claim, Table
from gnpcli.tables.statistics import Interval, Sample, describe, interval, paired
from gnpcli.tables.values import final_value, is_percentage

Verdict = Literal["reproduced", "not reproduced", "not decided", "no claim"]


@dataclass(frozen=True)
class Run:
    """One run of a cell."""

    row: str
    column: str
    seed: int
    folder: Path
    status: Status
    value: float | None
    """The metric, error rates in percent; None unless finished."""
    epoch: float
    """How far its log goes; 0 before the first record."""
    training_time_s: float
    """Wall time of all its sessions."""
    summary: Summary = field(repr=False)
    sessions: tuple[Session, ...] = field(repr=False)


@dataclass(frozen=True)
class CellResult:
    """The runs of one row and column."""

    row: str
    column: str
    runs: tuple[Run, ...]
    sample: Sample | None
    """Over the finished runs; None without any."""
    published: float | None
    to_published: Interval | None
    """Ours less the published value, and the one-sample interval of that mean."""

    @property
    def values(self) -> dict[int, float]:
        """The value of each finished run by its seed."""
        return {run.seed: run.value for run in self.runs if run.value is not None}


@dataclass(frozen=True)
class Comparison:
    """Two columns of a row, paired by seed."""

    row: str
    column: str
    against: str
    difference: Interval
    """`column` less `against`: below 0 where `column` is better."""
    published: float | None
    """The same difference of the published values."""
    claim: Claim | None
    """What is said about these two columns without a number."""
    verdict: Verdict
    sentence: str


@dataclass(frozen=True)
class TableResult:
    """A table's cells with all that can be said about them."""

    table: Table
    variant: str | None
    """The one that its runs were run in."""
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: dict[tuple[str, str], CellResult]
    comparisons: tuple[Comparison, ...]
    deviations: tuple[str, ...]
    environment: tuple[str, ...]
    damage: tuple[str, ...]
    """Which files of its runs were left out, or read in part only."""

    @property
    def is_complete(self) -> bool:
        """Whether every run that was begun is finished, and every cell has one."""
        return all(
            cell.sample is not None and len(cell.values) == len(cell.runs)
            for cell in self.cells.values()
        )


def collect(
    table: Table,
    rows: Sequence[str],
    columns: Sequence[str],
    seeds: Sequence[int] | None,
    out: Path,
) -> TableResult:
    """Read the run folders of a table.

    Args:
        table: The table.
        rows: Rows to tell.
        columns: Columns to tell.
        seeds: Seeds to tell; None tells every one that has a folder.
        out: Folder of the table's results.

    Raises:
        ConfigError: Runs of one cell that differ in more than the seed, or columns run on other
            data or for another number of epochs: they are not averaged or compared.
    """
    damage: list[str] = []
    cells: dict[tuple[str, str], CellResult] = {}
    configs: dict[tuple[str, str], RunConfig] = {}
    there = [run for run in find_runs(out) if seeds is None or run[2] in seeds]
    for row in rows:
        for column in columns:
            folders = {
                seed: run_dir(out, row, column, seed)
                for *place, seed in there
                if place == [row, column]
            }
            own = {seed: RunFolder(folder).config() for seed, folder in folders.items()}
            check_alike(table, (row, column), own)
            if own:
                configs[row, column] = next(iter(own.values()))
            runs = [
                _run(table, row, column, seed, folder, damage.append)
                for seed, folder in folders.items()
            ]
            cells[row, column] = _cell(table, row, column, runs)
    variant = variant_of(table, configs.values())
    check_comparable(table, configs, variant)
    told = [tell(deviation, table, configs) for deviation in deviations(table, configs)]
    return TableResult(
        table=table,
        variant=variant,
        rows=tuple(rows),
        columns=tuple(columns),
        cells=cells,
        comparisons=tuple(_comparisons(table, rows, columns, cells)),
        deviations=(*told, *data_copies(configs.values())),
        environment=tuple(_environments(run for cell in cells.values() for run in cell.runs)),
        damage=tuple(damage),
    )


def _run(
    table: Table, row: str, column: str, seed: int, folder: Path, on_damage: Callable[[str], None]
) -> Run:
    run = RunFolder(folder, on_damage)
    summary, records = run.summary(), run.records()
    is_finished = summary["status"] == "finished"
    return Run(
        row=row,
        column=column,
        seed=seed,
        folder=folder,
        status=summary["status"],
        value=final_value(run, table.spec.metric) if is_finished else None,
        epoch=reached_epoch(records) or 0.0,
        training_time_s=training_time_s(records),
        summary=summary,
        sessions=tuple(run.sessions()),
    )


def _cell(table: Table, row: str, column: str, runs: Sequence[Run]) -> CellResult:
    values = [run.value for run in runs if run.value is not None]
    published = table.published_value(row, column)
    return CellResult(
        row=row,
        column=column,
        runs=tuple(runs),
        sample=describe(values) if values else None,
        published=published,
        to_published=interval([value - published for value in values])
        if values and published is not None
        else None,
    )


def _comparisons(
    table: Table,
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Mapping[tuple[str, str], CellResult],
) -> list[Comparison]:
    """Compare every column with the baseline, and the columns of each claim, in every row where
    both have runs.
    """
    spec = table.spec
    claims = {frozenset((claim.better, claim.than)): claim for claim in spec.claims}
    pairs = [(column, spec.baseline) for column in columns if column != spec.baseline]
    pairs += [(c.better, c.than) for c in spec.claims if spec.baseline not in (c.better, c.than)]
    found = []
    for row in rows:
        for column, against in pairs:
            if column not in columns or against not in columns:
                continue
            differences = paired(cells[row, column].values, cells[row, against].values)
            if not differences:
                continue
            ours, theirs = table.published_value(row, column), table.published_value(row, against)
            published = None if ours is None or theirs is None else ours - theirs
            difference, claim = interval(differences), claims.get(frozenset((column, against)))
            verdict, sentence = judge(table, row, (column, against), difference, published, claim)
            found.append(
                Comparison(row, column, against, difference, published, claim, verdict, sentence)
            )
    return found


def judge(
    table: Table,
    row: str,
    pair: tuple[str, str],
    difference: Interval,
    published: float | None,
    claim: Claim | None,
) -> tuple[Verdict, str]:
    """Return a verdict on one comparison, and the sentence that says it.

    What is said to be so, by the sign of the published difference or else by the claim, is
    *reproduced* if the interval lies on the same side of 0, *not reproduced* if it lies on the
    other, and *not decided* if it includes 0 or if there is one seed only.

    Args:
        table: For labels and units.
        row: The row.
        pair: Column, and what it is compared with.
        difference: The first less the second.
        published: The published difference; None where there is none.
        claim: What is said about the two without a number.
    """
    column, against = (table.label("columns", name) for name in pair)
    unit = " points" if is_percentage(table.spec.metric) else ""
    size = f"{abs(difference.mean):.2f}{unit}"
    if difference.half_width is not None:
        size = f"{abs(difference.mean):.2f} ± {difference.half_width:.2f}{unit}"
    verb = "beats" if difference.mean < 0 else "loses to"
    where = table.label("rows", row)
    if published:
        expected, says = published, f"{published:+.2f} published"
    elif claim is not None:
        expected = -1.0 if claim.better == pair[0] else 1.0
        says = f"{claim.source} says {table.label('columns', claim.better)} is better"
    else:
        expected, says = 0.0, "no published difference to hold it against"
    if difference.mean == 0:
        sentence = f"{column} and {against} are equal on {where}"
    else:
        sentence = f"{column} {verb} {against} by {size} on {where}"
    if difference.half_width is None:
        return "not decided", f"{sentence} (one seed, no interval; {says}): not decided"
    if not difference.excludes_zero:
        return "not decided", f"{sentence} ({says}): not decided, the interval includes 0"
    if not expected:
        return "no claim", f"{sentence} ({says})"
    agrees = (difference.mean < 0) == (expected < 0)
    verdict: Verdict = "reproduced" if agrees else "not reproduced"
    return verdict, f"{sentence} ({says}): {verdict}"


def _environments(runs: Iterable[Run]) -> list[str]:
    """Return what the runs ran on, one line for each kind of session, with how many sessions it
    was.
    """
    sessions: Counter[str] = Counter()
    for run in runs:
        sessions.update(_environment(session) for session in run.sessions)
    return [f"{line} ({count} session(s))" for line, count in sessions.most_common()]


def _environment(session: Session) -> str:
    devices = Counter(session.get("devices", []))
    hardware = (
        ", ".join(f"{count} x {kind}" for kind, count in devices.items()) or "unknown devices"
    )
    processor = session.get("processor")
    versions = ", ".join(
        f"{name} {version}" for name, version in session.get("versions", {}).items() if version
    )
    return (
        f"{hardware}{f' ({processor})' if processor else ''}; {session.get('platform')}; Python "
        f"{session.get('python')}; {versions}; commit {session.get('git_commit') or 'unknown'}"
    )


def to_dict(result: TableResult) -> dict[str, Any]:
    """Return a result as JSON types: ``table.json``."""
    table, spec = result.table, result.table.spec
    return {
        "table": table.name,
        "title": spec.title,
        "variant": result.variant,
        "metric": spec.metric.model_dump(),
        "unit": "percent" if is_percentage(spec.metric) else "",
        "baseline": spec.baseline,
        "published_source": spec.published.source if spec.published else None,
        "cells": [
            {
                "row": cell.row,
                "column": cell.column,
                "n": cell.sample.n if cell.sample else 0,
                "mean": cell.sample.mean if cell.sample else None,
                "std": cell.sample.std if cell.sample else None,
                "published": cell.published,
                "to_published": _interval(cell.to_published),
                "runs": [
                    {
                        "seed": run.seed,
                        "status": run.status,
                        "value": run.value,
                        "epoch": run.epoch,
                        "steps": run.summary.get("step"),
                        "training_time_s": run.training_time_s,
                        "images_per_s": run.summary.get("images_per_s"),
                    }
                    for run in cell.runs
                ],
            }
            for cell in result.cells.values()
        ],
        "comparisons": [
            {
                **asdict(comparison),
                "difference": _interval(comparison.difference),
                "claim": comparison.claim.model_dump() if comparison.claim else None,
            }
            for comparison in result.comparisons
        ],
        "deviations": list(result.deviations),
        "unknown": list(spec.published.unknown) if spec.published else [],
        "notes": list(spec.notes),
        "environment": list(result.environment),
        "damage": list(result.damage),
    }


def _interval(interval: Interval | None) -> dict[str, Any] | None:
    if interval is None:
        return None
    return {"n": interval.n, "mean": interval.mean, "low": interval.low, "high": interval.high}
