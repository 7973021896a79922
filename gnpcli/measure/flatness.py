"""What is measured of a trained model to say how flat its minimum is, and of several models side by
side.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from gnpcli.config import RunConfig
from gnpcli.data.base import Dataset, FileSplit, Split
from gnpcli.devices.mesh import make_mesh
from gnpcli.engine.evaluate import recalibrated
from gnpcli.engine.loading import load_with_progress, warn_of_skipped
from gnpcli.errors import DataError, DivergenceError
from gnpcli.gnp import global_norm
from gnpcli.measure.directions import filter_normalized, random_direction, with_norm
from gnpcli.measure.hessian import basis_size, largest_eigenvalues
from gnpcli.measure.landscape import Landscape, Sums
from gnpcli.models.base import Params
from gnpcli.models.registry import build_for
from gnpcli.runs.folder import locate
from gnpcli.runs.trained import Trained, open_trained
from gnpcli.terminal.loading import LoadingDisplay
from gnpcli.terminal.screen import Screen

Plane = Literal["random", "gradient", "none"]
"""The two axes of the loss surface: two random directions, the gradient and a random one, or no
surface.
"""

RADII_IN_R = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Distances in the gradient direction where none are given, as multiples of r."""
USUAL_R = 0.05
"""What r is where no run has one: that of SAM's paper (arXiv 2010.01412)."""


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    examples: int = 512
    """Images of a subset; all of a split that has fewer."""
    split: Literal["train", "val", "test"] = "train"
    """Whose images the Hessian, the rises and the surface are of."""
    top: int = 5
    """Eigenvalues; 0 leaves them out."""
    radii: tuple[float, ...] = ()
    """Distances (L2) in the gradient direction; empty takes `RADII_IN_R` times r, and every run's
    own r.
    """
    directions: int = 5
    """Random directions."""
    distances: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5)
    """Distances in them, as multiples of the filter-normalised direction: 1 moves every filter by
    its own norm.
    """
    plane: Plane = "random"
    """Axes of the surface."""
    resolution: int = 15
    """Points of the surface along each axis."""
    span: float = 0.5
    """Half the width of the surface in a random direction, in the unit of `distances`; along the
    gradient it is the largest of `radii`."""
    batch_size: int = 128
    """Images at a time, made a multiple of the number of devices."""
    seed: int = 0
    """Of the subsets, the random directions and the start of the Lanczos iteration."""


@dataclass(frozen=True)
class Inspection:
    """What was measured of one run."""

    folder: Path
    config: RunConfig
    result: dict[str, Any] = field(repr=False)
    """JSON-able; see `inspect`."""


def inspect(
    paths: Sequence[Path],
    plan: Plan,
    *,
    data_dir: str | None,
    step: int | None,
    best: bool,
    quiet: bool,
) -> list[Inspection]:
    """Measure the flatness of trained models, one after the other, on the same images and in the
    same directions.

    L is the mean cross-entropy over a subset, without label smoothing and L2, the model in
    evaluation mode, in float32 (`gnpcli.measure.landscape.Landscape`); w are the trained
    parameters.

    Args:
        paths: Run folders, or checkpoints.
        plan: What to measure.
        data_dir: Where the data sets lie; None is where the runs found them.
        step: Which checkpoint of each; None takes the last good one.
        best: Take the one with the lowest error instead.
        quiet: Print only warnings.

    Returns:
        For each run its configuration and a `result`: `run`, `step`, `weights` (``raw`` or ``ema``,
        what the run itself evaluated), `dataset`, `split`, `num_parameters`, `r` (of the run, or
        null) and `elapsed_s`; in `subsets`, for ``train`` and the held-out split (``test``, else
        ``val``), the `num_examples`, `loss`, `error_rate` and `gradient_norm` (``||grad L||``). Of
        `split` alone: `eigenvalues` of the Hessian of L, falling, with `residuals`,
        `hessian_products` and `num_missing` (`hessian.Spectrum`); `gradient_rise`, a list of
        `distance` and `rise`, ``L(w + distance * grad L / ||grad L||) - L(w)``; `random_rise`, a
        list of `distance`, `mean`, `std` (n - 1, null for one direction) and `rises`, ``L(w +
        distance
        * d) - L(w)`` over the filter-normalised random directions d; `surface` (null without one)
        with `plane`, `x` and `y` ``[R]`` and `loss` ``[R][R]``, ``loss[i][j]`` at ``x[j]`` of the
        first direction and ``y[i]`` of the second. The unit of an axis is the filter-normalised
        direction, or the L2 distance along the gradient.

    Raises:
        CheckpointError, DataError: As in evaluating, and a split that a data set does not have.
        ConfigError: More eigenvalues than parameters.
        DivergenceError: The loss of a model is not finite.
    """
    screen = Screen(quiet=quiet)
    opened = [open_trained(locate(path), step=step, best=best, screen=screen) for path in paths]
    plan = _with_radii(plan, [trained.config for trained in opened])
    shared: dict[str, Any] = {}
    found = []
    for path, trained in zip(paths, opened, strict=True):
        result = _inspect_one(path, trained, plan, data_dir, shared, screen)
        found.append(Inspection(path, trained.config, result))
    return found


