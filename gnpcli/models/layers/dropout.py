"""Dropout of elements, and of whole residual branches: both keep the mean."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Key

from gnpcli.models.layers.dense import compact

_DROPOUT_BITS = 16


def dropout(
    x: Float[Array, "*rows D"], rate: float, key: Key[Array, ""]
) -> Float[Array, "*rows D"]:
    """Zero each element with probability `rate`, and scale the others so that the mean stays.

    See JMLR 15, 1929-1958. The rate is rounded to a multiple of ``2**-16`` (0.1 becomes 0.100006).
    The scale is that of the rounded rate, so the mean is exact. In return a word of random bits
    serves two elements. That halves the work of what costs a ViT on a CPU most after its matrix
    products.

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


def linear_rates(last: float, depth: int) -> tuple[float, ...]:
    """Return the rates of `depth` blocks, from 0 in the first to `last` in the last.

    The steps between them are equal. One block alone has rate 0.
    """
    return tuple(last * index / max(1, depth - 1) for index in range(depth))


def drop_path(
    x: Float[Array, " B *image"], rate: float, key: Key[Array, ""]
) -> Float[Array, " B *image"]:
    """Zero each image of ``[B, ...]`` with probability `rate`, and scale the others.

    The scale is ``1 / (1 - rate)``, so the mean stays. The rate is in ``[0, 1)``. The mask is a
    function of `key` and B alone. The product is taken in float32: a scale rounded to bfloat16
    would bias every image by up to 0.4 %.
    """
    keep = jax.random.bernoulli(key, 1 - rate, (x.shape[0],) + (1,) * (x.ndim - 1))
    scale = jnp.where(keep, np.float32(1 / (1 - rate)), np.float32(0))
    return (x.astype(jnp.float32) * scale).astype(x.dtype)


class _Drop(nn.Module):
    """Drops in train mode. At rate 0 it draws nothing and asks for no key."""

    rate: float

    @compact
    def __call__(self, x: Float[Array, "*shape"], train: bool) -> Float[Array, "*shape"]:
        """Drop of ``[B, ...]`` in train mode, with a key of the ``dropout`` stream."""
        if not train or self.rate == 0:
            return x
        return self.drop(x, self.make_rng("dropout"))

    def drop(self, x: Float[Array, "*shape"], key: Key[Array, ""]) -> Float[Array, "*shape"]:
        """Return what is left of `x`."""
        raise NotImplementedError


class Dropout(_Drop):
    """Dropout of elements, see `dropout`."""

    def drop(self, x: Float[Array, "*shape"], key: Key[Array, ""]) -> Float[Array, "*shape"]:
        """Drop elements of ``[..., D]``."""
        return dropout(x, self.rate, key)


class DropPath(_Drop):
    """Stochastic depth: drops a residual branch for whole images, see `drop_path`."""

    def drop(self, x: Float[Array, "*shape"], key: Key[Array, ""]) -> Float[Array, "*shape"]:
        """Drop images of ``[B, ...]``."""
        return drop_path(x, self.rate, key)
