"""Convolutions and pooling, for the families that have them.

Legend: ``[B, H, W, C]`` batch, height, width, channels. Kernels are ``[size, size, in, out]`` in float32; `dtype` is
the type that a layer computes and answers in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gnpcli.models.layers import DTYPES, compact

LAYOUT = ("NHWC", "HWIO", "NHWC")
"""Order of the axes of images, kernel and answer."""

SMALL_MAP = 4
"""Largest side of an answer that a product of matrices is taken for on a CPU: XLA's convolution of a 3x3 kernel takes
1.2 to 1.4 times as long at 4 x 4 pixels, and 50 to 80 times at 2 x 2."""

Borders = tuple[tuple[int, int], ...]
"""Pixels added before and after, along H and along W; fewer than 0 cuts."""

_is_canonical: ContextVar[bool] = ContextVar("is_canonical", default=False)


@contextmanager
def canonical() -> Iterator[None]:
    """Make the convolutions that are traced inside XLA's own on a CPU too: what they count depends on no backend."""
    token = _is_canonical.set(True)
    try:
        yield
    finally:
        _is_canonical.reset(token)


he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def convolve(x: jax.Array, kernel: jax.Array, stride: int, same: bool) -> jax.Array:
    """Convolve ``[B, H, W, I]`` with ``[size, size, I, O]`` to ``[B, ceil(H / stride), ceil(W / stride), O]``.

    The padding is symmetric, ``size // 2`` for an odd `size`. With `same` it is XLA's ``SAME`` instead, which at a
    stride of 2 and even sides adds the larger half below and to the right, and shifts the answer by a pixel against
    that of a 1x1 convolution.
    """
    size = kernel.shape[0]
    is_on_cpu = jax.default_backend() == "cpu" and not _is_canonical.get()
    if size == 1 and is_on_cpu:
        # A quarter to two thirds of the time of XLA's CPU convolution with its gradients. Elsewhere a convolution it
        # remains: a product would fix the layout of the images around it, which the compiler chooses for the others.
        x = x[:, ::stride, ::stride]
        product = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
        return product.reshape(*x.shape[:-1], kernel.shape[-1])
    borders: Borders = ((size // 2, size // 2),) * 2
    if same:
        borders = tuple(jax.lax.padtype_to_pads(x.shape[1:3], (size, size), (stride, stride), "SAME"))
    if not is_on_cpu:
        return _windowed(x, kernel, stride, borders)
    steps = [(side + sum(border) - size) // stride + 1 for side, border in zip(x.shape[1:3], borders, strict=True)]
    if max(steps) > SMALL_MAP:
        return _windowed_on_cpu(x, kernel, stride, borders)
    product = jnp.concatenate(_windows(x, size, stride, borders), axis=1) @ kernel.reshape(-1, kernel.shape[-1])
    return product.reshape(x.shape[0], *steps, -1)


def _windowed(x: jax.Array, kernel: jax.Array, stride: int, borders: Borders) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), borders, dimension_numbers=LAYOUT)


def _windows(x: jax.Array, size: int, stride: int, borders: Sequence[tuple[int, int]]) -> list[jax.Array]:
    """Return what the rows of a kernel meet: for each a matrix ``[B * H' * W', size * I]``, a line for each window."""
    padded = jax.lax.pad(x, np.zeros((), x.dtype), ((0, 0, 0), *((*border, 0) for border in borders), (0, 0, 0)))
    height, width = ((side - size) // stride * stride + 1 for side in padded.shape[1:3])  # from first to last window
    return [
        jnp.concatenate(
            [padded[:, i : i + height : stride, j : j + width : stride].reshape(-1, x.shape[-1]) for j in range(size)],
            axis=1,
        )
        for i in range(size)
    ]


# XLA's CPU backend has fast code for a convolution in `LAYOUT` alone. Others it rewrites into it, but not inside loops:
# there the gradient of a sliced batch (`gr.groups`, `train.accumulate`) took twenty times as long. And with respect to
# the kernel, a convolution whose windows are whole images, even the fast code takes up to twelve times as long as
# products of matrices. So on a CPU the gradient is written out; the price is that such a network has no derivative
# forward. Forward over reverse, for Hessian-vector products, it has.
@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _windowed_on_cpu(x: jax.Array, kernel: jax.Array, stride: int, borders: Borders) -> jax.Array:
    return _windowed(x, kernel, stride, borders)


def _forward(x: jax.Array, kernel: jax.Array, stride: int, borders: Borders) -> tuple[jax.Array, Any]:
    return _windowed(x, kernel, stride, borders), (x, kernel)


def _backward(stride: int, borders: Borders, kept: Any, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    size = kernel.shape[0]
    x_borders = [
        (size - 1 - low, side - (steps - 1) * stride - 1 + low)
        for side, steps, (low, _) in zip(x.shape[1:3], dy.shape[1:3], borders, strict=True)
    ]
    turned = jnp.transpose(kernel[::-1, ::-1], (0, 1, 3, 2))
    dx = jax.lax.conv_general_dilated(
        dy, turned, (1, 1), x_borders, lhs_dilation=(stride, stride), dimension_numbers=LAYOUT
    )
    outputs = kernel.shape[3]
    if stride == 1:
        # The windows are those of dy, for a kernel turned around: those of x would be computed, and kept, long before.
        pixels = x.reshape(-1, x.shape[-1]).T
        rows = [(pixels @ windows).reshape(-1, size, outputs) for windows in _windows(dy, size, 1, x_borders)]
        return dx, jnp.stack(rows).transpose(0, 2, 1, 3)[::-1, ::-1]
    lines = dy.reshape(-1, outputs)
    rows = [(windows.T @ lines).reshape(size, -1, outputs) for windows in _windows(x, size, stride, borders)]
    return dx, jnp.stack(rows)


_windowed_on_cpu.defvjp(_forward, _backward)


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
