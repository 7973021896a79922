"""Learning curves as pictures and as HTML.

`picture` draws all panels as one figure. `inline_charts` draws one inline SVG a panel for a page.
Such an SVG has its points as JSON in ``data-chart``, from which `page.js` shows the values under
the pointer. Without the script it is a picture.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gnpcli.report.bands import Group, Spread, named_groups, panels_of
from gnpcli.report.curves import Dash, Line, curve_keys, draw, group_colour, lines_of, scale_of
from gnpcli.report.metrics import PANELS, Panel, choose_panels
from gnpcli.report.style import style
from gnpcli.report.svg import inline_svg, swatch, variable
from gnpcli.runs.history import Values, XAxis

_PANEL_SIZE = (4.2, 2.9)
"""Width and height of a panel of a picture, with its labels, in inches."""
_INLINE_SIZE = (3.9, 2.4)
"""Width and height of an inline SVG in inches."""
_POINTS_PER_INCH = 72


def picture(
    groups: Sequence[Group], panels: Sequence[Panel], axis: XAxis, spread: Spread, columns: int = 3
) -> Figure:
    """Draw the panels of several groups of runs as one figure, with a legend of the groups above.

    Args:
        groups: At least one. A single one is named in the place of the legend.
        panels: At least one.
        axis: What the curves are drawn over.
        spread: What a band shows.
        columns: Panels side by side, at most.
    """
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    several = len(groups) > 1
    head = _head_height(len(groups), columns)
    width, height = _PANEL_SIZE[0] * columns, _PANEL_SIZE[1] * rows + head
    with style():
        figure = Figure(figsize=(width, height))
        grid = _grid(width, height, head)
        places = figure.subplots(rows, columns, squeeze=False, gridspec_kw=grid).ravel()
        for axes, panel in zip(places, panels, strict=False):
            _draw_panel(axes, groups, panel, axis, spread)
        for axes in places[len(panels) :]:
            axes.remove()
        if several:
            _draw_legend(figure, groups, columns)
        else:
            figure.text(0.01, 1 - 0.05 / height, groups[0].title, va="top")
    return figure


def inline_charts(
    groups: Sequence[Group], panels: Sequence[Panel], axis: XAxis, spread: Spread
) -> str:
    """Draw the panels as HTML, an SVG and its key for each.

    A legend of the groups comes first, unless there is only one group.
    """
    legend = _html_legend(groups) if len(groups) > 1 else ""
    figures = [_inline(groups, panel, axis, spread) for panel in panels]
    return f'{legend}<div class="charts">\n{"".join(figures)}</div>\n'


def learning_curves(
    groups: Mapping[str, Sequence[Path]],
    *,
    metrics: Sequence[str] = ("loss", "error"),
    spread: Spread = "range",
) -> str:
    """Return the learning curves of named groups over epochs, as HTML for `page.document`.

    Args:
        groups: For each label the folders of its runs, one a seed: mean and band are over them.
        metrics: What `gnp plot --metrics` takes; those that no run has logged are left out.
        spread: What the bands show.

    Raises:
        ConfigError, DataError: As `bands.named_groups`; DataError also for an unknown metric.
    """
    read = named_groups(groups)
    if not read:
        return ""
    panels = panels_of(read)
    absent = {panel.name for panel in PANELS} - {panel.name for panel in panels}
    present = [name for name in metrics if name not in absent]
    return inline_charts(read, choose_panels(panels, present), "epoch", spread)


def spread_note(groups: Sequence[Group], spread: Spread) -> str:
    """Say in a sentence what lines and bands show; empty where every group is a single run."""
    if all(len(group.runs) == 1 for group in groups):
        return ""
    shown = "one standard deviation (n - 1) either way"
    if spread == "range":
        shown = "from the lowest to the highest seed"
    return f"Lines are means over seeds; bands reach {shown}."


def _head_height(num_groups: int, columns: int) -> float:
    """Return the inches above the panels: a legend with two groups a column, or a single title."""
    if num_groups == 1:
        return 0.25
    legend_rows = -(-num_groups // (2 * columns))
    return 0.2 * legend_rows + 0.1


def _grid(width: float, height: float, head: float) -> dict[str, float]:
    """Return the margins as fractions of the figure, and the gaps as fractions of a panel's axes.

    A layout engine would draw everything several times to find much the same.
    """
    return {
        "left": 0.62 / width,
        "right": 1 - 0.12 / width,
        "bottom": 0.5 / height,
        "top": 1 - (head + 0.3) / height,
        "wspace": 0.74 / 3.46,
        "hspace": 0.8 / 2.1,
    }


def _draw_panel(
    axes: Axes, groups: Sequence[Group], panel: Panel, axis: XAxis, spread: Spread
) -> None:
    """Draw one panel of a picture, with its title and the key of its curves."""
    lines = lines_of(groups, panel, axis, spread)
    draw(axes, panel, lines, axis)
    axes.set_title(panel.title)
    keys = curve_keys(groups, lines)
    if keys:
        handles = [_handle(colour, dash) for _, colour, dash in keys]
        axes.legend(handles, [label for label, _, _ in keys], loc="best")


def _draw_legend(figure: Figure, groups: Sequence[Group], columns: int) -> None:
    handles = [_handle(group_colour(index), "solid") for index in range(len(groups))]
    titles = [group.title for group in groups]
    figure.legend(handles, titles, loc="upper left", ncols=2 * columns, borderaxespad=0.2)


def _handle(colour: str, dash: Dash) -> Line2D:
    return Line2D([], [], color=colour, linestyle=dash)


def _html_legend(groups: Sequence[Group]) -> str:
    items = []
    for index, group in enumerate(groups):
        mark = swatch(group_colour(index), "solid")
        items.append(f"<li>{mark} {html.escape(group.title)}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>\n'


def _inline(groups: Sequence[Group], panel: Panel, axis: XAxis, spread: Spread) -> str:
    """Return one panel as HTML; empty where there is nothing to draw."""
    lines = lines_of(groups, panel, axis, spread)
    if not lines:
        return ""
    with style():
        figure = Figure(figsize=_INLINE_SIZE)
        axes = figure.add_axes((0.135, 0.165, 0.845, 0.805))
        draw(axes, panel, lines, axis)
        svg = inline_svg(figure, panel.title, _chart_data(axes, groups, panel, lines))
    key = "".join(
        f"<span>{swatch(colour, dash)} {html.escape(label)}</span>"
        for label, colour, dash in curve_keys(groups, lines)
    )
    title = f"<strong>{html.escape(panel.title)}</strong>"
    return f'<figure class="chart"><figcaption>{title}{key}</figcaption>{svg}</figure>\n'


def _chart_data(
    axes: Axes, groups: Sequence[Group], panel: Panel, lines: Sequence[Line]
) -> dict[str, Any]:
    """Return what the script of a page needs to show the values under the pointer.

    ``box`` is left, top, width and height of the axes in the units of the SVG, which are points.
    """
    width, height = (_POINTS_PER_INCH * side for side in _INLINE_SIZE)
    box = axes.get_position()
    return {
        "box": [box.x0 * width, (1 - box.y1) * height, box.width * width, box.height * height],
        "x": list(axes.get_xlim()),
        "y": list(axes.get_ylim()),
        "log": axes.get_yscale() == "log",
        "axis": axes.get_xlabel(),
        "series": [_series(groups, panel, line) for line in lines],
    }


def _series(groups: Sequence[Group], panel: Panel, line: Line) -> dict[str, Any]:
    """Return the points of a line as the panel shows them."""
    scale = scale_of(panel)
    series = {
        "name": _line_name(groups, panel, line),
        "colour": variable(line.colour),
        "x": _numbers(line.band.x),
        "y": _numbers(line.band.mean, scale),
    }
    if line.band.num_runs > 1:
        series["low"] = _numbers(line.band.low, scale)
        series["high"] = _numbers(line.band.high, scale)
    return series


def _line_name(groups: Sequence[Group], panel: Panel, line: Line) -> str:
    """Return the group where there are several, and the curve where there are several."""
    group, curve = groups[line.group].label, line.curve.label
    if len(groups) == 1:
        return curve
    return group if len(panel.curves) == 1 else f"{group} {curve}"


def _numbers(values: Values, scale: float = 1.0) -> list[float | None]:
    """Return values to 5 digits; None where one is not finite."""
    numbers: list[float | None] = []
    for value in values.tolist():
        is_finite = math.isfinite(value)
        numbers.append(float(f"{scale * value:.5g}") if is_finite else None)
    return numbers
