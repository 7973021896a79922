"""The training state: everything a run needs to go on, as one pytree."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gnpcli.models.base import Model


class TrainState(NamedTuple):
    """A run after `step` steps. With the configuration and the data it determines every step to come."""

    step: jax.Array
    """Steps done, int32 scalar."""
    params: Any
    """Trained parameters, float32 leaves."""
    model_state: Any
    """What the model carries besides: BatchNorm statistics, or an empty dict."""
    opt_state: Any
    """State of the optax optimizer."""
    key: jax.Array
    """The run's base key; step t draws from ``fold_in(key, t)``, so it never changes."""


class RunKeys(NamedTuple):
    """The independent random streams of a run, all from its seed."""

    init: jax.Array
    """Initial parameters."""
    steps: jax.Array
    """Augmentation and dropout; becomes `TrainState.key`."""
    order: jax.Array
    """Order of the examples; epoch e is shuffled with ``fold_in(order, e)``."""


def run_keys(seed: int) -> RunKeys:
    """Return the random streams of a run."""
    return RunKeys(*jax.random.split(jax.random.key(seed), 3))


def init_state(
    model: Model, image_shape: tuple[int, int, int], optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
    """Return the state before the first step.

    Args:
        model: What is trained.
        image_shape: ``(H, W, C)`` of one image.
        optimizer: Its state is initialised with the parameters.
        seed: Seed of the run.
    """
    keys = run_keys(seed)
    params, model_state = model.init(keys.init, image_shape)
    return TrainState(jnp.zeros((), jnp.int32), params, model_state, optimizer.init(params), keys.steps)
