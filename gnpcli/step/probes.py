"""Programs that look into a step without taking it."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from gnpcli.data.feeds.base import FeedData
from gnpcli.devices.mesh import replicated
from gnpcli.gnp.ascent import steepest
from gnpcli.gnp.trees import inverse, scaled
from gnpcli.models.base import Params
from gnpcli.models.layers.dense import DTYPES
from gnpcli.step.batch import step_batch
from gnpcli.step.gradient import make_value_and_grad
from gnpcli.step.parts import Parts
from gnpcli.step.perturbation import build_scales, perturbed_mask
from gnpcli.step.precision import lost_share
from gnpcli.step.programs import Diagnosis, RoundingMeasure
from gnpcli.step.schedules import StepKind
from gnpcli.step.state import TrainState


def make_diagnosis(parts: Parts, kind: StepKind) -> Diagnosis:
    """Build the program that repeats a faulty step to find where it is not finite.

    Returns:
        Jitted ``(state, source) -> findings``. The state is that in which the step began. The
        findings are, for ``clean`` and in a gnp step for ``perturbed``, how many elements of the
        pass's gradient are not finite: a tree like the parameters of int32 scalars.
    """

    def gradient(of: StepKind, state: TrainState, source: FeedData) -> Params:
        images, labels, model_key = step_batch(
            state.key, state.step, parts.feed, source, parts.mesh
        )
        # With alpha = 1 and nothing else in the mix, the gradient is that of the perturbed pass.
        value_and_grad = make_value_and_grad(
            parts, of, r=parts.schedule.r(state.step), alpha=jnp.ones(()), mixes=False
        )
        _, grads, _ = value_and_grad(state.params, state.model_state, {}, images, labels, model_key)
        return grads

    def faults(grads: Params) -> Params:
        counts: Params = jax.tree.map(lambda leaf: jnp.sum(~jnp.isfinite(leaf)), grads)
        return counts

    def diagnosis(state: TrainState, source: FeedData) -> dict[str, Params]:
        findings = {"clean": faults(gradient("plain", state, source))}
        if kind == "gnp":
            findings["perturbed"] = faults(gradient("gnp", state, source))
        return findings

    return jax.jit(diagnosis, out_shardings=replicated(parts.mesh))


def make_rounding_measure(parts: Parts) -> RoundingMeasure:
    """Build the program that measures how much of the perturbation the compute type can represent.

    Returns:
        Jitted ``(state, source) -> share``: `gnpcli.step.precision.lost_share` of the perturbation
        at full radius. Its direction is the plain gradient over the whole batch of the step that
        begins in `state`.
    """
    scales = build_scales(parts.gr)

    def measure(state: TrainState, source: FeedData) -> jax.Array:
        images, labels, model_key = step_batch(
            state.key, state.step, parts.feed, source, parts.mesh
        )
        value_and_grad = make_value_and_grad(parts, "plain", r=0.0, alpha=0.0)
        _, grads, _ = value_and_grad(state.params, state.model_state, {}, images, labels, model_key)
        moves = perturbed_mask(state.params, parts.gr.perturb)
        ray, length = steepest(state.params, grads, scales)
        scale = parts.gr.r * inverse(length)
        perturbation = jax.tree.map(partial(scaled, scale), ray)
        return lost_share(state.params, perturbation, moves, DTYPES[parts.train.dtype])

    return jax.jit(measure, out_shardings=replicated(parts.mesh))
