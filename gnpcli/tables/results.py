"""What finished cells say: values, differences with intervals, verdicts, deviations.

Reads run folders and nothing else, so that a result can be told again at any time, anywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gnpcli.config.schema import RunConfig
from gnpcli.runs.contents import Session, Status, Summary
from gnpcli.runs.folder import RunFolder
from gnpcli.runs.log import reached_epoch, training_time_s
from gnpcli.tables.cells import find_runs, run_dir
from gnpcli.tables.comparable import check_alike, check_comparable
from gnpcli.tables.copies import data_copies
from gnpcli.tables.deviations import deviation_text, deviations, variant_of
from gnpcli.tables.schema import Claim
from gnpcli.tables.spec import Place, Table
from gnpcli.tables.statistics import Interval, Sample, interval, paired, summarize
from gnpcli.tables.values import final_value
from gnpcli.tables.verdicts import Verdict, judge


@dataclass(frozen=True)
class CellRun:
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
    runs: tuple[CellRun, ...]
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
    cells: dict[Place, CellResult]
    comparisons: tuple[Comparison, ...]
    deviations: tuple[str, ...]
    environment: tuple[str, ...]
    damage: tuple[str, ...]
    """Which files of its runs were left out, or read in part only."""


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
    cells: dict[Place, CellResult] = {}
    configs: dict[Place, RunConfig] = {}
    for place, folders in _find_folders(rows, columns, seeds, out).items():
        own = {seed: RunFolder(folder).config() for seed, folder in folders.items()}
        check_alike(table, place, own)
        if own:
            configs[place] = next(iter(own.values()))
        cells[place] = _cell(table, place, folders, damage.append)
    variant = variant_of(table, configs.values())
    check_comparable(table, configs, variant)
    told = [deviation_text(each, table, configs) for each in deviations(table, configs)]
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


def _find_folders(
    rows: Sequence[str], columns: Sequence[str], seeds: Sequence[int] | None, out: Path
) -> dict[Place, dict[int, Path]]:
    """Return the run folders of each cell by seed, row by row; no folders for a cell not begun."""
    folders: dict[Place, dict[int, Path]] = {
        (row, column): {} for row in rows for column in columns
    }
    for row, column, seed in find_runs(out):
        is_wanted = seeds is None or seed in seeds
        if is_wanted and (row, column) in folders:
            folders[row, column][seed] = run_dir(out, row, column, seed)
    return folders


def _cell(
    table: Table, place: Place, folders: Mapping[int, Path], on_damage: Callable[[str], None]
) -> CellResult:
    runs = [_run(table, place, seed, folder, on_damage) for seed, folder in folders.items()]
    values = [run.value for run in runs if run.value is not None]
    published = table.published_value(*place)
    to_published = None
    if values and published is not None:
        to_published = interval([value - published for value in values])
    return CellResult(
        row=place[0],
        column=place[1],
        runs=tuple(runs),
        sample=summarize(values) if values else None,
        published=published,
        to_published=to_published,
    )


def _run(
    table: Table, place: Place, seed: int, folder: Path, on_damage: Callable[[str], None]
) -> CellRun:
    run = RunFolder(folder, on_damage)
    summary, records = run.summary(), run.records()
    is_finished = summary["status"] == "finished"
    return CellRun(
        row=place[0],
        column=place[1],
        seed=seed,
        folder=folder,
        status=summary["status"],
        value=final_value(run, table.spec.metric) if is_finished else None,
        epoch=reached_epoch(records) or 0.0,
        training_time_s=training_time_s(records),
        summary=summary,
        sessions=tuple(run.sessions()),
    )


def _comparisons(
    table: Table,
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Mapping[Place, CellResult],
) -> list[Comparison]:
    """Compare columns in every row where both have runs of the same seed."""
    claims = {frozenset((claim.better, claim.than)): claim for claim in table.spec.claims}
    found = []
    for row in rows:
        for column, against in _pairs(table, columns):
            values, others = cells[row, column].values, cells[row, against].values
            differences = paired(values, others)
            if differences:
                claim = claims.get(frozenset((column, against)))
                found.append(_compare(table, row, (column, against), differences, claim))
    return found


def _pairs(table: Table, columns: Sequence[str]) -> list[tuple[str, str]]:
    """Return every column with the baseline, and the columns of each claim, where both are told."""
    baseline = table.spec.baseline
    pairs = [(column, baseline) for column in columns if column != baseline]
    for claim in table.spec.claims:
        if baseline not in (claim.better, claim.than):
            pairs.append((claim.better, claim.than))
    return [pair for pair in pairs if set(pair) <= set(columns)]


def _compare(
    table: Table,
    row: str,
    pair: tuple[str, str],
    differences: Sequence[float],
    claim: Claim | None,
) -> Comparison:
    ours, theirs = (table.published_value(row, column) for column in pair)
    published = None if ours is None or theirs is None else ours - theirs
    difference = interval(differences)
    verdict, sentence = judge(table, row, pair, difference, published, claim)
    return Comparison(row, *pair, difference, published, claim, verdict, sentence)


def _environments(runs: Iterable[CellRun]) -> list[str]:
    """Return what the runs ran on: a line for each kind of session, and how many there were."""
    sessions: Counter[str] = Counter()
    for run in runs:
        sessions.update(_environment(session) for session in run.sessions)
    return [f"{line} ({count} session(s))" for line, count in sessions.most_common()]


def _environment(session: Session) -> str:
    devices = Counter(session.get("devices", []))
    hardware = ", ".join(f"{count} x {kind}" for kind, count in devices.items())
    hardware = hardware or "unknown devices"
    processor = session.get("processor")
    if processor:
        hardware += f" ({processor})"
    versions = session.get("versions", {}).items()
    parts = [
        hardware,
        f"{session.get('platform')}",
        f"Python {session.get('python')}",
        ", ".join(f"{name} {version}" for name, version in versions if version),
        f"commit {session.get('git_commit') or 'unknown'}",
    ]
    return "; ".join(parts)
