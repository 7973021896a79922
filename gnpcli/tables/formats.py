"""A result as Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from gnpcli.tables.report import TableReport, TextGrid
from gnpcli.tables.results import CellResult, CellRun, TableResult
from gnpcli.tables.statistics import Interval


def to_markdown(report: TableReport) -> str:
    """Return ``table.md``."""
    parts = [f"# {report.title}", f"{report.about}."]
    for grid in (report.values, report.differences):
        if grid.rows:
            parts += [f"**{grid.title}**", _markdown_grid(grid)]
    for heading, lines in report.lists:
        parts += [f"## {heading}", "\n".join(f"- {_escape_markdown(line)}" for line in lines)]
    return "\n\n".join(parts) + "\n"


def _markdown_grid(grid: TextGrid) -> str:
    rule = ["---:" if index in grid.numbers else "---" for index in range(len(grid.header))]
    return "\n".join(_markdown_line(line) for line in (grid.header, rule, *grid.rows))


def _markdown_line(texts: Iterable[str]) -> str:
    return f"| {' | '.join(text.replace('|', '&#124;') for text in texts)} |"


def _escape_markdown(text: str) -> str:
    return text.replace("*", "\\*").replace("_", "\\_")


def to_latex(report: TableReport) -> str:
    """Return ``table.tex``: the values as a table for ``\\usepackage{booktabs}``.

    All else is in comments.
    """
    grid = report.values
    columns = "".join("r" if index in grid.numbers else "l" for index in range(len(grid.header)))
    lines = [
        f"% {report.title}: {report.about}; {grid.title}",
        *(f"% {heading.lower()}: {line}" for heading, lines in report.lists for line in lines),
        f"\\begin{{tabular}}{{{columns}}}",
        "\\toprule",
        _latex_line(grid.header),
        "\\midrule",
        *map(_latex_line, grid.rows),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _latex_line(texts: Iterable[str]) -> str:
    return " & ".join(map(_escape_latex, texts)) + r" \\"


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
}


def _escape_latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


_COMPARISON_KEYS = (
    "against",
    "pairs",
    "difference",
    "difference_low",
    "difference_high",
    "published_difference",
    "verdict",
)


def to_csv(result: TableResult) -> str:
    """Return ``table.csv``: a line for every cell and column that it is compared with.

    Values of error rates are in percent, differences in points.
    """
    lines = []
    for cell in result.cells.values():
        comparisons = [
            {
                "against": comparison.against,
                "pairs": comparison.difference.n,
                **_ends("difference", comparison.difference),
                "published_difference": comparison.published,
                "verdict": comparison.verdict,
            }
            for comparison in result.comparisons
            if (comparison.row, comparison.column) == (cell.row, cell.column)
        ]
        nothing = dict.fromkeys(_COMPARISON_KEYS)
        lines += [_cell_line(cell) | comparison for comparison in comparisons or [nothing]]
    return _csv(lines)


def _cell_line(cell: CellResult) -> dict[str, object]:
    return {
        "row": cell.row,
        "column": cell.column,
        **_sample(cell),
        "published": cell.published,
        **_ends("to_published", cell.to_published),
    }


def _sample(cell: CellResult) -> dict[str, Any]:
    sample = cell.sample
    if sample is None:
        return {"n": 0, "mean": None, "std": None}
    return {"n": sample.n, "mean": sample.mean, "std": sample.std}


def _ends(name: str, interval: Interval | None) -> dict[str, float | None]:
    """Return mean, lower and upper end of an interval as three columns."""
    ends: tuple[float | None, ...] = (None, None, None)
    if interval is not None:
        ends = (interval.mean, interval.low, interval.high)
    return dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))


def to_runs_csv(result: TableResult) -> str:
    """Return ``runs.csv``: a line for every run, with what it cost."""
    return _csv(
        [
            {"row": run.row, "column": run.column, **_run(run)}
            for cell in result.cells.values()
            for run in cell.runs
        ]
    )


def _run(run: CellRun) -> dict[str, Any]:
    return {
        "seed": run.seed,
        "status": run.status,
        "value": run.value,
        "epoch": run.epoch,
        "steps": run.summary.get("step"),
        "training_time_s": run.training_time_s,
        "images_per_s": run.summary.get("images_per_s"),
    }


def _csv(lines: Sequence[dict[str, object]]) -> str:
    """Return lines of one kind as CSV; numbers have six digits."""
    text = io.StringIO()
    header = list(lines[0]) if lines else []
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({key: _csv_value(value) for key, value in line.items()})
    return text.getvalue()


def _csv_value(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value


def to_dict(result: TableResult) -> dict[str, Any]:
    """Return a result as JSON types: ``table.json``."""
    table, spec = result.table, result.table.spec
    return {
        "table": table.name,
        "title": spec.title,
        "variant": result.variant,
        "metric": spec.metric.model_dump(),
        "unit": "percent" if spec.metric.kind.is_fraction else "",
        "baseline": spec.baseline,
        "published_source": spec.published.source if spec.published else None,
        "cells": [_cell(cell) for cell in result.cells.values()],
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


def _cell(cell: CellResult) -> dict[str, Any]:
    return {
        "row": cell.row,
        "column": cell.column,
        **_sample(cell),
        "published": cell.published,
        "to_published": _interval(cell.to_published),
        "runs": [_run(run) for run in cell.runs],
    }


def _interval(interval: Interval | None) -> dict[str, Any] | None:
    if interval is None:
        return None
    return {"n": interval.n, "mean": interval.mean, "low": interval.low, "high": interval.high}
