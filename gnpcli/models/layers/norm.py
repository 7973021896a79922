"""Normalisation of features, by themselves or over the batch; computed in float32.

Legend: ``[..., D]`` any leading axes and D features, or C channels. Parameters and statistics are
float32; `dtype` is the type that a layer answers in.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from gnpcli.models.layers.dense import DTYPES, Initializer, compact

_statistics_axes: ContextVar[tuple[str, ...]] = ContextVar("statistics_axes", default=())


@contextmanager
def batch_statistics_over(*axis_names: str) -> Iterator[None]:
    """Make every BatchNorm that is traced inside average over these mapped axes too.

    It averages its statistics over them besides its batch. The axes are those of a `jax.vmap` or
    `jax.shard_map` that the trace is under. What is normalised apart on each of their indices then
    shares one mean and one variance. It is a context and not an argument, because it is about how a
    step cuts its batch, and no model family has to know.
    """
    token = _statistics_axes.set(axis_names)
    try:
        yield
    finally:
        _statistics_axes.reset(token)


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis, arXiv 1607.06450 equation 4; computed in float32.

    Written as mean, centre, rsqrt. The one-pass variance ``E[x^2] - E[x]^2`` of Linen's own cancels
    where the mean is large, and makes the whole training step of a ViT-Ti a seventh slower on a
    CPU.
    """

    eps: float = 1e-6
    dtype: np.dtype = DTYPES["float32"]

    @compact
    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        """Normalise ``[..., D]``."""
        shape = (1,) * (x.ndim - 1) + (x.shape[-1],)
        scale: jax.Array = self.param("scale", nn.initializers.ones, shape[-1:], jnp.float32)
        bias: jax.Array = self.param("bias", nn.initializers.zeros, shape[-1:], jnp.float32)
        x = x.astype(jnp.float32)
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(variance + self.eps)
        return (normed * scale.reshape(shape) + bias.reshape(shape)).astype(self.dtype)


class BatchNorm(nn.Module):
    """Batch normalisation of the last axis, computed in float32.

    It is arXiv 1502.03167 algorithms 1 and 2. In train mode the statistics are those of the whole
    batch, and of more under `batch_statistics_over`. The running averages then become
    ``momentum * running + (1 - momentum) * batch``. They are in the ``batch_stats`` collection, and
    eval mode uses them. The variance is the biased one in both modes. Linen's own layer is the same
    formula, but relies on implicit type promotion in bfloat16.
    """

    momentum: float = 0.9
    eps: float = 1e-5
    scale_init: Initializer = nn.initializers.ones
    dtype: np.dtype = DTYPES["float32"]

    @compact
    def __call__(self, x: Float[Array, "*rows C"], train: bool) -> Float[Array, "*rows C"]:
        """Normalise ``[..., C]`` per channel."""
        shape = (x.shape[-1],)
        scale: jax.Array = self.param("scale", self.scale_init, shape, jnp.float32)
        bias: jax.Array = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        axes = tuple(range(x.ndim - 1))
        x = x.astype(jnp.float32)
        if train:
            # One pass over the batch for both moments: 5 % of a WRN-16-4 step on a CPU. Rounding
            # may leave a variance that is really 0 just below it.
            mean, mean_square = x.mean(axis=axes), jnp.square(x).mean(axis=axes)
            if over := _statistics_axes.get():
                mean, mean_square = jax.lax.pmean((mean, mean_square), over)
            var = jnp.maximum(mean_square - jnp.square(mean), 0.0)
            running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
            running_var.value = self.momentum * running_var.value + (1 - self.momentum) * var
        else:
            mean, var = running_mean.value, running_var.value
        # One product with x and one sum: the backward pass then sums over the batch twice and not
        # three times, and x is all that is kept for it. What rounding does to it, it does to the
        # variance above as well.
        gain = jax.lax.rsqrt(var + self.eps) * scale
        shift = bias - mean * gain
        return (x * jnp.expand_dims(gain, axes) + jnp.expand_dims(shift, axes)).astype(self.dtype)


class NormRelu(nn.Module):
    """BatchNorm, then ReLU."""

    dtype: np.dtype

    @compact
    def __call__(self, x: Float[Array, "*rows C"], train: bool) -> Float[Array, "*rows C"]:
        """Normalise ``[..., C]`` per channel."""
        norm = BatchNorm(momentum=0.9, eps=1e-5, dtype=self.dtype, name="norm")
        return jax.nn.relu(norm(x, train))