def _with_radii(plan: Plan, configs: Sequence[RunConfig]) -> Plan:
    if plan.radii:
        return plan
    own = [r for config in configs if (r := _radius(config)) is not None]
    base = own[0] if own else USUAL_R
    return replace(plan, radii=tuple(sorted({*own, *(factor * base for factor in RADII_IN_R)})))


def _radius(config: RunConfig) -> float | None:
    """Return the radius that a run was regularized with."""
    return config.gr.r if config.gr.strategy != "none" and config.gr.r else None


def _inspect_one(
    path: Path,
    trained: Trained,
    plan: Plan,
    data_dir: str | None,
    shared: dict[str, Any],
    screen: Screen,
) -> dict[str, Any]:
    start = time.perf_counter()
    config = _inspected(trained, plan, data_dir)
    mesh = make_mesh(config)
    # Runs of the same data, or of the same model, share what is loaded and what is compiled.
    data_key = config.data.model_dump_json()
    if data_key not in shared:
        shared[data_key] = load_with_progress(config, screen)
    dataset: Dataset = shared[data_key]
    model_key = f"{config.model.model_dump_json()} {trained.spec} {mesh.size}"
    if model_key not in shared:
        shared[model_key] = Sums(build_for(config, trained.spec), mesh)
    state = trained.model_state
    if (
        trained.weights == "ema" and state and trained.config.train.recalibrate_batches
    ):  # as the run evaluated them
        state = recalibrated(trained, dataset, mesh, trained.config.train.recalibrate_batches)
    splits = {"train": dataset.train, "val": dataset.validation, "test": dataset.test}
    if splits[plan.split] is None:
        raise DataError(f"{config.data.name} has no {plan.split} split")
    held_out = "test" if dataset.test is not None else "val"
    with _Display(str(path), screen.console, screen.line, quiet=screen.is_quiet) as display:
        work = _Work(str(path), display)
        landscapes: dict[str, Landscape] = {}
        for name in dict.fromkeys(("train", held_out, plan.split)):
            split = splits[name]
            assert split is not None
            subset = _subset(split, plan)
            landscapes[name] = Landscape(
                shared[model_key], trained.params, state, subset, trained.spec, config, mesh, work
            )
            warn_of_skipped(screen, landscapes[name].skipped, name)
        return {
            "run": str(path),
            "step": trained.step,
            "weights": trained.weights,
            "dataset": config.data.name,
            "split": plan.split,
            "num_parameters": landscapes[plan.split].num_parameters,
            "r": _radius(config),
            **_measure(landscapes, plan, work, screen, f"{path} at step {trained.step}"),
            "elapsed_s": round(time.perf_counter() - start, 3),
        }


