"""The HTML page of a result: values, verdicts, deviations and learning curves, in one file."""

from __future__ import annotations

import html

from gnpcli.report.charts import learning_curves
from gnpcli.report.page import document, table, warnings
from gnpcli.tables.report import Grid, Report
from gnpcli.tables.results import TableResult


def to_html(report: Report, result: TableResult) -> str:
    """Return ``table.html``, which needs nothing but a browser.

    Raises:
        DataError: As of `learning_curves`.
    """
    verdicts, deviations, *rest = report.lists
    parts = [
        f"<header><h1>{html.escape(report.title)}</h1><p "
        f"class=sub>{html.escape(report.about)}</p></header>\n",
        warnings(result.damage),
        _grid(report.values),
        _section(verdicts[0], _verdicts(result) or f"<p>{html.escape(verdicts[1][0])}</p>\n"),
        _section("Differences", _grid(report.differences)) if report.differences.rows else "",
        _section(deviations[0], _list(deviations[1])),
        *_curves(result),
        *(_section(heading, _list(lines)) for heading, lines in rest),
    ]
    return document(report.title, "".join(parts))


def _grid(grid: Grid) -> str:
    title = f"<p class=sub>{html.escape(grid.title)}</p>\n"
    return title + table(grid.header, grid.rows, numbers=sorted(grid.numbers))


def _section(heading: str, body: str) -> str:
    return f"<section><h2>{html.escape(heading)}</h2>\n{body}</section>\n"


def _verdicts(result: TableResult) -> str:
    items = []
    for comparison in result.comparisons:
        kind = "badge bad" if comparison.verdict == "not reproduced" else "badge"
        sentence = comparison.sentence.removesuffix(f": {comparison.verdict}")
        items.append(
            f'<p><span class="{kind}">{comparison.verdict}</span> {html.escape(sentence)}</p>\n'
        )
    return "".join(items)


def _list(lines: tuple[str, ...]) -> str:
    return f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in lines)}</ul>\n"


def _curves(result: TableResult) -> list[str]:
    """Return the curves of each row: its columns, each with a band over its seeds."""
    sections = []
    for row in result.rows:
        groups = {
            result.table.label("columns", column): [
                run.folder for run in result.cells[row, column].runs if run.epoch
            ]
            for column in result.columns
        }
        if curves := learning_curves(
            {label: folders for label, folders in groups.items() if folders}
        ):
            sections.append(_section(f"Curves, {result.table.label('rows', row)}", curves))
    return sections
