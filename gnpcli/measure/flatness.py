"""What is measured of a trained model to say how flat its minimum is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

from gnpcli.errors import DivergenceError
from gnpcli.gnp import global_norm
from gnpcli.keys import measurement_key
from gnpcli.measure.directions import filter_normalized, random_direction, with_norm
from gnpcli.measure.hessian import basis_size, largest_eigenvalues
from gnpcli.measure.landscape import Landscape
from gnpcli.models.base import Params
from gnpcli.terminal.loading import LoadingDisplay
from gnpcli.terminal.screen import Screen

Plane = Literal["random", "gradient", "none"]
"""The axes of the loss surface: two random directions, the gradient and one, or no surface."""


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
    """Distances (L2) along the gradient.

    Empty takes multiples of r, and every run's own r (`gnpcli.measure.inspection`).
    """
    directions: int = 5
    """Random directions."""
    distances: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5)
    """Distances in the random directions, as multiples of the filter-normalised direction.

    1 moves every filter by its own norm.
    """
    plane: Plane = "random"
    """Axes of the surface."""
    resolution: int = 15
    """Points of the surface along each axis."""
    span: float = 0.5
    """Half the width of the surface in a random direction, in the unit of `distances`.

    Along the gradient it is the largest of `radii`.
    """
    batch_size: int = 128
    """Images at a time, made a multiple of the number of devices."""
    seed: int = 0
    """Of the subsets, the random directions and the start of the Lanczos iteration."""

    @property
    def num_losses(self) -> int:
        """How many points the loss is evaluated at."""
        surface = 0 if self.plane == "none" else self.resolution**2
        return len(self.radii) + self.directions * len(self.distances) + surface

    def num_products(self, num_parameters: int) -> int:
        """Return how many Hessian-vector products are usual: of an iteration that restarts twice.

        One more for each eigenvalue gives its residual.
        """
        basis = basis_size(self.top, num_parameters)
        return basis + 2 * (basis - self.top) + self.top


class Work:
    """Counts passes over a subset and shows how far a stage is, in images."""

    def __init__(self, name: str, display: LoadingDisplay):
        """Begin before the first stage of the run called `name`."""
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


def measure_flatness(
    landscapes: Mapping[str, Landscape], plan: Plan, work: Work, screen: Screen, name: str
) -> dict[str, Any]:
    """Measure a trained model.

    Args:
        landscapes: By split; `plan.split` is among them.
        plan: What to measure; `radii` are not empty.
        work: Told the stages.
        screen: Told what the measurement costs, and which eigenvalues are missing.
        name: Of the model, in messages.

    Returns:
        What `gnpcli.measure.inspection.inspect` says from `subsets` on.

    Raises:
        DivergenceError: A loss is not finite.
        ConfigError: More eigenvalues than parameters.
    """
    subsets: dict[str, dict[str, Any]] = {}
    gradients: dict[str, Params] = {}
    for split, own in landscapes.items():
        work.stage(f"gradient ({split})", 2, own)
        subsets[split], gradients[split] = _at_minimum(own, split, name)
    landscape, gradient = landscapes[plan.split], gradients[plan.split]
    base = subsets[plan.split]["loss"]
    screen.line(_cost(landscape, plan, work, gradient, name))
    spectrum = _spectrum(landscape, plan, work, screen, name)
    work.stage("losses", plan.num_losses, landscape)
    return {
        "subsets": subsets,
        **spectrum,
        "gradient_rise": _gradient_rise(landscape, plan, gradient, base),
        "random_rise": _random_rise(landscape, plan, base),
        "surface": _surface(landscape, plan, gradient),
    }


def _at_minimum(landscape: Landscape, split: str, name: str) -> tuple[dict[str, Any], Params]:
    """Return the figures of a subset at the parameters, and its gradient there."""
    figures = landscape.evaluate()
    if not math.isfinite(figures["loss"]):
        raise DivergenceError(
            f"the {split} loss of {name} is {figures['loss']}: there is no minimum to look at"
        )
    gradient = landscape.gradient()
    norm = float(global_norm(gradient))
    return {"num_examples": landscape.num_examples, **figures, "gradient_norm": norm}, gradient


def _spectrum(
    landscape: Landscape, plan: Plan, work: Work, screen: Screen, name: str
) -> dict[str, Any]:
    """Return the largest eigenvalues of the Hessian, with a warning where some are missing."""
    if not plan.top:
        return {"eigenvalues": (), "residuals": (), "hessian_products": 0, "num_missing": 0}
    size = landscape.num_parameters
    work.stage("Hessian", plan.num_products(size), landscape)
    found = largest_eigenvalues(landscape.hessian_product, size, top=plan.top, seed=plan.seed)
    if found.num_missing:
        screen.warn(
            f"{found.num_missing} of {plan.top} eigenvalues of {name} did not converge in "
            f"{found.num_products} Hessian-vector products: try fewer with --top"
        )
    return {
        "eigenvalues": found.eigenvalues,
        "residuals": found.residuals,
        "hessian_products": found.num_products,
        "num_missing": found.num_missing,
    }


def _gradient_rise(
    landscape: Landscape, plan: Plan, gradient: Params, base: float
) -> list[dict[str, float]]:
    """Return how much the loss rises above `base` at each distance along the gradient."""
    up = with_norm(gradient, 1.0)
    return [
        {"distance": distance, "rise": landscape.loss_at(up, up, (distance, 0.0)) - base}
        for distance in plan.radii
    ]


def _random_rise(landscape: Landscape, plan: Plan, base: float) -> list[dict[str, Any]]:
    """Return how much the loss rises at each distance in the random directions."""
    rises: dict[float, list[float]] = {distance: [] for distance in plan.distances}
    for index in range(plan.directions):
        direction = _random(landscape, plan, index)
        for distance, own in rises.items():
            own.append(landscape.loss_at(direction, direction, (distance, 0.0)) - base)
    return [
        {
            "distance": distance,
            "mean": float(np.mean(own)),
            "std": float(np.std(own, ddof=1)) if len(own) > 1 else None,
            "rises": own,
        }
        for distance, own in rises.items()
        if own
    ]


def _random(landscape: Landscape, plan: Plan, index: int) -> Params:
    """Return the random direction of an index, the same for every run of one architecture."""
    # The surface takes two directions, also where no rise is measured.
    keys = jax.random.split(measurement_key(plan.seed), max(plan.directions, 2))
    drawn = random_direction(keys[index], landscape.params)
    direction: Params = filter_normalized(drawn, landscape.params)
    return direction


def _surface(landscape: Landscape, plan: Plan, gradient: Params) -> dict[str, Any] | None:
    """Return the loss on a grid around the parameters; None where no surface is asked for."""
    if plan.plane == "none":
        return None
    if plan.plane == "random":
        first, width = _random(landscape, plan, 0), plan.span
    else:
        first, width = with_norm(gradient, 1.0), max(plan.radii)
    second = _random(landscape, plan, 1)
    xs = np.linspace(-width, width, plan.resolution).tolist()
    ys = np.linspace(-plan.span, plan.span, plan.resolution).tolist()
    return {
        "plane": plan.plane,
        "x": xs,
        "y": ys,
        "loss": [[landscape.loss_at(first, second, (x, y)) for x in xs] for y in ys],
    }


def _cost(landscape: Landscape, plan: Plan, work: Work, gradient: Params, name: str) -> str:
    """Time a pass of each kind, compiled, and say what is to come."""
    work.stage("compiling, timing", 4 if plan.top else 2, landscape)
    loss_s = _seconds(lambda: landscape.loss_at(gradient, gradient, (0.0, 0.0)))
    total_s = plan.num_losses * loss_s
    told = f"{plan.num_losses} losses"
    if plan.top:
        products = plan.num_products(landscape.num_parameters)
        vector = np.zeros(landscape.num_parameters, np.float32)
        total_s += products * _seconds(lambda: landscape.hessian_product(vector))
        told = f"about {products} Hessian-vector products and {told}"
    seconds = max(1, round(total_s))
    return f"{name}: {told} over {landscape.num_examples:,} images: about {seconds} s"


def _seconds(run: Callable[[], Any]) -> float:
    """Return how long the second call takes: the first one compiles."""
    run()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
