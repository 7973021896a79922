"""A result as text: what is said is put together once, and set as Markdown, LaTeX or for a
terminal.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gnpcli.tables.results import CellResult, Comparison, Run, TableResult
from gnpcli.tables.statistics import CONFIDENCE, Interval
from gnpcli.tables.values import is_percentage

if TYPE_CHECKING:
    from rich.table import Table as RichTable

NOTHING = "-"
"""What an empty cell shows."""


@dataclass(frozen=True)
class Grid:
    """Texts in rows and columns."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: frozenset[int]
    """Columns that are set to the right."""


@dataclass(frozen=True)
class Report:
    """All that is said about a result."""

    title: str
    about: str
    values: Grid
    differences: Grid
    lists: tuple[tuple[str, tuple[str, ...]], ...]
    """Heading and sentences, in order; none is empty. Verdicts and deviations, which are always
    there, come first.
    """


def make_report(result: TableResult) -> Report:
    """Put into words what a result says."""
    spec = result.table.spec
    deviations_from = "the published recipe" if spec.published else "the table's own recipe"
    unfinished = [
        f"{result.table.label('rows', run.row)} {result.table.label('columns', run.column)} seed "
        f"{run.seed}: " + _why_no_value(run)
        for cell in result.cells.values()
        for run in cell.runs
        if run.value is None
    ]
    width = f"{100 * CONFIDENCE:g} %"
    reading = [
        "± after a mean is the sample standard deviation over the seeds (n runs); after a "
        "difference it is half the "
        f"{width} confidence interval of Student's t, paired by seed between columns",
        "intervals are not corrected for their number: of twenty true differences of nothing, one "
        "is expected to look "
        "decided",
    ]
    if spec.published:
        seeds = spec.published.seeds
        spread = (
            "their spread is not known"
            if seeds is None
            else f"each is the result of {seeds} run(s)"
        )
        reading.append(f"published values: {spec.published.source}; {spread}")
    lists = [
        (
            "Verdicts",
            [comparison.sentence for comparison in result.comparisons]
            or ["nothing to compare yet"],
        ),
        (
            f"Deviations from {deviations_from}",
            list(result.deviations) or ["none in any key that matters"],
        ),
        ("Not known of the published recipe", spec.published.unknown if spec.published else []),
        ("Notes", spec.notes),
        ("Runs without a value", unfinished),
        ("Damaged logs", result.damage),
        ("How to read it", reading),
        ("Ran on", result.environment),
    ]
    variant = result.variant
    about = [_metric(result)]
    if variant is not None:
        about.append(f"variant {variant}: {spec.variants[variant].about}")
    return Report(
        title=spec.title,
        about="; ".join(about),
        values=_values(result),
        differences=_differences(result),
        lists=tuple((heading, tuple(lines)) for heading, lines in lists if lines),
    )


def _why_no_value(run: Run) -> str:
    if run.status == "finished":
        return "finished, but nothing of this kind was measured"
    return " ".join(run.summary.get("error", f"{run.status}, epoch {run.epoch:g}").split())


def _metric(result: TableResult) -> str:
    metric = result.table.spec.metric
    name = {"error_rate": "error", "top5_error_rate": "top-5 error", "loss": "cross-entropy"}[
        metric.name
    ]
    when = "after the last step" if metric.at == "last" else "lowest of all evaluations"
    return (
        f"{metric.split} {name}{' in %' if is_percentage(metric) else ''}, {when}, lower is better"
    )


def _values(result: TableResult) -> Grid:
    table = result.table
    header = ("", *(table.label("columns", column) for column in result.columns))
    rows = tuple(
        (
            table.label("rows", row),
            *(cell_text(result.cells[row, column]) for column in result.columns),
        )
        for row in result.rows
    )
    published = any(cell.published is not None for cell in result.cells.values())
    title = "mean ± standard deviation (n)" + (" [published]" if published else "")
    return Grid(title, header, rows, frozenset(range(1, len(header))))


def cell_text(cell: CellResult) -> str:
    """Return mean, deviation, number and published value of a cell."""
    published = "" if cell.published is None else f" [{cell.published:.2f}]"
    sample = cell.sample
    if sample is None:
        return f"{NOTHING}{published}"
    spread = "" if sample.std is None else f" ± {sample.std:.2f}"
    return f"{sample.mean:.2f}{spread} ({sample.n}){published}"


