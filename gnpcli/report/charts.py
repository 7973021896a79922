"""Curves drawn with matplotlib: one picture of all panels as PNG, SVG or PDF, or one inline SVG a
panel for a page.

An inline SVG has its colours as CSS variables (`page.style` gives them their light and dark values)
and its points as JSON in ``data-chart``, from which `page.js` shows the values under the
pointer; without either it is a picture.
"""

from __future__ import annotations

import hashlib
import html
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from gnpcli.errors import DataError
from gnpcli.report.bands import Band, Group, Spread, band, named_groups, panels_of
from gnpcli.report.metrics import PANELS, Curve, Panel, choose_panels
from gnpcli.report.palette import COLOURS, GRID, INK, MUTED
from gnpcli.runs.history import XAxis

FORMATS = (".png", ".svg", ".pdf")
"""What a picture's name may end in."""

AXIS_LABELS: dict[str, str] = {"step": "step", "epoch": "epoch", "time": "training time (s)"}

_DASHES = ("solid", (0, (4, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)))
_STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "gnp", "font.size": 8.5, "text.color": INK, "axes.edgecolor": MUTED,
    "axes.labelcolor": INK, "axes.titlesize": 9.5, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": GRID, "grid.linewidth": 0.7, "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK,
    "ytick.labelcolor": INK, "lines.linewidth": 1.4, "legend.frameon": False, "legend.fontsize": 8,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Line:
    """A band with its place in a legend."""

    group: int
    curve: Curve
    colour: str
    dash: Any
    band: Band


def style() -> AbstractContextManager[None]:
    """Return the context in which every picture here is made and saved: fonts, grid, reproducible
    SVG.
    """
    return matplotlib.rc_context(_STYLE)  # type: ignore[arg-type]


def check_out(path: Path) -> None:
    """Refuse a picture that cannot be written, before the work that it shows is done.

    Raises:
        DataError: Its name ends in none of `FORMATS`, or its folder is not there.
    """
    if path.suffix.lower() not in FORMATS:
        raise DataError(f"{path}: the name of a picture ends in {', '.join(FORMATS)}")
    check_place(path)


