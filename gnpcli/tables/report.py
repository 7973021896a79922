"""A result in words: what is said is put together once, for every format."""

from __future__ import annotations

from dataclasses import dataclass

from gnpcli.tables.results import CellResult, CellRun, Comparison, TableResult
from gnpcli.tables.statistics import CONFIDENCE, Interval
from gnpcli.terminal.words import NOTHING, rough_percent, spread


@dataclass(frozen=True)
class TextGrid:
    """Texts in rows and columns, for every format."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: frozenset[int]
    """Columns that are set to the right."""


@dataclass(frozen=True)
class TableReport:
    """All that is said about a result."""

    title: str
    about: str
    values: TextGrid
    differences: TextGrid
    lists: tuple[tuple[str, tuple[str, ...]], ...]
    """Heading and sentences, in order; none is empty.

    Verdicts and deviations, which are always there, come first.
    """


def make_report(result: TableResult) -> TableReport:
    """Put into words what a result says."""
    spec, variant = result.table.spec, result.variant
    about = [_metric(result)]
    if variant is not None:
        about.append(f"variant {variant}: {spec.variants[variant].about}")
    return TableReport(
        title=spec.title,
        about="; ".join(about),
        values=_values(result),
        differences=_differences(result),
        lists=_lists(result),
    )


def _metric(result: TableResult) -> str:
    metric = result.table.spec.metric
    unit = f" in{metric.kind.unit}" if metric.kind.unit else ""
    when = "after the last step" if metric.at == "last" else "lowest of all evaluations"
    return f"{metric.split} {metric.kind.words}{unit}, {when}, lower is better"


def _lists(result: TableResult) -> tuple[tuple[str, tuple[str, ...]], ...]:
    spec = result.table.spec
    recipe = "the published recipe" if spec.published else "the table's own recipe"
    verdicts = [comparison.sentence for comparison in result.comparisons]
    lists = [
        ("Verdicts", verdicts or ["nothing to compare yet"]),
        (
            f"Deviations from {recipe}",
            list(result.deviations) or ["none in any key that matters"],
        ),
        ("Not known of the published recipe", spec.published.unknown if spec.published else []),
        ("Notes", spec.notes),
        ("Runs without a value", _without_value(result)),
        ("Damaged logs", result.damage),
        ("How to read it", _how_to_read(result)),
        ("Ran on", result.environment),
    ]
    return tuple((heading, tuple(lines)) for heading, lines in lists if lines)


def _without_value(result: TableResult) -> list[str]:
    runs = [run for cell in result.cells.values() for run in cell.runs if run.value is None]
    return [
        f"{result.table.cell_label(run.row, run.column)} seed {run.seed}: {_why_no_value(run)}"
        for run in runs
    ]


def _why_no_value(run: CellRun) -> str:
    if run.status == "finished":
        return "finished, but nothing of this kind was measured"
    why = run.summary.get("error", f"{run.status}, epoch {run.epoch:g}")
    return " ".join(why.split())


def _how_to_read(result: TableResult) -> list[str]:
    level = rough_percent(CONFIDENCE)
    lines = [
        "± after a mean is the sample standard deviation over the seeds (n runs); after a "
        f"difference it is half the {level} confidence interval of Student's t, paired by seed "
        "between columns",
        "intervals are not corrected for their number: of twenty true differences of nothing, one "
        "is expected to look decided",
    ]
    published = result.table.spec.published
    if published is not None:
        runs = "their spread is not known"
        if published.seeds is not None:
            runs = f"each is the result of {published.seeds} run(s)"
        lines.append(f"published values: {published.source}; {runs}")
    return lines


def _values(result: TableResult) -> TextGrid:
    table = result.table
    header = ("", *(table.label("columns", column) for column in result.columns))
    rows = []
    for row in result.rows:
        texts = [cell_text(result.cells[row, column]) for column in result.columns]
        rows.append((table.label("rows", row), *texts))
    title = "mean ± standard deviation (n)"
    if any(cell.published is not None for cell in result.cells.values()):
        title += " [published]"
    return TextGrid(title, header, tuple(rows), frozenset(range(1, len(header))))


def cell_text(cell: CellResult) -> str:
    """Return mean, deviation, number and published value of a cell."""
    published = "" if cell.published is None else f" [{cell.published:.2f}]"
    sample = cell.sample
    if sample is None:
        return f"{NOTHING}{published}"
    return f"{spread(sample.mean, sample.std)} ({sample.n}){published}"


def _differences(result: TableResult) -> TextGrid:
    by_cell: dict[tuple[str, str], list[Comparison]] = {}
    for comparison in result.comparisons:
        by_cell.setdefault((comparison.row, comparison.column), []).append(comparison)
    rows = []
    for place, cell in result.cells.items():
        if cell.sample is not None:
            rows += _difference_rows(result, cell, by_cell.get(place, []))
    return TextGrid(
        "differences, below 0 where the column is better",
        ("", "", "to published", "against", "difference", "published", "verdict"),
        tuple(rows),
        frozenset({2, 4, 5}),
    )


def _difference_rows(
    result: TableResult, cell: CellResult, comparisons: list[Comparison]
) -> list[tuple[str, ...]]:
    """Return a line for each column that a cell is compared with.

    A cell that is compared with its published value alone has one line.
    """
    table = result.table
    first = (
        table.label("rows", cell.row),
        table.label("columns", cell.column),
        _signed(cell.to_published),
    )
    rows: list[tuple[str, ...]] = [
        (
            *first,
            table.label("columns", comparison.against),
            _signed(comparison.difference),
            NOTHING if comparison.published is None else f"{comparison.published:+.2f}",
            comparison.verdict,
        )
        for comparison in comparisons
    ]
    if not rows and cell.to_published is not None:
        return [(*first, NOTHING, NOTHING, NOTHING, NOTHING)]
    return rows


def _signed(interval: Interval | None) -> str:
    if interval is None:
        return NOTHING
    width = "" if interval.half_width is None else f" ± {interval.half_width:.2f}"
    return f"{interval.mean:+.2f}{width}"
