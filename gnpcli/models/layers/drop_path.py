"""Stochastic depth per image, arXiv 1603.09382 section 3, in the form that keeps the mean of every
residual branch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gnpcli.models.layers.dense import compact


def linear_rates(last: float, depth: int) -> tuple[float, ...]:
    """Return the rates of `depth` blocks, from 0 in the first to `last` in the last; one block
    alone has rate 0.
    """
    return tuple(last * index / max(1, depth - 1) for index in range(depth))


def drop_path(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Zero each image of ``[B, ...]`` with probability `rate` and scale the others by ``1 / (1 -
    rate)``.

    The rate is in ``[0, 1)``. The mask is a function of `key` and B alone. The product is taken in
    float32: a scale rounded to bfloat16 would bias every image by up to 0.4 %.
    """
    keep = jax.random.bernoulli(key, 1 - rate, (x.shape[0],) + (1,) * (x.ndim - 1))
    scale = jnp.where(keep, np.float32(1 / (1 - rate)), np.float32(0))
    return (x.astype(jnp.float32) * scale).astype(x.dtype)


class DropPath(nn.Module):
    """`drop_path` of a residual branch in train mode; draws nothing, and asks for no key, at rate
    0.
    """

    rate: float

    @compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Drop images of ``[B, ...]`` in train mode."""
        if not train or self.rate == 0:
            return x
        key: jax.Array = self.make_rng("dropout")
        return drop_path(x, self.rate, key)
