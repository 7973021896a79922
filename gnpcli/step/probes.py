"""Programs that look into a step without taking it."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gnpcli.config import GrConfig, TrainConfig
from gnpcli.data.feeds.base import FeedData, TrainFeed
from gnpcli.devices.mesh import replicated
from gnpcli.gnp.ascent import steepest
from gnpcli.gnp.trees import inverse, scaled
from gnpcli.models.base import Model
from gnpcli.models.layers.dense import DTYPES
from gnpcli.step.batch import step_batch
from gnpcli.step.gradient import make_value_and_grad
from gnpcli.step.perturbation import build_scales, perturbed_mask
from gnpcli.step.precision import lost_share
from gnpcli.step.schedules import GrSchedule, Kind
from gnpcli.step.state import TrainState


def make_diagnosis(
    model: Model,
    feed: TrainFeed,
    train: TrainConfig,
    gr: GrConfig,
    gr_schedule: GrSchedule,
    mesh: Mesh,
    *,
    kind: Kind,
) -> Any:
    """Build the program that goes through a faulty step once more, to find where it is not finite.

    Returns:
        Jitted, ``(state, source) -> findings``; the state is that in which the step began, and is
        not donated. For ``clean`` and, in a gnp step, ``perturbed``: a tree like the parameters, of
        how many elements of the pass's gradient are not finite (int32).
    """

    def diagnosis(state: TrainState, source: FeedData) -> dict[str, Any]:
        images, labels, model_key = step_batch(state.key, state.step, feed, source, mesh)
        r = gr_schedule.r(state.step)

        def grads(kind: Kind) -> Any:
            # With alpha = 1 and nothing else in the mix, the mixed gradient is that of the
            # perturbed pass.
            bare = gr.model_copy(update={"mix": "raw", "surrogate_gap": 0.0, "between": "plain"})
            value_and_grad = make_value_and_grad(
                model, train, bare, mesh, kind=kind, r=r, alpha=jnp.ones(())
            )
            return value_and_grad(state.params, state.model_state, {}, images, labels, model_key)[1]

        found = {"clean": grads("plain")} | ({"perturbed": grads("gnp")} if kind == "gnp" else {})
        return {
            name: jax.tree.map(lambda leaf: jnp.sum(~jnp.isfinite(leaf)), tree)
            for name, tree in found.items()
        }

    return jax.jit(diagnosis, out_shardings=replicated(mesh))


def make_rounding_measure(
    model: Model, feed: TrainFeed, train: TrainConfig, gr: GrConfig, mesh: Mesh
) -> Any:
    """Build the program that measures how much of the perturbation the compute type of the model
    can represent.

    Returns:
        Jitted, ``(state, source) -> share``: `gnpcli.step.precision.lost_share` of the perturbation
        at full radius, by the plain gradient of the whole batch of the step that begins in `state`,
        which is not donated.
    """
    scales, plain = build_scales(gr), gr.model_copy(update={"between": "plain"})

    def measure(state: TrainState, source: FeedData) -> jax.Array:
        images, labels, model_key = step_batch(state.key, state.step, feed, source, mesh)
        value_and_grad = make_value_and_grad(
            model, train, plain, mesh, kind="plain", r=0.0, alpha=0.0
        )
        grads = value_and_grad(state.params, state.model_state, {}, images, labels, model_key)[1]
        moves = perturbed_mask(state.params, gr.perturb)
        ray, length = steepest(state.params, grads, scales)
        perturbation = jax.tree.map(partial(scaled, (gr.r or 0.0) * inverse(length)), ray)
        return lost_share(state.params, perturbation, moves, DTYPES[train.dtype])

    return jax.jit(measure, out_shardings=replicated(mesh))