def _differences(result: TableResult) -> Grid:
    table = result.table
    header = ("", "", "to published", "against", "difference", "published", "verdict")
    by_cell: dict[tuple[str, str], list[Comparison]] = {}
    for comparison in result.comparisons:
        by_cell.setdefault((comparison.row, comparison.column), []).append(comparison)
    rows = []
    for place, cell in result.cells.items():
        if cell.sample is None:
            continue
        names = (table.label("rows", cell.row), table.label("columns", cell.column))
        to_published = _signed(cell.to_published)
        comparisons = by_cell.get(place, [])
        if not comparisons and cell.to_published is not None:
            rows.append((*names, to_published, NOTHING, NOTHING, NOTHING, NOTHING))
        for comparison in comparisons:
            published = NOTHING if comparison.published is None else f"{comparison.published:+.2f}"
            against = table.label("columns", comparison.against)
            rows.append(
                (
                    *names,
                    to_published,
                    against,
                    _signed(comparison.difference),
                    published,
                    comparison.verdict,
                )
            )
    return Grid(
        "differences, below 0 where the column is better", header, tuple(rows), frozenset({2, 4, 5})
    )


def _signed(interval: Interval | None) -> str:
    if interval is None:
        return NOTHING
    width = "" if interval.half_width is None else f" ± {interval.half_width:.2f}"
    return f"{interval.mean:+.2f}{width}"


def to_markdown(report: Report) -> str:
    """Return ``table.md``."""
    parts = [f"# {report.title}", f"{report.about}."]
    for grid in (report.values, report.differences):
        if grid.rows:
            parts += [f"**{grid.title}**", _markdown_grid(grid)]
    for heading, lines in report.lists:
        parts += [f"## {heading}", "\n".join(f"- {_escape_markdown(line)}" for line in lines)]
    return "\n\n".join(parts) + "\n"


def _markdown_grid(grid: Grid) -> str:
    rule = ("---:" if index in grid.numbers else "---" for index in range(len(grid.header)))
    lines = (grid.header, tuple(rule), *grid.rows)
    return "\n".join(
        f"| {' | '.join(text.replace('|', '&#124;') for text in line)} |" for line in lines
    )


def _escape_markdown(text: str) -> str:
    return text.replace("*", "\\*").replace("_", "\\_")


def to_latex(report: Report) -> str:
    """Return ``table.tex``: the values as a table for ``\\usepackage{booktabs}``, the rest as
    comments.
    """
    grid = report.values
    columns = "".join("r" if index in grid.numbers else "l" for index in range(len(grid.header)))
    lines = [
        f"% {report.title}: {report.about}; {grid.title}",
        *(f"% {heading.lower()}: {line}" for heading, lines in report.lists for line in lines),
        f"\\begin{{tabular}}{{{columns}}}",
        "\\toprule",
        " & ".join(map(_escape_latex, grid.header)) + r" \\",
        "\\midrule",
        *(" & ".join(map(_escape_latex, row)) + r" \\" for row in grid.rows),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
}  # fmt: skip


def _escape_latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


def to_csv(result: TableResult) -> str:
    """Return ``table.csv``: a line for every cell and column that it is compared with; percent and
    points.
    """
    header = [
        "row", "column", "n", "mean", "std", "published", "to_published", "to_published_low", "to_published_high",
        "against", "pairs", "difference", "difference_low", "difference_high", "published_difference", "verdict",
    ]  # fmt: skip
    rows = []
    for cell in result.cells.values():
        sample, to_published = cell.sample, cell.to_published
        first = [
            cell.row, cell.column, sample.n if sample else 0, sample.mean if sample else None,
            sample.std if sample else None, cell.published, *_ends(to_published),
        ]  # fmt: skip
        own = [c for c in result.comparisons if (c.row, c.column) == (cell.row, cell.column)]
        rows += [
            [*first, c.against, c.difference.n, *_ends(c.difference), c.published, c.verdict]
            for c in own
        ] or [[*first, *([None] * 7)]]
    return _csv(header, rows)


def _ends(interval: Interval | None) -> tuple[float | None, float | None, float | None]:
    return (None, None, None) if interval is None else (interval.mean, interval.low, interval.high)


def to_runs_csv(result: TableResult) -> str:
    """Return ``runs.csv``: a line for every run, with what it cost."""
    header = [
        "row",
        "column",
        "seed",
        "status",
        "value",
        "epoch",
        "steps",
        "training_time_s",
        "images_per_s",
    ]
    rows = [
        [
            run.row, run.column, run.seed, run.status, run.value, run.epoch, run.summary.get("step"),
            run.training_time_s, run.summary.get("images_per_s"),
        ]
        for cell in result.cells.values()
        for run in cell.runs
    ]  # fmt: skip
    return _csv(header, rows)


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(
        [f"{value:.6g}" if isinstance(value, float) else value for value in row] for row in rows
    )
    return text.getvalue()


def to_rich(grid: Grid) -> RichTable:
    """Return a grid for a terminal."""
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(
        title=grid.title, title_justify="left", title_style="", box=None, pad_edge=False
    )
    for index, name in enumerate(grid.header):
        table.add_column(
            Text(name, style="bold"), justify="right" if index in grid.numbers else "left"
        )
    for row in grid.rows:
        table.add_row(*map(Text, row))
    return table
