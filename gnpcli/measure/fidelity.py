"""How far the finite difference of a training step is from the exact gradient of the penalty.

The penalty ``lambda ||grad L||`` has the gradient ``lambda H u`` with ``u = grad L / ||grad L||``
(arXiv 2202.03599, section 3). With an adaptive or partial perturbation, u is the ascent direction
of `gnpcli.gnp.ascent`. Training takes a forward difference of two gradients instead. It has two
errors. The curvature of the gradient along u adds one of first order in r. The rounding of the two
gradients adds one that r divides:

    (grad L(w + r u) - grad L(w)) / r
        =  H u  +  r/2 d/du (H u)  +  O(r^2)  +  O(eps ||grad L|| / r)

The radius trades one for the other (Pearlmutter, Neural Computation 6 (1994) 147-160, section 2).
The first term is computed here as an independent forward-over-reverse product in float32. The rest
is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from gnpcli.config.resolved import Resolved
from gnpcli.data.base import DataSpec
from gnpcli.data.feeds.make import make_train_feed
from gnpcli.devices.mesh import make_mesh, on_mesh, replicated
from gnpcli.engine.evaluated import check_fit
from gnpcli.engine.loading import load_with_progress, warn_of_skipped
from gnpcli.engine.same_data import check_unchanged
from gnpcli.errors import GnpError
from gnpcli.gnp import Scales, global_norm, gnp_value_and_grad
from gnpcli.gnp.ascent import steepest
from gnpcli.keys import run_keys
from gnpcli.models.base import Model, Params, State
from gnpcli.models.registry import build_for
from gnpcli.runs.trained import Trained
from gnpcli.step.batch import step_batch
from gnpcli.step.objective import make_objective
from gnpcli.step.perturbation import build_scales
from gnpcli.terminal.screen import Screen

DEFAULT_ALPHA = 0.8
"""Mixing weight of the mixed gradient where the configuration has none (the papers' value)."""

DEFAULT_R = 0.1
"""Radius at which the exact gradient is measured where the configuration has none."""

REFERENCE_DTYPE = "float32"
"""Compute type of the exact product, which every compute type is compared with."""

Gradient = Literal["finite-difference", "exact"]

Loss = Callable[..., tuple[Array, Any]]
"""``loss(params, *args) -> (loss, aux)``."""


class Exact(NamedTuple):
    """What the approximations of a batch are measured against; trees are as the parameters."""

    gradient: PyTree
    """``g = grad L(w)``."""
    direction: PyTree
    """``u``."""
    product: PyTree
    """``H u``."""
    gradient_norm: Float[Array, ""]
    """``||g||``."""
    product_norm: Float[Array, ""]
    """``||H u||``."""


class Deviation(NamedTuple):
    """How far a penalty gradient p, of weight alpha = 1, is from ``r H u``; float32 scalars."""

    penalty: Float[Array, ""]
    """``||p - r H u|| / ||r H u||``: ``||g_fd - g_exact|| / ||alpha r H u||`` for every alpha."""
    mixed: Float[Array, ""]
    """``alpha ||p - r H u|| / ||g + alpha r H u||``: as a share of the whole mixed gradient."""
    cosine: Float[Array, ""]
    """Cosine of the angle between p and ``H u``: 1 where only the length is wrong."""
    moved: Float[Array, ""]
    """Share of the parameters that the step ``r u`` changes once they are in the compute type."""


def exact_products(loss: Loss, scales: Scales | None) -> Callable[..., Exact]:
    """Return a jitted function of ``(params, *args)``: a batch's gradient and its ``H u``.

    Args:
        loss: Computed in float32.
        scales: Of the perturbation, as in `gnpcli.gnp.penalize`.
    """

    @jax.jit
    def products(params: PyTree, *args: Any) -> Exact:
        def grad(point: PyTree) -> PyTree:
            found: PyTree = jax.grad(loss, has_aux=True)(point, *args)[0]
            return found

        # What is called float32 may be TF32 on an accelerator.
        with jax.default_matmul_precision("highest"):
            gradient = grad(params)
            ray, length = steepest(params, gradient, scales)
            direction = jax.tree.map(lambda leaf: leaf / length, ray)
            product = jax.jvp(grad, (params,), (direction,))[1]
        return Exact(gradient, direction, product, global_norm(gradient), global_norm(product))

    return products


def deviation(
    loss: Loss, dtype: str, gradient: Gradient, scales: Scales | None
) -> Callable[..., Deviation]:
    """Return a jitted function of ``(r, alpha, exact, params, *args)``: a batch's `Deviation`.

    It measures `gnpcli.gnp.gnp_value_and_grad`.

    Args:
        loss: Computed in `dtype`; takes float32 parameters.
        dtype: Name of the compute type.
        gradient: How the transform computes the penalty's gradient.
        scales: Of the perturbation, as in `exact_products`.
    """

    @jax.jit
    def measure(
        r: Float[Array, ""], alpha: Float[Array, ""], exact: Exact, params: PyTree, *args: Any
    ) -> Deviation:
        # At alpha = 1 the mixed gradient is g + p. Both in one program, as in a train step.
        clean = jax.grad(loss, has_aux=True)(params, *args)[0]
        penalised = gnp_value_and_grad(
            loss, r=r, alpha=1.0, gradient=gradient, scales=scales, has_aux=True
        )
        _, whole = penalised(params, *args)
        penalty = jax.tree.map(jnp.subtract, whole, clean)
        distance = global_norm(jax.tree.map(lambda p, h: p - r * h, penalty, exact.product))
        mixed = global_norm(
            jax.tree.map(lambda g, h: g + alpha * r * h, exact.gradient, exact.product)
        )
        along = _sum_of_leaves(jax.tree.map(lambda p, h: jnp.sum(p * h), penalty, exact.product))
        moves = jax.tree.map(
            lambda w, u: jnp.mean((w + r * u).astype(dtype) != w.astype(dtype)) * w.size,
            params,
            exact.direction,
        )
        num_parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
        return Deviation(
            distance / (r * exact.product_norm),
            alpha * distance / mixed,
            along / (global_norm(penalty) * exact.product_norm),
            _sum_of_leaves(moves) / num_parameters,
        )

    return measure


def _sum_of_leaves(tree: PyTree) -> Float[Array, ""]:
    leaves: list[Array] = jax.tree.leaves(tree)
    return sum(leaves[1:], start=leaves[0])


def log_spaced(low: float, high: float, per_decade: int, *others: float) -> list[float]:
    """Return radii evenly spaced in the logarithm, from `low` to `high`, and `others`, sorted.

    >>> log_spaced(0.01, 1.0, 2, 0.05)
    [0.01, 0.0316, 0.05, 0.1, 0.316, 1.0]
    """
    count = max(round(math.log10(high / low) * per_decade), 1)
    spaced = [low * (high / low) ** (index / count) for index in range(count + 1)]
    return sorted({float(f"{value:.3g}") for value in spaced} | set(others))


@dataclass(frozen=True)
class Fidelity:
    """What was measured of a configuration on its batches."""

    first: int
    """Step of the first batch."""
    radii: Sequence[float]
    """Where the finite difference was measured, rising; the configured r is among them."""
    r: float | None
    """The configured radius, if there is one."""
    alpha: float
    """The configured mixing weight, or the default."""
    norms: list[dict[str, float]] = field(default_factory=list)
    """For each batch `gradient_norm` and `product_norm`, ``||H u||``."""
    differences: dict[str, list[list[Deviation]]] = field(default_factory=dict)
    """Of the finite difference: by compute type, for each batch, at each radius."""
    exact: dict[str, list[Deviation]] = field(default_factory=dict)
    """Of the exact gradient: by compute type but float32, for each batch, at r (or 0.1)."""


def measure_fidelity(
    config: Resolved,
    trained: Trained | None,
    *,
    radii: Sequence[float],
    dtypes: Sequence[str],
    batches: int,
    screen: Screen,
    accept_changed_data: bool = False,
) -> Fidelity:
    """Measure the finite difference of a configuration on batches of its training data.

    The batches, their augmentation and their dropout are those of the next training steps: of the
    first ones for a preset, at its initial parameters, and of those after the checkpoint for a run.
    Both gradients, the exact product and every compute type see the same batch and the same
    dropout.

    Args:
        config: What would train. Its `gr.ascent` and `gr.perturb` say which perturbation is
            measured, one for the whole batch.
        trained: A checkpoint to take parameters and step from; None takes the initial ones.
        radii: Where to measure; the configured r is measured besides.
        dtypes: Compute types; each is compared with the exact product in float32.
        batches: How many training batches.
        screen: Told how far the loading is.
        accept_changed_data: Measure also on data that have changed since the training.

    Raises:
        CheckpointError: The data of the checkpoint have changed.
        GnpError: A batch on which the penalty has no gradient, or where something is not finite.
    """
    mesh = make_mesh(config)
    dataset = load_with_progress(config, screen)
    spec = dataset.spec if trained is None else trained.spec
    check_fit(dataset.spec, spec, config)
    if trained is not None:
        check_unchanged(trained, dataset.spec, config, accept=accept_changed_data, screen=screen)
    keys = run_keys(config.train.seed)
    feed = make_train_feed(dataset.train, spec, config.data, mesh, key=keys.order, dtype="float32")
    models = _models(config, spec, dtypes)
    first, params, model_state = _start(trained, models[REFERENCE_DTYPE], spec, keys.init, mesh)
    measures = _Measures(config, models, dtypes)

    @jax.jit
    def batch_of(source: Any, step: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        return step_batch(keys.steps, step, feed, source, mesh)

    r = config.gr.r or None
    configured = [] if r is None else [r]
    found = Fidelity(first, sorted({*radii, *configured}), r, config.gr.alpha or DEFAULT_ALPHA)
    try:
        for number in range(batches):
            screen.line(f"batch {number + 1} of {batches}")
            step = first + number
            batch = batch_of(feed.source(step), jnp.asarray(step, jnp.int32))
            with on_mesh(mesh):  # of the first batch, which the measures are traced for
                measures.add(found, step, params, model_state, *batch)
        warn_of_skipped(screen, feed.skipped, "train")
    finally:
        feed.close()
    return found


def _models(config: Resolved, spec: DataSpec, dtypes: Sequence[str]) -> dict[str, Model]:
    """Build the model in float32 and in every other compute type."""
    models = {}
    for dtype in dict.fromkeys([REFERENCE_DTYPE, *dtypes]):
        models[dtype] = build_for(config.replaced({"train.dtype": dtype}), spec)
    return models


def _start(
    trained: Trained | None, model: Model, spec: DataSpec, key: jax.Array, mesh: Mesh
) -> tuple[int, Params, State]:
    """Return step, parameters and model state of a checkpoint, else the initial ones."""
    if trained is not None:
        return trained.step, trained.params, trained.model_state
    shape = (spec.image_size, spec.image_size, spec.channels)
    init = jax.jit(model.init, static_argnums=1, out_shardings=replicated(mesh))
    params, model_state = init(key, shape)
    return 0, params, model_state


class _Measures:
    """The compiled measures of a configuration in each of its compute types."""

    def __init__(self, config: Resolved, models: Mapping[str, Model], dtypes: Sequence[str]):
        losses = {dtype: _loss_in(dtype, model, config) for dtype, model in models.items()}
        scales = build_scales(config.gr)
        self._products = exact_products(losses[REFERENCE_DTYPE], scales)
        self._differences = {
            dtype: deviation(losses[dtype], dtype, "finite-difference", scales) for dtype in dtypes
        }
        # The exact gradient in float32 is the product that everything is measured against.
        self._exact = {
            dtype: deviation(losses[dtype], dtype, "exact", scales)
            for dtype in dtypes
            if dtype != REFERENCE_DTYPE
        }

    def add(self, found: Fidelity, step: int, params: Params, *args: Any) -> None:
        """Add the figures of the batch of a step to `found`."""
        exact = self._products(params, *args)
        found.norms.append(_norms(exact, step))
        alpha = found.alpha
        for dtype, measure in self._differences.items():
            row = [jax.device_get(measure(r, alpha, exact, params, *args)) for r in found.radii]
            found.differences.setdefault(dtype, []).append(row)
        r = found.r or DEFAULT_R
        for dtype, measure in self._exact.items():
            own = jax.device_get(measure(r, alpha, exact, params, *args))
            found.exact.setdefault(dtype, []).append(own)


def _loss_in(dtype: str, model: Model, config: Resolved) -> Loss:
    objective = make_objective(model, config.train, config.gr)

    def loss(
        params: Params, model_state: State, images: jax.Array, labels: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Any]:
        return objective(params, model_state, images.astype(dtype), labels, key)

    return loss


_NAMES = {"gradient_norm": "the gradient", "product_norm": "the Hessian-vector product"}


def _norms(exact: Exact, step: int) -> dict[str, float]:
    """Return both norms of a batch.

    Raises:
        GnpError: One of them is 0 or not finite, so that nothing can be relative to it.
    """
    norms = {name: float(getattr(exact, name)) for name in _NAMES}
    for name, norm in norms.items():
        if not math.isfinite(norm) or norm == 0:
            fault = "zero" if norm == 0 else "not finite"
            raise GnpError(
                f"{_NAMES[name]} is {fault} on training batch {step}: there is nothing to compare"
            )
    return norms
