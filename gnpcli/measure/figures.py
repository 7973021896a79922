"""The pictures of measurements: flatness of groups of runs side by side, and errors over r."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from gnpcli.measure.inspection import Inspection
from gnpcli.report.palette import COLOURS, INK, MUTED
from gnpcli.report.style import style
from gnpcli.terminal.words import plural, rough_percent

COLUMNS = 3
_TOP_HEIGHT = 3.3
"""Inches of the row of rises and eigenvalues."""
_SURFACE_HEIGHT = 4.0
"""Inches of a row of surfaces."""
_WIDTH = 4.2
"""Inches of a column."""
_NUM_LEVELS = 16
"""Contour lines of a surface."""

Groups = Mapping[str, Sequence[Inspection]]
"""Inspected runs by label; those of a group differ only in their seed."""


def draw_flatness(groups: Groups) -> Figure:
    """Draw groups of inspected runs side by side.

    Lines and bars are means over the runs of a group; bands and whiskers are ranges. The surfaces,
    each of the first run of its group, share their levels, which are apart by equal factors. The
    cross is the trained model.
    """
    surfaces = _surface_results(groups)
    rows = -(-len(surfaces) // COLUMNS)
    with style():
        size = (_WIDTH * COLUMNS, _TOP_HEIGHT + _SURFACE_HEIGHT * rows)
        figure = Figure(figsize=size, layout="constrained")
        top: Figure | SubFigure = figure
        if surfaces:
            heights = (_TOP_HEIGHT, _SURFACE_HEIGHT * rows)
            top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=heights).ravel()
            _surfaces(bottom, surfaces, rows)
        _curves(top, groups)
    return figure


def _surface_results(groups: Groups) -> dict[str, dict[str, Any]]:
    """Return the result of the first run of each group that has a surface, by title."""
    results = {}
    for label, runs in groups.items():
        first = runs[0]
        if not first.result["surface"]:
            continue
        several = len(runs) > 1
        title = f"{label} ({first.folder.resolve().name})" if several else label
        results[title] = first.result
    return results


def _curves(figure: Figure | SubFigure, groups: Groups) -> None:
    """Draw the rises along the gradient and at random, and the eigenvalues."""
    left, middle, right = figure.subplots(1, COLUMNS)
    split = next(iter(groups.values()))[0].result["split"]
    left.set_title(f"Rise of the {split} loss along its gradient")
    left.set_xlabel("distance r")
    _rises(left, groups, "gradient_rise", "rise")
    middle.set_title("... in random directions")
    middle.set_xlabel("distance, in filter norms")
    _rises(middle, groups, "random_rise", "mean")
    _eigenvalues(right, groups)
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=4)


def _rises(axes: Axes, groups: Groups, key: str, value: str) -> None:
    """Draw one line a group; both axes are logarithmic where every rise is above 0."""
    is_positive = True
    for index, (label, runs) in enumerate(groups.items()):
        x = [point["distance"] for point in runs[0].result[key]]
        y = np.array([[point[value] for point in run.result[key]] for run in runs])
        if not y.size:
            continue
        is_positive = is_positive and bool((y > 0).all())
        colour, name = _colour(index), _name(label, runs)
        axes.plot(x, y.mean(axis=0), color=colour, marker="o", markersize=3, label=name)
        if len(runs) > 1:
            axes.fill_between(x, y.min(axis=0), y.max(axis=0), color=colour, alpha=0.2, linewidth=0)
    if is_positive and axes.lines:
        _make_logarithmic(axes)


def _make_logarithmic(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.set_xscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _eigenvalues(axes: Axes, groups: Groups) -> None:
    """Draw bars side by side, as many eigenvalues as every shown run has."""
    axes.set_title("Largest eigenvalues of the Hessian")
    shown = [
        (index, runs)
        for index, runs in enumerate(groups.values())
        if all(run.result["eigenvalues"] for run in runs)
    ]
    if not shown:
        axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", color=MUTED)
        return
    count = min(len(run.result["eigenvalues"]) for _, runs in shown for run in runs)
    width = 0.8 / len(shown)
    for place, (index, runs) in enumerate(shown):
        values = np.array([run.result["eigenvalues"][:count] for run in runs])
        x = np.arange(1, count + 1) - 0.4 + width * (place + 0.5)
        mean = values.mean(axis=0)
        axes.bar(
            x,
            mean,
            0.92 * width,
            yerr=_whiskers(values, mean) if len(runs) > 1 else None,
            color=_colour(index),
            ecolor=INK,
            capsize=2,
        )
    axes.set_xticks(range(1, count + 1))
    axes.set_xlabel("eigenvalue, the largest first")
    axes.grid(visible=False, axis="x")


def _whiskers(values: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return how far the lowest and the highest value are from the mean, ``[2, N]``, at least 0."""
    below, above = mean - values.min(axis=0), values.max(axis=0) - mean
    return np.stack([below, above]).clip(min=0)


