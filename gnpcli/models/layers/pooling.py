"""Pooling of images.

Legend: ``[B, H, W, C]`` batch, height, width, channels; ``[B, Y, X, C]`` the pooled images.
"""

from __future__ import annotations

from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def max_pool(x: Float[Array, "B H W C"], size: int, same: bool = False) -> Float[Array, "B Y X C"]:
    """Take the maximum over `size` x `size` windows, 2 pixels apart, of ``[B, H, W, C]``.

    Written as maxima of strided slices, whose gradient is made of sums and selections: that of the
    windowed reduction takes five to ten times as long on a CPU. Where several pixels of a window
    share the maximum, they share its gradient.

    Args:
        x: The images.
        size: Side of a window in pixels: 2, or 3 with a border of one pixel that never wins.
        same: Whether the border is that of XLA's ``SAME``, which along an even side has no pixel at
            the front.
    """
    lowest = np.asarray(-np.inf, x.dtype)
    border = (size - 1) // 2
    for axis in (1, 2):
        edges = [(border, border)]
        if same:
            edges = jax.lax.padtype_to_pads((x.shape[axis],), (size,), (2,), "SAME")
        padding = [(0, 0, 0)] * x.ndim
        padding[axis] = (*edges[0], 0)
        x = jax.lax.pad(x, lowest, padding)
        last = (x.shape[axis] - size) // 2 * 2  # first pixel of the last window
        x = reduce(
            jnp.maximum, [jax.lax.slice_in_dim(x, k, k + last + 1, 2, axis) for k in range(size)]
        )
    return x


def avg_pool(x: Float[Array, "B H W C"], size: int) -> Float[Array, "B Y X C"]:
    """Average over `size` x `size` windows, `size` pixels apart.

    ``[B, H, W, C]`` becomes ``[B, ceil(H / size), ceil(W / size), C]``. At a side that `size` does
    not divide, the last window holds fewer pixels and is the mean of those.

    It is made of sums of strided slices, as `max_pool` is of maxima. Linen's pooling divides by
    float32 counts, which strict promotion refuses in bfloat16.
    """
    for axis in (1, 2):
        side = x.shape[axis]
        starts = range(0, side, size)
        padding = [(0, 0, 0)] * x.ndim
        padding[axis] = (0, len(starts) * size - side, 0)
        x = jax.lax.pad(x, np.zeros((), x.dtype), padding)
        x = reduce(jnp.add, [jax.lax.slice_in_dim(x, k, None, size, axis) for k in range(size)])
        shares = np.asarray([1 / min(size, side - start) for start in starts], x.dtype)
        x = x * jnp.expand_dims(shares, tuple(other for other in range(x.ndim) if other != axis))
    return x


def pool_and_pad(
    x: Float[Array, "B H W C"], channels: int, stride: int
) -> Float[Array, "B Y X {channels}"]:
    """Average over `stride` x `stride` windows, and append zero channels up to `channels`.

    ``[B, H, W, C]`` becomes ``[B, ceil(H / stride), ceil(W / stride), channels]``; see `avg_pool`.
    """
    if stride > 1:
        x = avg_pool(x, stride)
    return jax.lax.pad(x, np.zeros((), x.dtype), [(0, 0, 0)] * 3 + [(0, channels - x.shape[-1], 0)])
