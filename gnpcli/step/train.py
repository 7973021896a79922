"""The train and evaluation steps: pure functions of state and data, jitted over the mesh, no input or output."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from gnpcli.config import GrConfig, TrainConfig
from gnpcli.devices.mesh import replicated, split_batch
from gnpcli.gnp import global_norm
from gnpcli.gnp.ascent import steepest
from gnpcli.gnp.trees import inverse, scaled
from gnpcli.keys import step_keys
from gnpcli.models.base import Model
from gnpcli.models.layers.dense import DTYPES
from gnpcli.step.averaging import batch_statistics, ema_decay, moved
from gnpcli.step.gradient import make_value_and_grad
from gnpcli.step.guard import guarded, is_finite, max_in_a_row
from gnpcli.step.losses import MetricSums, metric_sums
from gnpcli.step.optimizer import clip_by_norm, clip_ratio
from gnpcli.step.perturbation import build_scales, perturbed_mask
from gnpcli.step.precision import lost_share
from gnpcli.step.schedules import GrSchedule, Kind, Schedule
from gnpcli.step.state import TrainState
from gnpcli.step.telemetry import surrogate_gap, update_ratio

TrainStep = Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]
"""``(state, source) -> (state, metrics)``; the given state's buffers are reused and must not be touched again."""

EvalStep = Callable[[MetricSums, Any, Any, Any, jax.Array], MetricSums]
"""``(sums, params, model_state, source, index) -> sums`` with batch `index` of the source added."""


