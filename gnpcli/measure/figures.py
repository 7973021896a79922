"""What an inspection looks like: rises of the loss, eigenvalues, and a loss surface for each group
of runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from gnpcli.measure.flatness import Inspection
from gnpcli.report.charts import style
from gnpcli.report.palette import COLOURS, INK, MUTED

COLUMNS = 3
_LEVELS = 16


def draw(groups: Mapping[str, Sequence[Inspection]]) -> Figure:
    """Draw groups of inspected runs side by side: means over the runs of a group, ranges as bands
    and bars.

    The surfaces, each of the first run of its group, share their levels, which are apart by equal
    factors; the cross is the trained model.
    """
    surfaces = {
        label if len(runs) == 1 else f"{label} ({runs[0].folder.resolve().name})": runs[0].result
        for label, runs in groups.items()
        if runs[0].result["surface"]
    }
    rows = 1 + -(-len(surfaces) // COLUMNS)
    width, height = 4.2 * COLUMNS, 3.3 + 4.0 * (rows - 1)
    with style():
        figure = Figure(figsize=(width, height), layout="constrained")
        top: Any = figure
        if surfaces:
            parts: Any = figure.subfigures(2, 1, height_ratios=(3.3, 4.0 * (rows - 1)))
            top = parts[0]
            _surfaces(parts[1], surfaces, rows - 1)
        left, middle, right = top.subplots(1, COLUMNS)
        split = next(iter(groups.values()))[0].result["split"]
        _rises(
            left,
            groups,
            "gradient_rise",
            "rise",
            f"Rise of the {split} loss along its gradient",
            "distance r",
        )
        _rises(
            middle,
            groups,
            "random_rise",
            "mean",
            "... in random directions",
            "distance, in filter norms",
        )
        _eigenvalues(right, groups)
        handles = left.get_legend_handles_labels()
        top.legend(*handles, loc="outside upper left", ncols=4)
    return figure


def _rises(
    axes: Axes,
    groups: Mapping[str, Sequence[Inspection]],
    key: str,
    value: str,
    title: str,
    label: str,
) -> None:
    positive = True
    for index, (name, runs) in enumerate(groups.items()):
        x = [point["distance"] for point in runs[0].result[key]]
        y = np.array([[point[value] for point in run.result[key]] for run in runs])
        if not y.size:
            continue
        positive = positive and bool((y > 0).all())
        colour = COLOURS[index % len(COLOURS)][0]
        axes.plot(
            x, y.mean(axis=0), color=colour, marker="o", markersize=3, label=_title(name, runs)
        )
        if len(runs) > 1:
            axes.fill_between(x, y.min(axis=0), y.max(axis=0), color=colour, alpha=0.2, linewidth=0)
    if positive and axes.lines:
        axes.set_yscale("log")
        axes.set_xscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
    axes.set_title(title)
    axes.set_xlabel(label)


def _eigenvalues(axes: Axes, groups: Mapping[str, Sequence[Inspection]]) -> None:
    axes.set_title("Largest eigenvalues of the Hessian")
    shown = {
        name: runs
        for name, runs in groups.items()
        if all(run.result["eigenvalues"] for run in runs)
    }
    if not shown:
        axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", color=MUTED)
        return
    count = min(len(run.result["eigenvalues"]) for runs in shown.values() for run in runs)
    width = 0.8 / len(shown)
    for index, (name, runs) in enumerate(groups.items()):
        if name not in shown:
            continue
        values = np.array([run.result["eigenvalues"][:count] for run in runs])
        mean = values.mean(axis=0)
        x = np.arange(1, count + 1) - 0.4 + width * (list(shown).index(name) + 0.5)
        bars = (
            np.abs(np.stack([mean - values.min(axis=0), values.max(axis=0) - mean]))
            if len(runs) > 1
            else None
        )
        axes.bar(
            x,
            mean,
            0.92 * width,
            yerr=bars,
            color=COLOURS[index % len(COLOURS)][0],
            ecolor=INK,
            capsize=2,
        )
    axes.set_xticks(range(1, count + 1))
    axes.set_xlabel("eigenvalue, the largest first")
    axes.grid(visible=False, axis="x")


def _surfaces(figure: Any, surfaces: Mapping[str, dict[str, Any]], rows: int) -> None:
    losses = {
        label: np.array(result["surface"]["loss"], np.float64) for label, result in surfaces.items()
    }
    every = np.concatenate([loss.ravel() for loss in losses.values()])
    every = every[np.isfinite(every) & (every > 0)]
    low, high = (every.min(), every.max()) if every.size else (1e-3, 1.0)
    levels = np.geomspace(low, max(high, 1.01 * low), _LEVELS)
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    drawn = None
    for place, (label, result) in zip(axes, surfaces.items(), strict=False):
        surface, loss = result["surface"], losses[label]
        loss = np.where(np.isfinite(loss), np.clip(loss, low, high), high)
        x, y = surface["x"], surface["y"]
        drawn = place.contourf(
            x, y, loss, levels=levels, norm=LogNorm(low, levels[-1]), cmap="viridis"
        )
        place.contour(x, y, loss, levels=levels, colors="white", linewidths=0.4, alpha=0.6)
        place.plot(0, 0, "+", color="white", markersize=9, markeredgewidth=1.6)
        place.grid(visible=False)
        place.set_box_aspect(1)
        place.set_title(label)
        is_gradient = surface["plane"] == "gradient"
        place.set_xlabel(
            "distance along the gradient" if is_gradient else "random direction, in filter norms"
        )
        place.set_ylabel("random direction, in filter norms")
    for place in axes[len(surfaces) :]:
        place.remove()
    bar = figure.colorbar(
        drawn,
        ax=list(axes[: len(surfaces)]),
        shrink=0.85,
        format=FuncFormatter(lambda v, _: f"{v:.3g}"),
    )
    bar.set_label(f"{next(iter(surfaces.values()))['split']} loss")


def _title(label: str, runs: Sequence[Inspection]) -> str:
    return label if len(runs) == 1 else f"{label} ({len(runs)} seeds)"