def _surfaces(
    figure: Figure | SubFigure, surfaces: Mapping[str, dict[str, Any]], rows: int
) -> None:
    losses = [np.array(result["surface"]["loss"], np.float64) for result in surfaces.values()]
    levels = _levels(losses)
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    drawn: Any = None
    for place, loss, (title, result) in zip(axes, losses, surfaces.items(), strict=False):
        drawn = _surface(place, result["surface"], loss, levels)
        place.set_title(title)
    for place in axes[len(surfaces) :]:
        place.remove()
    bar = figure.colorbar(
        drawn,
        ax=list(axes[: len(surfaces)]),
        shrink=0.85,
        format=FuncFormatter(lambda value, _: f"{value:.3g}"),
    )
    bar.set_label(f"{next(iter(surfaces.values()))['split']} loss")


def _levels(losses: Sequence[np.ndarray]) -> np.ndarray:
    """Return the levels that all surfaces share: from the lowest to the highest finite loss."""
    every = np.concatenate([loss.ravel() for loss in losses])
    every = every[np.isfinite(every) & (every > 0)]
    low, high = (every.min(), every.max()) if every.size else (1e-3, 1.0)
    return np.geomspace(low, max(high, 1.01 * low), _NUM_LEVELS)


def _surface(axes: Axes, surface: dict[str, Any], loss: np.ndarray, levels: np.ndarray) -> Any:
    """Draw a surface and return what its colours are scaled by."""
    low, high = levels[0], levels[-1]
    loss = np.where(np.isfinite(loss), np.clip(loss, low, high), high)
    x, y = surface["x"], surface["y"]
    drawn = axes.contourf(x, y, loss, levels=levels, norm=LogNorm(low, high), cmap="viridis")
    axes.contour(x, y, loss, levels=levels, colors="white", linewidths=0.4, alpha=0.6)
    axes.plot(0, 0, "+", color="white", markersize=9, markeredgewidth=1.6)
    axes.grid(visible=False)
    axes.set_box_aspect(1)
    random = "random direction, in filter norms"
    is_gradient = surface["plane"] == "gradient"
    axes.set_xlabel("distance along the gradient" if is_gradient else random)
    axes.set_ylabel(random)
    return drawn


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)][0]


def _name(label: str, runs: Sequence[Inspection]) -> str:
    return label if len(runs) == 1 else f"{label} ({plural(len(runs), 'seed')})"


def draw_fidelity(result: dict[str, Any]) -> Figure:
    """Draw the errors of the penalty's gradient over r, both axes logarithmic.

    A line is the mean over the batches, and the band above it reaches to the worst. Dotted is the
    configured r, dashed the threshold. The grey line has a slope of one: what an error of first
    order in r looks like.

    Args:
        result: Of `gnpcli.measure.verdict.check`.
    """
    with style():
        figure = Figure(figsize=(6.0, 4.0), layout="constrained")
        axes = figure.add_subplot()
        for index, kind in enumerate(result["types"]):
            _errors(axes, kind, _colour(index))
        _first_order(axes, result["types"][0])
        thin: dict[str, Any] = {"color": MUTED, "lw": 0.8}
        threshold, r = result["threshold"], result["r"]
        axes.axhline(threshold, ls="--", label=rough_percent(threshold, 6), **thin)
        if r:
            axes.axvline(r, ls=":", label=f"configured r = {r:g}", **thin)
        axes.set(xscale="log", yscale="log", xlabel="r", ylabel="||p - r H u|| / ||r H u||")
        axes.set_title(
            f"{result['model']}, {result['dataset']}, {len(result['batches'])} batches of "
            f"{result['batch_size']} from step {result['step']}"
        )
        axes.legend()
    return figure


def _finite(kind: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the radii of a compute type that a logarithmic axis can show."""
    return [row for row in kind["radii"] if row["penalty"]]


def _errors(axes: Axes, kind: dict[str, Any], colour: str) -> None:
    rows = _finite(kind)
    radii = [row["r"] for row in rows]
    means = [row["penalty"] for row in rows]
    worst = [row["worst_penalty"] for row in rows]
    axes.plot(radii, means, color=colour, marker="o", markersize=3, label=kind["dtype"])
    axes.fill_between(radii, means, worst, color=colour, alpha=0.2, linewidth=0)


def _first_order(axes: Axes, kind: dict[str, Any]) -> None:
    """Draw a slope of one above the errors, from the best radius to the largest."""
    rows = _finite(kind)
    if not rows:
        return
    best = min(rows, key=lambda row: row["penalty"])
    ends = [best["r"], rows[-1]["r"]]
    line = [3 * best["penalty"] * r / best["r"] for r in ends]
    axes.plot(ends, line, color=MUTED, lw=0.8, label="~ r")