class TrainFeed(Protocol):
    """What a train step needs of a feed: the batch of a step, as a pure function traced inside the step."""

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        ...

    def batch(self, source: Any, step_in_epoch: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return augmented, normalised images ``[B, H, W, C]`` and labels: ``[B]`` int32, or ``[B, K]`` float32."""
        ...


class EvalFeed(Protocol):
    """What an evaluation step needs of a feed."""

    def batch(self, source: Any, index: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return images ``[B, H, W, C]``, labels ``[B]`` and a mask ``[B]`` bool that is False on padding."""
        ...


def step_batch(
    key: jax.Array, step: jax.Array, feed: TrainFeed, source: Any, mesh: Mesh
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return images and labels of a step, split over the devices, and the key of the model in it."""
    feed_key, model_key = step_keys(key, step)
    images, labels = split_batch(mesh, feed.batch(source, step % feed.steps_per_epoch, feed_key))
    return images, labels, model_key


def make_train_step(
    model: Model,
    feed: TrainFeed,
    optimizer: optax.GradientTransformation,
    train: TrainConfig,
    gr: GrConfig,
    gr_schedule: GrSchedule,
    lr: Schedule,
    mesh: Mesh,
    *,
    kind: Kind,
) -> Any:
    """Build the jitted step from state t to state t + 1.

    The gradient is that of `make_value_and_grad` over the global batch. Both passes see the same batch and the same
    dropout; the model's state comes from the clean pass. A step in which something is not finite changes nothing (see
    `gnpcli.step.guard.guarded`).

    Args:
        model: Traced with ``train=True``.
        feed: Batch t is drawn from ``fold_in(state.key, t)``, so a resumed run sees the same batches.
        optimizer: Applied to the mixed gradient, clipped; its result is scaled by the learning rate.
        train: For everything that acts on loss, gradient and update.
        gr: For everything but the strategy.
        gr_schedule: r and alpha at step t.
        lr: The learning rate at step t.
        mesh: Where the batch is split; the state is replicated.
        kind: What the step takes; one gradient costs half of two.

    Returns:
        A jitted `TrainStep` that donates the state. Its metrics are float32 scalars over the global batch: `loss` and
        `perturbed_loss` (the objective of either pass), `cross_entropy` (clean pass, neither smoothing nor L2),
        `error_rate` (clean pass; of mixed images against the class with the largest share), `clean_grad_norm`,
        `perturbed_grad_norm`, `grad_cosine`, `surrogate_gap`, `grad_norm` (mixed, before clipping), `clip_ratio`,
        `update_norm` (of what is added to the parameters), `update_ratio`, `lr`, `r`, `alpha` and `lambda` as they
        acted in this step (0 in a plain one, and all but `alpha` in one that reuses), and `skips_in_a_row` and
        `skipped_steps` up to this step. With groups or pieces all but the norms from `grad_norm` on are means over
        them, `clean_grad_norm` too.
    """

    def step(state: TrainState, source: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        images, labels, model_key = step_batch(state.key, state.step, feed, source, mesh)
        zero = jnp.zeros(())
        r = gr_schedule.r(state.step) if kind == "gnp" else zero
        alpha = zero if kind == "plain" else gr_schedule.alpha(state.step)
        value_and_grad = make_value_and_grad(model, train, gr, mesh, kind=kind, r=r, alpha=alpha)
        (loss, (model_state, component, measures)), grads, passes = value_and_grad(
            state.params, state.model_state, state.component, images, labels, model_key
        )
        grad_norm = global_norm(grads)
        clipped = clip_by_norm(grads, grad_norm, train.clip_norm)
        directions, opt_state = optimizer.update(clipped, state.opt_state, state.params)
        rate = _computed_once(lr(state.step))
        updates = jax.tree.map(lambda direction: -rate * direction, directions)
        update_norm = global_norm(updates)
        params = optax.apply_updates(state.params, updates)
        ema = moved(state.ema, params, ema_decay(train.ema_decay, state.step)) if train.ema_decay is not None else {}
        metrics = {
            "loss": loss,
            "perturbed_loss": passes.perturbed_loss,
            **measures,
            "clean_grad_norm": passes.clean_grad_norm,
            "perturbed_grad_norm": passes.perturbed_grad_norm,
            "grad_cosine": passes.cosine,
            "surrogate_gap": surrogate_gap(loss, passes.perturbed_loss),
            "grad_norm": grad_norm,
            "clip_ratio": clip_ratio(grad_norm, train.clip_norm),
            "update_norm": update_norm,
            "update_ratio": update_ratio(update_norm, grad_norm),
            "lr": rate,
            "r": r,
            "alpha": alpha,
            "lambda": alpha * r,
        }
        moves = {"params": params, "model_state": model_state, "opt_state": opt_state, "ema": ema}
        new = state._replace(**moves, component=component)
        new = guarded(state, new, is_finite(metrics, model_state), max_in_a_row(train))
        counts = {"skips_in_a_row": new.skips.in_a_row, "skipped_steps": new.skips.total}
        return new, {**metrics, **counts}

    return jax.jit(step, donate_argnums=0, out_shardings=replicated(mesh))


def _computed_once(scalar: jax.Array) -> jax.Array:
    """Return `scalar`, which XLA's CPU compiler would otherwise compute again in each of the kernels that read it.

    The learning rate is read in one for each array of the parameters, and its cosine was a seventh of the compilation
    of a PyramidNet of 27 convolutions. A sort is never fused, and one of two equal elements does nothing else.
    """
    if jax.default_backend() != "cpu":  # elsewhere the compiler weighs what a computation costs that is made twice
        return scalar
    answer: jax.Array = jax.lax.sort(jnp.stack([scalar, scalar]))[0]
    return answer


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
        Jitted, ``(state, source) -> findings``; the state is that in which the step began, and is not donated. For
        ``clean`` and, in a gnp step, ``perturbed``: a tree like the parameters, of how many elements of the pass's
        gradient are not finite (int32).
    """

    def diagnosis(state: TrainState, source: Any) -> dict[str, Any]:
        images, labels, model_key = step_batch(state.key, state.step, feed, source, mesh)
        r = gr_schedule.r(state.step)

        def grads(kind: Kind) -> Any:
            # With alpha = 1 and nothing else in the mix, the mixed gradient is that of the perturbed pass.
            bare = gr.model_copy(update={"mix": "raw", "surrogate_gap": 0.0, "between": "plain"})
            value_and_grad = make_value_and_grad(model, train, bare, mesh, kind=kind, r=r, alpha=jnp.ones(()))
            return value_and_grad(state.params, state.model_state, {}, images, labels, model_key)[1]

        found = {"clean": grads("plain")} | ({"perturbed": grads("gnp")} if kind == "gnp" else {})
        return {name: jax.tree.map(lambda leaf: jnp.sum(~jnp.isfinite(leaf)), tree) for name, tree in found.items()}

    return jax.jit(diagnosis, out_shardings=replicated(mesh))


def make_rounding_measure(model: Model, feed: TrainFeed, train: TrainConfig, gr: GrConfig, mesh: Mesh) -> Any:
    """Build the program that measures how much of the perturbation the compute type of the model can represent.

    Returns:
        Jitted, ``(state, source) -> share``: `gnpcli.step.precision.lost_share` of the perturbation at full radius, by the
        plain gradient of the whole batch of the step that begins in `state`, which is not donated.
    """
    scales, plain = build_scales(gr), gr.model_copy(update={"between": "plain"})

    def measure(state: TrainState, source: Any) -> jax.Array:
        images, labels, model_key = step_batch(state.key, state.step, feed, source, mesh)
        value_and_grad = make_value_and_grad(model, train, plain, mesh, kind="plain", r=0.0, alpha=0.0)
        grads = value_and_grad(state.params, state.model_state, {}, images, labels, model_key)[1]
        moves = perturbed_mask(state.params, gr.perturb)
        ray, length = steepest(state.params, grads, scales)
        perturbation = jax.tree.map(partial(scaled, (gr.r or 0.0) * inverse(length)), ray)
        return lost_share(state.params, perturbation, moves, DTYPES[train.dtype])

    return jax.jit(measure, out_shardings=replicated(mesh))


def make_eval_step(model: Model, feed: EvalFeed, mesh: Mesh) -> Any:
    """Build the jitted `EvalStep`: the model in evaluation mode, the padding masked out, neither smoothing nor L2."""

    def step(sums: MetricSums, params: Any, model_state: Any, source: Any, index: jax.Array) -> MetricSums:
        images, labels, mask = split_batch(mesh, feed.batch(source, index))
        logits, _ = model.apply(params, model_state, images, False, None)
        return MetricSums(*map(jnp.add, sums, metric_sums(logits, labels, mask)))

    return jax.jit(step, donate_argnums=0, out_shardings=replicated(mesh))


def make_recalibration_step(model: Model, feed: TrainFeed, mesh: Mesh) -> Any:
    """Build the jitted step that averages the model's statistics over training batches, each counting the same.

    Returns:
        ``(average, params, model_state, key, step, source) -> average``: the mean over batches 0 to `step` from that
        over batches 0 to `step` - 1, in training mode, with the augmentation and dropout of that step of a run whose
        base key is `key`. `model_state` gives the leaves that no batch moves.
    """

    def recalibrate(average: Any, params: Any, model_state: Any, key: jax.Array, step: jax.Array, source: Any) -> Any:
        images, _, model_key = step_batch(key, step, feed, source, mesh)
        batch = batch_statistics(lambda state: model.apply(params, state, images, True, model_key)[1], model_state)
        share = 1 / (step + 1).astype(jnp.float32)
        return jax.tree.map(lambda mean, value: mean + share * (value - mean), average, batch)

    return jax.jit(recalibrate, donate_argnums=0, out_shardings=replicated(mesh))
