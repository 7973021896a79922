"""The training state: everything a run needs to go on, as one pytree."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gnpcli.devices.sharding import Layout, shardings
from gnpcli.keys import run_keys
from gnpcli.models.base import Model


class Skips(NamedTuple):
    """Steps that left the state as it was, because something was not finite; int32 scalars."""

    in_a_row: jax.Array
    """Up to now without a step that was finite."""
    total: jax.Array
    """Since the start of training."""


class TrainState(NamedTuple):
    """A run after `step` steps.

    With the configuration and the data it determines every step to come.
    """

    step: jax.Array
    """Steps done, int32 scalar."""
    params: Any
    """Trained parameters, float32 leaves."""
    model_state: Any
    """What the model carries besides: BatchNorm statistics, or an empty dict."""
    opt_state: Any
    """State of the optax optimizer."""
    key: jax.Array
    """The run's base key. Step t draws from ``fold_in(key, t)``, so it never changes."""
    skips: Skips
    """Steps skipped so far."""
    ema: Any
    """Moving average of the parameters, a tree like `params`; an empty dict where none is kept."""
    component: Any
    """What reuse steps add to their gradient (LookSAM): a tree like `params`.

    It is an empty dict where nothing is reused.
    """


def state_shardings(state: TrainState, layout: Layout) -> TrainState:
    """Return where each array of `state` lies, or of its shapes.

    What is as large as the parameters is split where `layout` splits. The rest is whole on every
    device.
    """
    whole: TrainState = shardings(state, layout.whole)
    return whole._replace(
        params=shardings(state.params, layout.split),
        opt_state=shardings(state.opt_state, layout.split),
        ema=shardings(state.ema, layout.split),
        component=shardings(state.component, layout.split),
    )


def laid_out(state: TrainState, layout: Layout) -> TrainState:
    """Return `state`, inside jit, with its arrays where `state_shardings` says."""
    where = state_shardings(state, layout)
    there: TrainState = jax.lax.with_sharding_constraint(state, where)
    return there


def init_state(
    model: Model,
    image_shape: tuple[int, int, int],
    optimizer: optax.GradientTransformation,
    seed: int,
    *,
    averages: bool = False,
    reuses: bool = False,
) -> TrainState:
    """Return the state before the first step.

    Args:
        model: What is trained.
        image_shape: ``(H, W, C)`` of one image.
        optimizer: Its state is initialised with the parameters.
        seed: Seed of the run.
        averages: Whether to keep a moving average of the parameters; it starts from them.
        reuses: Whether to keep a component of the gradient for reuse; it starts at zero.
    """
    keys = run_keys(seed)
    params, model_state = model.init(keys.init, image_shape)
    # A buffer each: they are donated.
    step, in_a_row, total = (jnp.zeros((), jnp.int32) for _ in range(3))
    return TrainState(
        step=step,
        params=params,
        model_state=model_state,
        opt_state=optimizer.init(params),
        key=keys.steps,
        skips=Skips(in_a_row, total),
        ema=jax.tree.map(jnp.copy, params) if averages else {},
        component=jax.tree.map(jnp.zeros_like, params) if reuses else {},
    )
