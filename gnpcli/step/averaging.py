"""Averages of the weights over training, and the BatchNorm statistics that fit them. Pure."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32, PyTree


def ema_decay(decay: float, step: Int32[Array, ""] | int) -> Float32[Array, ""]:
    """Return the decay of the moving average in step t = 0, 1, ...: ``min(decay, (1+t)/(10+t))``.

    The early bound is TensorFlow's ``ExponentialMovingAverage(num_updates=t)``: the average then
    reaches back over a constant share of the steps so far, and the random initial weights, at
    ``decay^t`` in a plain average, are gone after a few steps. 0.1 at t = 0, 0.92 at t = 100, 0.991
    at t = 1000.

    Args:
        decay: Of the plain average, in [0, 1].
        step: t, at least 0.
    """
    now = jnp.asarray(step, jnp.float32)
    return jnp.minimum(jnp.asarray(decay, jnp.float32), (1 + now) / (10 + now))


def ema_update(average: PyTree, values: PyTree, decay: Float32[Array, ""]) -> PyTree:
    """Return the exponential moving average ``decay * average + (1 - decay) * values``.

    Args:
        average: Tree of float32 arrays, of any shapes.
        values: A tree like it.
        decay: Float32 scalar in [0, 1], see `ema_decay`.
    """
    return jax.tree.map(lambda old, new: new + decay * (old - new), average, values)


def batch_statistics(apply: Callable[[PyTree], PyTree], state: PyTree) -> PyTree:
    """Return the statistics of one batch, without the running averages that a model mixes them in.

    A model in training mode shows only its new running average ``s' = m s + (1 - m) b`` of the
    batch's statistics b, and not its momentum m. At s = 0 the average is ``(1 - m) b``, and its
    derivative with respect to s is m. So one evaluation with a forward derivative gives b. The
    derivative costs nothing: in training mode no activation depends on s.

    Args:
        apply: ``state -> new_state`` of the model in training mode on one batch. Everything else
            is fixed.
        state: Float32 leaves. A leaf that no batch moves (m = 1) comes back as it is here.
    """
    zeros = jax.tree.map(jnp.zeros_like, state)
    ones = jax.tree.map(jnp.ones_like, state)
    from_zeros, momentum = jax.jvp(apply, (zeros,), (ones,))

    def batch(
        new: Float[Array, "*shape"], m: Float[Array, "*shape"], old: Float[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        return jnp.where(m < 1, new / jnp.where(m < 1, 1 - m, 1.0), old)

    return jax.tree.map(batch, from_zeros, momentum, state)
