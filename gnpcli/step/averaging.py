"""Averages of the weights over training, and the BatchNorm statistics that fit them; pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def ema_decay(decay: float, step: jax.Array | int) -> jax.Array:
    """Return the decay of the moving average in a step: ``min(decay, (1 + t) / (10 + t))``, t = 0,
    1, ...

    The early bound is TensorFlow's ``ExponentialMovingAverage(num_updates=t)``: the average then
    reaches back over a constant share of the steps so far, and the random initial weights, at
    ``decay^t`` in a plain average, are gone after a few steps. 0.1 at t = 0, 0.92 at t = 100, 0.991
    at t = 1000.
    """
    now = jnp.asarray(step, jnp.float32)
    return jnp.minimum(jnp.asarray(decay, jnp.float32), (1 + now) / (10 + now))


def moved(average: Any, values: Any, decay: jax.Array) -> Any:
    """Return ``decay * average + (1 - decay) * values``, leaf by leaf (Polyak averaging,
    exponentially weighted).
    """
    return jax.tree.map(lambda old, new: new + decay * (old - new), average, values)


def batch_statistics(apply: Callable[[Any], Any], state: Any) -> Any:
    """Return the statistics of one batch, of which a model in training mode shows only what they
    make of its averages.

    A running average moves from s to ``s' = m s + (1 - m) b``, with the momentum m its own secret.
    So from s = 0 it comes to ``(1 - m) b``, and its derivative with respect to s is m: one
    evaluation gives b, with a forward derivative that costs nothing, since in training mode no
    activation depends on s.

    Args:
        apply: ``state -> new state`` of the model in training mode on one batch, everything else
            fixed.
        state: float32 leaves. A leaf that no batch moves (m = 1) comes back as it is here.
    """
    zeros, ones = jax.tree.map(jnp.zeros_like, state), jax.tree.map(jnp.ones_like, state)
    moved_zeros, momentum = jax.jvp(apply, (zeros,), (ones,))

    def batch(new: jax.Array, m: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(m < 1, new / jnp.where(m < 1, 1 - m, 1.0), old)

    return jax.tree.map(batch, moved_zeros, momentum, state)
