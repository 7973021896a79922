"""The train step: a pure function of state and data, jitted over the mesh. No input or output."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from gnpcli.config.training import TrainConfig
from gnpcli.data.feeds.base import FeedData
from gnpcli.devices import cpu
from gnpcli.devices.mesh import replicated
from gnpcli.gnp import GnpMetrics, global_norm
from gnpcli.models.base import Params
from gnpcli.step.averaging import ema_decay, ema_update
from gnpcli.step.batch import step_batch
from gnpcli.step.gradient import make_value_and_grad
from gnpcli.step.guard import guarded, is_finite, max_in_a_row
from gnpcli.step.optimizer import clip_by_norm, clip_ratio
from gnpcli.step.parts import Parts
from gnpcli.step.programs import Metrics, TrainStep
from gnpcli.step.schedules import StepKind
from gnpcli.step.state import TrainState, laid_out
from gnpcli.step.telemetry import surrogate_gap, update_ratio


def make_train_step(parts: Parts, kind: StepKind) -> TrainStep:
    """Build the jitted step from state t to state t + 1.

    The gradient is that of `make_value_and_grad` over the global batch. Both passes see the same
    batch and the same dropout. The model's state comes from the clean pass. A step in which
    something is not finite changes nothing (`gnpcli.step.guard.guarded`).

    Args:
        parts: Shared by the steps of a run.
        kind: What the step takes. A plain step costs half of a gnp step.

    Returns:
        A jitted `TrainStep` that donates the state. Its metrics are scalars over the global batch:

        - `loss`, `perturbed_loss`: the objective of either pass;
        - `cross_entropy`: of the clean pass, with neither smoothing nor L2;
        - `error_rate`: of the clean pass, for mixed images against the class with the largest
          share;
        - `clean_grad_norm`, `perturbed_grad_norm`, `grad_cosine`: of the gradients of the passes;
        - `surrogate_gap`, `update_ratio`: see `gnpcli.step.telemetry`;
        - `grad_norm`: of the mixed gradient before clipping, and `clip_ratio`;
        - `update_norm`: of what is added to the parameters;
        - `lr`, `r`, `alpha`, `lambda`: as they acted in this step. The last three are 0 in a plain
          step, `r` and `lambda` in one that reuses;
        - `skips_in_a_row`, `skipped_steps`: up to this step, int32.

        With groups or microbatches the loss, the rates and what is said of the passes are means
        over them. `grad_norm`, `clip_ratio` and what comes of the update are those of the mean
        gradient.
    """
    train, limit = parts.train, max_in_a_row(parts.train)

    def step(state: TrainState, source: FeedData) -> tuple[TrainState, Metrics]:
        images, labels, model_key = step_batch(
            state.key, state.step, parts.feed, source, parts.mesh
        )
        r, alpha = _strength(parts, kind, state.step)
        value_and_grad = make_value_and_grad(parts, kind, r=r, alpha=alpha)
        (loss, aux), grads, passes = value_and_grad(
            state.params, state.model_state, state.component, images, labels, model_key
        )
        grad_norm = global_norm(grads)
        clipped = clip_by_norm(grads, grad_norm, train.clip_norm)
        directions, opt_state = parts.optimizer.update(clipped, state.opt_state, state.params)
        rate = cpu.computed_once(parts.lr(state.step))
        updates = jax.tree.map(lambda direction: -rate * direction, directions)
        update_norm = global_norm(updates)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            **_pass_metrics(loss, aux.measures, passes),
            "grad_norm": grad_norm,
            "clip_ratio": clip_ratio(grad_norm, train.clip_norm),
            "update_norm": update_norm,
            "update_ratio": update_ratio(update_norm, grad_norm),
            "lr": rate,
            "r": r,
            "alpha": alpha,
            "lambda": alpha * r,
        }
        new = state._replace(
            params=params,
            model_state=aux.model_state,
            opt_state=opt_state,
            ema=_averaged(state, params, train),
            component=aux.component,
        )
        new = guarded(state, new, is_finite(metrics, aux.model_state), limit)
        skips = {"skips_in_a_row": new.skips.in_a_row, "skipped_steps": new.skips.total}
        return laid_out(new, parts.layout), {**metrics, **skips}

    return jax.jit(step, donate_argnums=0, out_shardings=(None, replicated(parts.mesh)))


def _strength(parts: Parts, kind: StepKind, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return r and alpha as they act in a step."""
    zero = jnp.zeros(())
    r = parts.schedule.r(step) if kind == "gnp" else zero
    alpha = zero if kind == "plain" else parts.schedule.alpha(step)
    return r, alpha


def _pass_metrics(loss: jax.Array, measures: Metrics, passes: GnpMetrics) -> Metrics:
    """Return what a step tells about its passes."""
    return {
        "loss": loss,
        "perturbed_loss": passes.perturbed_loss,
        **measures,
        "clean_grad_norm": passes.clean_grad_norm,
        "perturbed_grad_norm": passes.perturbed_grad_norm,
        "grad_cosine": passes.cosine,
        "surrogate_gap": surrogate_gap(loss, passes.perturbed_loss),
    }


def _averaged(state: TrainState, params: Params, train: TrainConfig) -> Params:
    """Return the moving average after a step to `params`; an empty dict where none is kept."""
    if train.ema_decay is None:
        return {}
    average: Params = ema_update(state.ema, params, ema_decay(train.ema_decay, state.step))
    return average