def _inspected(trained: Trained, plan: Plan, data_dir: str | None) -> RunConfig:
    """Return the run's configuration with the batches and the compute type of an inspection."""
    config, devices = trained.config, trained.mesh.size
    data = {"batch_size": -(-plan.batch_size // devices) * devices, "eval_batch_size": None}
    if data_dir is not None:
        data["dir"] = data_dir  # type: ignore[assignment]
    return config.model_copy(
        update={
            "data": config.data.model_copy(update=data),
            "train": config.train.model_copy(update={"dtype": "float32"}),
        }
    )


def _subset(split: Split | FileSplit, plan: Plan) -> Split | FileSplit:
    """Return `plan.examples` images drawn without replacement, in their order; all of a split that
    has no more.
    """
    chosen = np.zeros(len(split), bool)
    drawn = np.random.default_rng(plan.seed).permutation(len(split))[: plan.examples]
    chosen[drawn] = True
    return split.take(chosen)


class _Display(LoadingDisplay):
    PLAIN_EVERY_S = 10.0


class _Work:
    """Counts passes over a subset and shows how far a stage is, in images."""

    def __init__(self, name: str, display: LoadingDisplay):
        self._name, self._display = name, display
        self._what, self._done, self._total = "compiling", 0, 0

    def stage(self, what: str, passes: int, landscape: Landscape) -> None:
        """Start a stage of so many passes."""
        self._what, self._done, self._total = what, 0, passes * landscape.num_examples

    def __call__(self, images: int) -> None:
        """Note a pass."""
        self._done += images
        self._total = max(self._total, self._done)
        self._display(self._done, self._total, f"{self._what} of {self._name}")


def _measure(
    landscapes: dict[str, Landscape], plan: Plan, work: _Work, screen: Screen, name: str
) -> dict[str, Any]:
    subsets: dict[str, dict[str, Any]] = {}
    gradients: dict[str, Params] = {}
    for split, landscape in landscapes.items():
        work.stage(f"gradient ({split})", 2, landscape)
        figures = landscape.evaluate()
        if not math.isfinite(figures["loss"]):
            raise DivergenceError(
                f"the {split} loss of {name} is {figures['loss']}: there is no minimum to look at"
            )
        gradients[split] = landscape.gradient()
        norm = float(global_norm(gradients[split]))
        subsets[split] = {"num_examples": landscape.num_examples, **figures, "gradient_norm": norm}
    landscape, gradient = landscapes[plan.split], gradients[plan.split]
    base = subsets[plan.split]["loss"]
    screen.line(_cost(landscape, plan, work, gradient, name))

    found: dict[str, Any] = {
        "subsets": subsets, "eigenvalues": (), "residuals": (), "hessian_products": 0, "num_missing": 0,
    }  # fmt: skip
    if plan.top:
        size = landscape.num_parameters
        work.stage("Hessian", _products(plan, size) + plan.top, landscape)
        spectrum = largest_eigenvalues(
            landscape.hessian_product, size, top=plan.top, seed=plan.seed
        )
        if spectrum.num_missing:
            screen.line(
                f"warning: {spectrum.num_missing} of {plan.top} eigenvalues of {name} did not "
                "converge in "
                f"{spectrum.num_products} Hessian-vector products: try fewer with --top",
                style="yellow",
            )
        found |= {
            "eigenvalues": spectrum.eigenvalues,
            "residuals": spectrum.residuals,
            "hessian_products": spectrum.num_products,
            "num_missing": spectrum.num_missing,
        }
    work.stage("losses", _losses(plan), landscape)
    up = with_norm(gradient, 1.0)
    found["gradient_rise"] = [
        {"distance": distance, "rise": landscape.loss_at(up, up, (distance, 0.0)) - base}
        for distance in plan.radii
    ]
    keys = jax.random.split(jax.random.key(plan.seed), max(plan.directions, 2))

    def random(index: int) -> Params:
        direction: Params = filter_normalized(
            random_direction(keys[index], landscape.params), landscape.params
        )
        return direction

    rises: dict[float, list[float]] = {distance: [] for distance in plan.distances}
    for index in range(plan.directions):
        direction = random(index)
        for distance, own in rises.items():
            own.append(landscape.loss_at(direction, direction, (distance, 0.0)) - base)
    found["random_rise"] = [
        {
            "distance": distance,
            "mean": float(np.mean(own)),
            "std": float(np.std(own, ddof=1)) if len(own) > 1 else None,
            "rises": own,
        }
        for distance, own in rises.items()
        if own
    ]
    found["surface"] = None if plan.plane == "none" else _surface(landscape, plan, gradient, random)
    return found


def _surface(
    landscape: Landscape, plan: Plan, gradient: Params, random: Callable[[int], Params]
) -> dict[str, Any]:
    first, far = (
        (random(0), plan.span)
        if plan.plane == "random"
        else (with_norm(gradient, 1.0), max(plan.radii))
    )
    second = random(1)
    xs, ys = (np.linspace(-width, width, plan.resolution).tolist() for width in (far, plan.span))
    return {
        "plane": plan.plane,
        "x": xs,
        "y": ys,
        "loss": [[landscape.loss_at(first, second, (x, y)) for x in xs] for y in ys],
    }


def _losses(plan: Plan) -> int:
    """Return how many points the loss is evaluated at."""
    surface = 0 if plan.plane == "none" else plan.resolution**2
    return len(plan.radii) + plan.directions * len(plan.distances) + surface


def _products(plan: Plan, size: int) -> int:
    """Return how many products an iteration that restarts twice takes, which is usual."""
    basis = basis_size(plan.top, size)
    return basis + 2 * (basis - plan.top)


def _cost(landscape: Landscape, plan: Plan, work: _Work, gradient: Params, name: str) -> str:
    """Time a pass of each kind, compiled, and say what is to come."""

    def seconds(run: Callable[[], Any]) -> float:
        run()
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    work.stage("compiling, timing", 4 if plan.top else 2, landscape)
    losses = _losses(plan)
    told, total = (
        [f"{losses} losses"],
        losses * seconds(lambda: landscape.loss_at(gradient, gradient, (0.0, 0.0))),
    )
    if plan.top:
        products = _products(plan, landscape.num_parameters) + plan.top
        vector = np.zeros(landscape.num_parameters, np.float32)
        total += products * seconds(lambda: landscape.hessian_product(vector))
        told.insert(0, f"about {products} Hessian-vector products")
    return f"{name}: {' and '.join(told)} over {landscape.num_examples:,} images: about {max(1, round(total))} s"
