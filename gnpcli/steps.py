"""The train and evaluation steps: pure functions of state and data, jitted over the mesh, no input or output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from gnpcli.config import GrConfig, TrainConfig
from gnpcli.gnp import global_norm
from gnpcli.losses import MetricSums, metric_sums
from gnpcli.models.base import Model
from gnpcli.objective import make_value_and_grad
from gnpcli.optim import clip_by_norm
from gnpcli.schedules import GrSchedule, Schedule
from gnpcli.sharding import replicated, split_batch
from gnpcli.state import TrainState

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


def augment_key(steps_key: jax.Array, step: jax.Array | int) -> jax.Array:
    """Return the key of a step's augmentation; `steps_key` is `TrainState.key`."""
    return step_keys(steps_key, step)[0]


def step_keys(steps_key: jax.Array, step: jax.Array | int) -> jax.Array:
    """Return the keys of augmentation and of the model, of one step."""
    return jax.random.split(jax.random.fold_in(steps_key, step))


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
    is_plain: bool,
) -> Any:
    """Build the jitted step from state t to state t + 1.

    The gradient is that of `make_value_and_grad` over the global batch. Both passes see the same batch and the same
    dropout; the model's state comes from the clean pass.

    Args:
        model: Traced with ``train=True``.
        feed: Batch t is drawn from ``fold_in(state.key, t)``, so a resumed run sees the same batches.
        optimizer: Applied to the mixed gradient, clipped.
        train: For `clip_norm`, `label_smoothing`, `l2` and `decay_biases_and_norms`.
        gr: For everything but the strategy.
        gr_schedule: r and alpha at step t; not evaluated when `is_plain`.
        lr: Logged only; the optimizer holds its own copy.
        mesh: Where the batch is split; the state is replicated.
        is_plain: Compile one pass instead of two, for the steps where lambda is 0.

    Returns:
        A jitted `TrainStep` that donates the state. Its metrics are float32 scalars over the global batch: `loss` and
        `perturbed_loss` (the objective of either pass), `cross_entropy` (clean pass, neither smoothing nor L2),
        `error_rate` (clean pass; of mixed images against the class with the largest share), `clean_grad_norm`,
        `perturbed_grad_norm`, `grad_cosine`, `grad_norm` (mixed, before clipping), `update_norm` (of what is added to
        the parameters), `lr`, `r` and `alpha` as they acted in this step (0 and 0 in a plain step).
    """

    def step(state: TrainState, source: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        feed_key, model_key = step_keys(state.key, state.step)
        images, labels = split_batch(mesh, feed.batch(source, state.step % feed.steps_per_epoch, feed_key))
        r, alpha = (
            (jnp.zeros(()), jnp.zeros(())) if is_plain else (gr_schedule.r(state.step), gr_schedule.alpha(state.step))
        )
        value_and_grad = make_value_and_grad(model, train, gr, r=r, alpha=alpha, is_plain=is_plain)
        (loss, (model_state, measures)), grads, passes = value_and_grad(
            state.params, state.model_state, images, labels, model_key
        )
        grad_norm = global_norm(grads)
        clipped = clip_by_norm(grads, grad_norm, train.clip_norm)
        updates, opt_state = optimizer.update(clipped, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": loss,
            "perturbed_loss": passes.perturbed_loss,
            **measures,
            "clean_grad_norm": passes.clean_grad_norm,
            "perturbed_grad_norm": passes.perturbed_grad_norm,
            "grad_cosine": passes.cosine,
            "grad_norm": grad_norm,
            "update_norm": global_norm(updates),
            "lr": lr(state.step),
            "r": r,
            "alpha": alpha,
        }
        return TrainState(state.step + 1, params, model_state, opt_state, state.key), metrics

    return jax.jit(step, donate_argnums=0, out_shardings=replicated(mesh))


def make_eval_step(model: Model, feed: EvalFeed, mesh: Mesh) -> Any:
    """Build the jitted `EvalStep`: the model in evaluation mode, the padding masked out, neither smoothing nor L2."""

    def step(sums: MetricSums, params: Any, model_state: Any, source: Any, index: jax.Array) -> MetricSums:
        images, labels, mask = split_batch(mesh, feed.batch(source, index))
        logits, _ = model.apply(params, model_state, images, False, None)
        return MetricSums(*map(jnp.add, sums, metric_sums(logits, labels, mask)))

    return jax.jit(step, donate_argnums=0, out_shardings=replicated(mesh))