def check_place(path: Path) -> None:
    """Refuse a file that cannot be written because its folder is not there or it is a folder itself
    (DataError).
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder: name a file in it")
    if not path.absolute().parent.is_dir():
        raise DataError(f"there is no folder {path.absolute().parent} to write {path.name} into")


def save(figure: Figure, path: Path) -> None:
    """Write a figure as its name says: PNG at 150 dots an inch, SVG or PDF; the same bytes for the
    same figure.
    """
    kind = path.suffix.lower()[1:]
    fixed: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
    with style():
        figure.savefig(path, format=kind, dpi=150, facecolor="white", metadata=fixed)


def picture(
    groups: Sequence[Group], panels: Sequence[Panel], axis: XAxis, spread: Spread, columns: int = 3
) -> Figure:
    """Draw the panels of several groups of runs as one figure, the groups named in a legend above."""
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    several = len(groups) > 1
    with style():
        head = 0.2 * -(-len(groups) // (2 * columns)) + 0.1 if several else 0.25
        width, height = 4.2 * columns, 2.9 * rows + head
        figure = Figure(figsize=(width, height))
        # Margins in inches: a layout engine draws everything several times to find much the same.
        places = {"left": 0.62 / width, "right": 1 - 0.12 / width, "bottom": 0.5 / height, "wspace": 0.74 / 3.46,
                  "top": 1 - (head + 0.3) / height, "hspace": 0.8 / 2.1}  # fmt: skip
        axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw=places).ravel()
        for place, panel in zip(axes, panels, strict=False):
            lines = _lines(groups, panel, axis, spread)
            _draw(place, panel, lines, axis)
            place.set_title(panel.title)
            keys = {line.curve: line for line in lines}
            if len(keys) > 1:
                place.legend(
                    [
                        _handle(MUTED if several else line.colour, line.dash)
                        for line in keys.values()
                    ],
                    [curve.label for curve in keys],
                    loc="best",
                )
        for place in axes[len(panels) :]:
            place.remove()
        if several:
            handles = [_handle(COLOURS[i % len(COLOURS)][0], "solid") for i in range(len(groups))]
            titles = [group.title for group in groups]
            figure.legend(handles, titles, loc="upper left", ncols=2 * columns, borderaxespad=0.2)
        else:
            figure.text(0.01, 1 - 0.05 / height, groups[0].title, va="top")
    return figure


def inline_charts(
    groups: Sequence[Group], panels: Sequence[Panel], axis: XAxis, spread: Spread
) -> str:
    """Draw the panels as HTML: a legend of the groups where they are several, and an SVG a panel
    with its key.
    """
    several = len(groups) > 1
    legend = ""
    if several:
        items = "".join(
            f"<li>{_swatch(_variable(COLOURS[i % len(COLOURS)][0]), 'solid')} "
            f"{html.escape(group.title)}</li>"
            for i, group in enumerate(groups)
        )
        legend = f'<ul class="legend">{items}</ul>\n'
    figures = [_inline(groups, panel, axis, spread) for panel in panels]
    return f'{legend}<div class="charts">\n{"".join(figures)}</div>\n'


def learning_curves(
    groups: Mapping[str, Sequence[Path]],
    *,
    metrics: Sequence[str] = ("loss", "error"),
    spread: Spread = "range",
) -> str:
    """Return learning curves of named groups of runs over epochs, as HTML with inline SVG for
    `page.document`.

    Args:
        groups: For each label the folders of its runs, one a seed: mean and band are over them.
        metrics: What `gnp plot --metrics` takes; those that no run has logged are left out.
        spread: What the bands show.

    Raises:
        ConfigError, DataError: As `bands.named_groups`, or a metric that there is not.
    """
    read = named_groups(groups)
    if not read:
        return ""
    panels = panels_of(read)
    absent = {panel.name for panel in PANELS} - {panel.name for panel in panels}
    return inline_charts(
        read,
        choose_panels(panels, [name for name in metrics if name not in absent]),
        "epoch",
        spread,
    )


def spread_note(groups: Sequence[Group], spread: Spread) -> str:
    """Say in a sentence what lines and bands show; empty where every group is a single run."""
    if all(len(group.runs) == 1 for group in groups):
        return ""
    shown = (
        "from the lowest to the highest seed"
        if spread == "range"
        else "one standard deviation (n - 1) either way"
    )
    return f"Lines are means over seeds; bands reach {shown}."


def _lines(groups: Sequence[Group], panel: Panel, axis: XAxis, spread: Spread) -> list[_Line]:
    """Return what a panel draws: colours tell groups apart and dashes curves, or colours curves of
    a single group.
    """
    found = []
    for index, group in enumerate(groups):
        for number, curve in enumerate(panel.curves):
            drawn = band(group, curve, axis, spread)
            if drawn is not None:
                colour = COLOURS[(index if len(groups) > 1 else number) % len(COLOURS)][0]
                # The evaluated curve is what is compared: it is the solid one of its panel.
                dash = _DASHES[(len(panel.curves) - 1 - number) % len(_DASHES)]
                found.append(_Line(index, curve, colour, dash, drawn))
    return found


def _draw(axes: Axes, panel: Panel, lines: Sequence[_Line], axis: XAxis) -> None:
    scale = 100.0 if panel.is_percent else 1.0
    for line in lines:
        drawn = line.band
        low, mean, high = (scale * values for values in (drawn.low, drawn.mean, drawn.high))
        faint = line.curve.split == "train" and any(other.curve.split != "train" for other in lines)
        marker = "o" if len(drawn.x) == 1 else None
        axes.plot(drawn.x, mean, color=line.colour, linestyle=line.dash, marker=marker, markersize=3,
                  linewidth=0.9 if faint else 1.5)  # fmt: skip
        if drawn.num_runs > 1:
            axes.fill_between(
                drawn.x, low, high, color=line.colour, alpha=0.1 if faint else 0.2, linewidth=0
            )
    values = [
        scale * value for line in lines for value in line.band.mean.tolist() if math.isfinite(value)
    ]
    positive = [value for value in values if value > 0]
    if panel.is_log and positive and min(values) >= 0:
        # What is 0, such as the error of a small batch, falls out of the panel at its lower edge.
        axes.set_yscale("log", nonpositive="clip")
        axes.set_ylim(min(positive) / 1.3, max(positive) * 1.3)
        is_short = max(positive) < 1000 * min(positive)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if is_short else (1.0,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(AXIS_LABELS[axis])


def _handle(colour: str, dash: Any) -> Line2D:
    return Line2D([], [], color=colour, linestyle=dash)


def _inline(groups: Sequence[Group], panel: Panel, axis: XAxis, spread: Spread) -> str:
    lines = _lines(groups, panel, axis, spread)
    if not lines:
        return ""
    with style():
        figure = Figure(figsize=(3.9, 2.4))
        axes = figure.add_axes((0.135, 0.165, 0.845, 0.805))
        _draw(axes, panel, lines, axis)
        svg = inline_svg(figure, panel.title, _chart_data(figure, axes, groups, panel, lines))
    keys = {line.curve: line for line in lines}
    key = ""
    if len(keys) > 1:
        own = {curve: MUTED if len(groups) > 1 else line.colour for curve, line in keys.items()}
        key = "".join(
            f"<span>{_swatch(_variable(own[curve]), line.dash)} {html.escape(curve.label)}</span>"
            for curve, line in keys.items()
        )
    title = f"<strong>{html.escape(panel.title)}</strong>"
    return f'<figure class="chart"><figcaption>{title}{key}</figcaption>{svg}</figure>\n'


def _chart_data(
    figure: Figure, axes: Axes, groups: Sequence[Group], panel: Panel, lines: Sequence[_Line]
) -> dict[str, Any]:
    """Return what the page's script needs to say which values lie under the pointer; `inline_svg`
    adds the places.
    """
    scale = 100.0 if panel.is_percent else 1.0

    def numbers(values: Any, factor: float = 1.0) -> list[float | None]:
        return [
            float(f"{factor * value:.5g}") if math.isfinite(value) else None
            for value in values.tolist()
        ]

    def name(line: _Line) -> str:
        parts = [groups[line.group].label] if len(groups) > 1 else []
        return " ".join(parts + ([line.curve.label] if len(panel.curves) > 1 or not parts else []))

    series = []
    for line in lines:
        own = {"name": name(line), "colour": _variable(line.colour), "x": numbers(line.band.x),
               "y": numbers(line.band.mean, scale)}  # fmt: skip
        if line.band.num_runs > 1:
            own |= {"low": numbers(line.band.low, scale), "high": numbers(line.band.high, scale)}
        series.append(own)
    width, height = figure.get_size_inches() * 72
    box = axes.get_position()
    return {
        "box": [box.x0 * width, (1 - box.y1) * height, box.width * width, box.height * height],
        "x": list(axes.get_xlim()),
        "y": list(axes.get_ylim()),
        "log": axes.get_yscale() == "log",
        "axis": axes.get_xlabel(),
        "series": series,
    }


def inline_svg(figure: Figure, title: str, data: dict[str, Any] | None = None) -> str:
    """Return a figure as an ``<svg>`` element for a page: colours as CSS variables, the page's
    font, no fixed size.

    Args:
        figure: Made within `style`.
        title: What the picture is, for who cannot see it.
        data: Put into ``data-chart``.
    """
    buffer = io.StringIO()
    with style():
        figure.savefig(
            buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    chart = (
        f' data-chart="{html.escape(json.dumps(data, separators=(",", ":")))}"'
        if data is not None
        else ""
    )
    # A page has many pictures: only what is referred to keeps its id, and no two pictures have one
    # in common.
    own = hashlib.sha256((title + chart).encode()).hexdigest()[:8]
    used = set(re.findall(r"(?:xlink:href=\"|url\()#([^\")]+)", text))
    text = re.sub(
        r' id="([^"]+)"', lambda found: f' id="{found[1]}-{own}"' if found[1] in used else "", text
    )
    text = re.sub(r"(xlink:href=\"|url\()#([^\")]+)", rf"\1#\2-{own}", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable}, {colour})")
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r"font-family: [^;\"]*;?", "", text)
    head, rest = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {spaces} {box.group(0) if box else ""} role="img" aria-label="{html.escape(title)}"{chart}>{rest}'


_VARIABLES = {light: f"--c{index}" for index, (light, _) in enumerate(COLOURS)} | {
    INK: "--ink", MUTED: "--muted", GRID: "--grid",
}  # fmt: skip


def _variable(colour: str) -> str:
    return f"var({_VARIABLES[colour]})"


def _swatch(colour: str, dash: Any) -> str:
    pattern = (
        ""
        if dash == "solid"
        else f' stroke-dasharray="{" ".join(str(1.6 * part) for part in dash[1])}"'
    )
    return (
        '<svg class="swatch" viewBox="0 0 22 8" aria-hidden="true">'
        f'<path d="M0 4H22" style="stroke: {colour}; stroke-width: 2.2"{pattern}/></svg>'
    )
