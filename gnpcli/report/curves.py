"""The curves of a panel, drawn on a pair of axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from gnpcli.report.bands import Band, Group, Spread, band
from gnpcli.report.metrics import Curve, Panel
from gnpcli.report.palette import COLOURS, MUTED
from gnpcli.runs.history import XAxis

Dash = Literal["solid"] | tuple[float, tuple[float, ...]]
"""A line style of matplotlib: solid, or an offset and the lengths of dashes and gaps."""

_DASHES: tuple[Dash, ...] = ("solid", (0, (4, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)))

_AXIS_LABELS: dict[XAxis, str] = {"step": "step", "epoch": "epoch", "time": "training time (s)"}

_ONE_TICK = (1.0,)
_THREE_TICKS = (1.0, 2.0, 5.0)
"""Ticks of each decade."""
_SHORT_RATIO = 1000
"""Of the largest to the smallest value. Below it a decade has room for more than one tick."""
_SMALLEST = 1e-100
"""Values below it count as 0 on a logarithmic axis."""
_MARGIN = 1.3
"""Factor between the values and the edges of a logarithmic panel."""


@dataclass(frozen=True, eq=False)
class Line:
    """The band of one curve of one group, and how it is drawn."""

    group: int
    """Index of the group."""
    curve: Curve
    colour: str
    dash: Dash
    band: Band


def lines_of(groups: Sequence[Group], panel: Panel, axis: XAxis, spread: Spread) -> list[Line]:
    """Return the lines of a panel, those of each group together.

    Colours tell groups apart, and dashes tell curves apart. Where there is only one group, colours
    tell its curves apart too.
    """
    several = len(groups) > 1
    found = []
    for index, group in enumerate(groups):
        for number, curve in enumerate(panel.curves):
            drawn = band(group, curve, axis, spread)
            if drawn is None:
                continue
            colour = group_colour(index if several else number)
            # The last curve of a panel is the evaluated one. It is what is compared: it is solid.
            dash = _DASHES[(len(panel.curves) - 1 - number) % len(_DASHES)]
            found.append(Line(index, curve, colour, dash, drawn))
    return found


def group_colour(index: int) -> str:
    """Return the colour of a group by its index; it repeats where there are too many groups."""
    return COLOURS[index % len(COLOURS)][0]


def curve_keys(groups: Sequence[Group], lines: Sequence[Line]) -> list[tuple[str, str, Dash]]:
    """Return label, colour and dash of each curve for the key of a panel.

    The list is empty where the panel has a single curve. The colour is neutral where colours tell
    groups apart.
    """
    by_curve = {line.curve: line for line in lines}
    if len(by_curve) < 2:
        return []
    several = len(groups) > 1
    return [
        (curve.label, MUTED if several else line.colour, line.dash)
        for curve, line in by_curve.items()
    ]


def scale_of(panel: Panel) -> float:
    """Return the factor from a value to what the panel shows of it."""
    return 100.0 if panel.is_percent else 1.0


def draw(axes: Axes, panel: Panel, lines: Sequence[Line], axis: XAxis) -> None:
    """Draw the lines of a panel: means, bands, scale and the label of the x axis."""
    scale = scale_of(panel)
    is_evaluated = any(line.curve.split != "train" for line in lines)
    for line in lines:
        is_faint = is_evaluated and line.curve.split == "train"
        _draw_line(axes, line, scale, is_faint)
    if panel.is_log:
        _set_log_scale(axes, _finite_means(lines, scale))
    axes.set_xlabel(_AXIS_LABELS[axis])


def _draw_line(axes: Axes, line: Line, scale: float, is_faint: bool) -> None:
    drawn = line.band
    axes.plot(
        drawn.x,
        scale * drawn.mean,
        color=line.colour,
        linestyle=line.dash,
        linewidth=0.9 if is_faint else 1.5,
        marker="o" if len(drawn.x) == 1 else None,
        markersize=3,
    )
    if drawn.num_runs > 1:
        low, high = scale * drawn.low, scale * drawn.high
        alpha = 0.1 if is_faint else 0.2
        axes.fill_between(drawn.x, low, high, color=line.colour, alpha=alpha, linewidth=0)


def _finite_means(lines: Sequence[Line], scale: float) -> list[float]:
    means = [scale * value for line in lines for value in line.band.mean.tolist()]
    return [value for value in means if math.isfinite(value)]


def _set_log_scale(axes: Axes, values: Sequence[float]) -> None:
    """Make the y axis logarithmic, unless a value is negative or none is positive."""
    positive = [value for value in values if value > _SMALLEST]
    if not positive or min(values) < 0:
        return
    lowest, highest = min(positive), max(positive)
    # A value of 0, such as the error of a small batch, falls out of the panel at its lower edge.
    axes.set_yscale("log", nonpositive="clip")
    axes.set_ylim(lowest / _MARGIN, highest * _MARGIN)
    ticks = _THREE_TICKS if highest < _SHORT_RATIO * lowest else _ONE_TICK
    axes.yaxis.set_major_locator(LogLocator(subs=ticks))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
