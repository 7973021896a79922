"""The HTML page of a result: values, verdicts, deviations and learning curves, in one file."""

from __future__ import annotations

import html
from collections.abc import Sequence

from gnpcli.report.charts import learning_curves
from gnpcli.report.page import document, table, warnings
from gnpcli.tables.report import TableReport, TextGrid
from gnpcli.tables.results import TableResult


def to_html(report: TableReport, result: TableResult) -> str:
    """Return ``table.html``, which needs nothing but a browser.

    Raises:
        DataError: As of `learning_curves`.
    """
    verdicts, deviations, *others = report.lists
    parts = [_header(report), warnings(result.damage), _grid(report.values)]
    parts.append(_section(verdicts[0], _verdicts(result) or _paragraph(verdicts[1][0])))
    if report.differences.rows:
        parts.append(_section("Differences", _grid(report.differences)))
    parts.append(_section(deviations[0], _list(deviations[1])))
    parts += _curves(result)
    parts += [_section(heading, _list(lines)) for heading, lines in others]
    return document(report.title, "".join(parts))


def _header(report: TableReport) -> str:
    title, about = html.escape(report.title), html.escape(report.about)
    return f"<header><h1>{title}</h1><p class=sub>{about}</p></header>\n"


def _grid(grid: TextGrid) -> str:
    title = f"<p class=sub>{html.escape(grid.title)}</p>\n"
    return title + table(grid.header, grid.rows, numbers=sorted(grid.numbers))


def _section(heading: str, body: str) -> str:
    return f"<section><h2>{html.escape(heading)}</h2>\n{body}</section>\n"


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>\n"


def _verdicts(result: TableResult) -> str:
    """Return a line for each comparison, with its verdict as a badge."""
    items = []
    for comparison in result.comparisons:
        verdict = comparison.verdict
        kind = "badge bad" if verdict == "not reproduced" else "badge"
        sentence = html.escape(comparison.sentence.removesuffix(f": {verdict}"))
        items.append(f'<p><span class="{kind}">{verdict}</span> {sentence}</p>\n')
    return "".join(items)


def _list(lines: Sequence[str]) -> str:
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>\n"


def _curves(result: TableResult) -> list[str]:
    """Return the curves of each row: its columns, each with a band over its seeds."""
    sections = []
    for row in result.rows:
        groups = {}
        for column in result.columns:
            folders = [run.folder for run in result.cells[row, column].runs if run.epoch]
            if folders:
                groups[result.table.label("columns", column)] = folders
        curves = learning_curves(groups)
        if curves:
            sections.append(_section(f"Curves, {result.table.label('rows', row)}", curves))
    return sections
