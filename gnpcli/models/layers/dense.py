"""Layers that the model families share, and that neither Linen nor jax.nn has in this form.

Legend: ``[B, T, D]`` is images, tokens, features; ``...`` any leading axes. Parameters are float32
and drawn in float32; `dtype` is the type that a layer computes and answers in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

DTYPES = {"float32": jnp.dtype(jnp.float32), "bfloat16": jnp.dtype(jnp.bfloat16)}
"""Compute types by the name they have in a configuration."""

Initializer = Callable[..., jax.Array]
"""``init(key, shape, dtype) -> array``."""

Method = TypeVar("Method", bound=Callable[..., Any])

_DROPOUT_BITS = 16

_statistics_axes: ContextVar[tuple[str, ...]] = ContextVar("statistics_axes", default=())


@contextmanager
def batch_statistics_over(*axis_names: str) -> Iterator[None]:
    """Make every BatchNorm that is traced inside average its statistics over these mapped axes
    besides its batch.

    The axes are those of a `jax.vmap` or `jax.shard_map` that the trace is under: what is
    normalised apart on each of their indices then shares one mean and one variance. A context and
    not an argument, because it is about how a step cuts its batch, and no model family has to know.
    """
    token = _statistics_axes.set(axis_names)
    try:
        yield
    finally:
        _statistics_axes.reset(token)


def compact(method: Method) -> Method:
    """Mark a module's method as `flax.linen.compact` does, and keep its type, which flax does not
    declare.
    """
    return cast(Method, nn.compact(method))


def tanh_gelu(x: jax.Array) -> jax.Array:
    """Gaussian error linear unit in its tanh form, arXiv 1606.08415 section 2: what ViT's own code
    uses.
    """
    return jax.nn.gelu(x, approximate=True)


def exact_gelu(x: jax.Array) -> jax.Array:
    """Gaussian error linear unit ``x Phi(x)``, arXiv 1606.08415 equation 1, computed in float32.

    By `erf`, where `jax.nn.gelu` takes `erfc`: 1.5 times faster on a CPU with its derivative. What
    that loses is the relative precision of answers near 0, at x below -3.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * np.float32(0.5**0.5)))).astype(x.dtype)


GELUS: dict[str, Callable[[jax.Array], jax.Array]] = {"tanh": tanh_gelu, "exact": exact_gelu}
"""Forms of the GELU by the name they have in a configuration."""


def linear(x: jax.Array, kernel: jax.Array, bias: jax.Array, dtype: np.dtype) -> jax.Array:
    """Return ``x @ kernel + bias`` in `dtype`, for `x` ``[..., I]``, `kernel` ``[I, O]`` and `bias`
    ``[O]``.

    The leading axes are flattened first: XLA's CPU backend is faster with one large 2-D product
    than with a batched one, and the reshape is free everywhere.
    """
    rows = x.reshape(-1, x.shape[-1]).astype(dtype)
    product = rows @ kernel.astype(dtype) + bias.astype(dtype)[None, :]
    return product.reshape(*x.shape[:-1], kernel.shape[1])


def dropout(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Zero each element with probability `rate` and scale the others so that the mean stays (JMLR
    15, 1929-1958).

    The rate is rounded to a multiple of ``2**-16`` (0.1 becomes 0.100006), and the scale is that of
    the rounded rate, so the mean is exact. In return a word of random bits serves two elements,
    which halves the work of what costs a ViT on a CPU most after its matrix products.

    Args:
        x: ``[..., D]``.
        rate: In ``[0, 1)``; at least one element in 65536 is kept on average.
        key: The mask is a function of it and of the shape alone.
    """
    levels = 2**_DROPOUT_BITS
    kept_levels = max(1, round((1.0 - rate) * levels))
    size = x.shape[-1]
    words = jax.random.bits(key, (*x.shape[:-1], (size + 1) // 2), jnp.uint32)
    # The two halves of a word serve the two halves of the axis: no interleaving, hence no transpose
    # on any device.
    halves = (words & np.uint32(levels - 1), words >> np.uint32(_DROPOUT_BITS))
    keep = jnp.concatenate([half < np.uint32(kept_levels) for half in halves], axis=-1)[..., :size]
    return jnp.where(keep, x * np.asarray(levels / kept_levels, x.dtype), np.zeros((), x.dtype))


class Dense(nn.Module):
    """``[..., I] -> [..., features]``, see `linear`."""

    features: int
    kernel_init: Initializer
    bias_init: Initializer = nn.initializers.zeros
    dtype: np.dtype = DTYPES["float32"]

    @compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layer."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
        return linear(x, kernel, bias, self.dtype)


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis, arXiv 1607.06450 equation 4; computed in float32.

    Written as mean, centre, rsqrt. The one-pass variance ``E[x^2] - E[x]^2`` of Linen's own cancels
    where the mean is large, and makes the whole training step of a ViT-Ti a seventh slower on a
    CPU.
    """

    eps: float = 1e-6
    dtype: np.dtype = DTYPES["float32"]

    @compact
    def __call__(self, x: jax.Array) -> jax.Array:
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
    """Batch normalisation of the last axis, arXiv 1502.03167 algorithms 1 and 2; computed in
    float32.

    In train mode the statistics are those of the whole batch (and of more under
    `batch_statistics_over`), and the running averages in the ``batch_stats`` collection, which eval
    mode uses, move to ``momentum * running + (1 - momentum) * batch``. The variance is the biased
    one in both. Linen's own layer is the same formula, but relies on implicit type promotion in
    bfloat16.
    """

    momentum: float = 0.9
    eps: float = 1e-5
    scale_init: Initializer = nn.initializers.ones
    dtype: np.dtype = DTYPES["float32"]

    @compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
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


class Dropout(nn.Module):
    """Dropout that draws nothing, and asks for no key, where it has nothing to drop; see `dropout`."""

    rate: float

    @compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Drop elements in train mode."""
        if not train or self.rate == 0:
            return x
        key: jax.Array = self.make_rng("dropout")
        return dropout(x, self.rate, key)
