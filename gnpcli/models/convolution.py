"""Convolutions and pooling, for the families that have them.

Legend: ``[B, H, W, C]`` batch, height, width, channels. Kernels are ``[size, size, in, out]`` in float32; `dtype` is
the type that a layer computes and answers in.
"""

from __future__ import annotations

from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gnpcli.models.layers import DTYPES, compact

he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def convolve(x: jax.Array, kernel: jax.Array, stride: int, same: bool) -> jax.Array:
    """Convolve ``[B, H, W, I]`` with ``[size, size, I, O]`` to ``[B, ceil(H / stride), ceil(W / stride), O]``.

    The padding is symmetric, ``size // 2`` for an odd `size`. With `same` it is XLA's ``SAME`` instead, which at a
    stride of 2 and even sides adds the larger half below and to the right, and shifts the answer by a pixel against
    that of a 1x1 convolution.
    """
    size = kernel.shape[0]
    if size == 1 and jax.default_backend() == "cpu":
        # A quarter to two thirds of the time of XLA's CPU convolution with its gradients. Elsewhere a convolution it
        # remains: a product would fix the layout of the images around it, which the compiler chooses for the others.
        x = x[:, ::stride, ::stride]
        product = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
        return product.reshape(*x.shape[:-1], kernel.shape[-1])
    padding = "SAME" if same else ((size // 2, size // 2),) * 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def max_pool(x: jax.Array, size: int, same: bool = False) -> jax.Array:
    """Take the maximum over `size` x `size` windows, 2 pixels apart, of ``[B, H, W, C]``.

    Written as maxima of strided slices, whose gradient is made of sums and selections: that of the windowed reduction
    takes five to ten times as long on a CPU. Where several pixels of a window share the maximum, they share its
    gradient.

    Args:
        x: The images.
        size: Side of a window in pixels: 2, or 3 with a border of one pixel that never wins.
        same: Whether the border is that of XLA's ``SAME``, which along an even side has no pixel at the front.
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
        x = reduce(jnp.maximum, [jax.lax.slice_in_dim(x, k, k + last + 1, 2, axis) for k in range(size)])
    return x


def avg_pool(x: jax.Array, size: int) -> jax.Array:
    """Average over `size` x `size` windows, `size` pixels apart: ``[B, H, W, C]`` to ``[B, ceil(H / size), ..., C]``.

    At sides that `size` does not divide, the last window holds fewer pixels and is the mean of those. Sums of strided
    slices, as in `max_pool`; Linen's pooling divides by float32 counts, which strict promotion refuses in bfloat16.
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


class Conv(nn.Module):
    """``[B, H, W, I] -> [B, ceil(H / stride), ceil(W / stride), channels]``, see `convolve`."""

    channels: int
    size: int
    stride: int = 1
    same: bool = False
    bias: bool = False
    dtype: np.dtype = DTYPES["float32"]

    @compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layer."""
        shape = (self.size, self.size, x.shape[-1], self.channels)
        kernel = self.param("kernel", he_normal_fan_out, shape, jnp.float32)
        y = convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.same)
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.channels,), jnp.float32)
            y = y + bias.astype(self.dtype)[None, None, None, :]
        return y
