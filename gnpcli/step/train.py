"""The train and evaluation steps: pure functions of state and data, jitted over the mesh, no input
or output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from gnpcli.config import GrConfig, TrainConfig
from gnpcli.data.feeds.base import FeedData, TrainFeed
from gnpcli.devices import cpu
from gnpcli.devices.mesh import replicated
from gnpcli.gnp import global_norm
from gnpcli.models.base import Model
from gnpcli.step.averaging import ema_decay, moved
from gnpcli.step.batch import step_batch
from gnpcli.step.gradient import make_value_and_grad
from gnpcli.step.guard import guarded, is_finite, max_in_a_row
from gnpcli.step.optimizer import clip_by_norm, clip_ratio
from gnpcli.step.schedules import GrSchedule, Kind, Schedule
from gnpcli.step.state import TrainState
from gnpcli.step.telemetry import surrogate_gap, update_ratio

TrainStep = Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]
"""``(state, source) -> (state, metrics)``; the given state's buffers are reused and must not be
touched again.
"""


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

    The gradient is that of `make_value_and_grad` over the global batch. Both passes see the same
    batch and the same dropout; the model's state comes from the clean pass. A step in which
    something is not finite changes nothing (see `gnpcli.step.guard.guarded`).

    Args:
        model: Traced with ``train=True``.
        feed: Batch t is drawn from ``fold_in(state.key, t)``, so a resumed run sees the same
            batches.
        optimizer: Applied to the mixed gradient, clipped; its result is scaled by the learning
            rate.
        train: For everything that acts on loss, gradient and update.
        gr: For everything but the strategy.
        gr_schedule: r and alpha at step t.
        lr: The learning rate at step t.
        mesh: Where the batch is split; the state is replicated.
        kind: What the step takes; one gradient costs half of two.

    Returns:
        A jitted `TrainStep` that donates the state. Its metrics are float32 scalars over the global
        batch: `loss` and `perturbed_loss` (the objective of either pass), `cross_entropy` (clean
        pass, neither smoothing nor L2), `error_rate` (clean pass; of mixed images against the class
        with the largest share), `clean_grad_norm`, `perturbed_grad_norm`, `grad_cosine`,
        `surrogate_gap`, `grad_norm` (mixed, before clipping), `clip_ratio`, `update_norm` (of what
        is added to the parameters), `update_ratio`, `lr`, `r`, `alpha` and `lambda` as they acted
        in this step (0 in a plain one, and all but `alpha` in one that reuses), and
        `skips_in_a_row` and `skipped_steps` up to this step. With groups or pieces all but the
        norms from `grad_norm` on are means over them, `clean_grad_norm` too.
    """

    def step(state: TrainState, source: FeedData) -> tuple[TrainState, dict[str, jax.Array]]:
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
        rate = cpu.computed_once(lr(state.step))
        updates = jax.tree.map(lambda direction: -rate * direction, directions)
        update_norm = global_norm(updates)
        params = optax.apply_updates(state.params, updates)
        ema = (
            moved(state.ema, params, ema_decay(train.ema_decay, state.step))
            if train.ema_decay is not None
            else {}
        )
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
