"""Convolutions and pooling, for the families that have them.

Legend: ``[B, H, W, C]`` batch, height, width, channels. Kernels are ``[size, size, in, out]`` in
float32; `dtype` is the type that a layer computes and answers in.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gnpcli.models.layers.dense import DTYPES, compact

LAYOUT = ("NHWC", "HWIO", "NHWC")
"""Order of the axes of images, kernel and answer."""

SMALL_MAP = 4
"""Largest side of an answer that a product of matrices is taken for on a CPU: XLA's convolution of
a 3x3 kernel takes 1.2 to 1.4 times as long at 4 x 4 pixels, and 50 to 80 times at 2 x 2."""

PIECE = 3 * 2**19
"""Most scalars of windows that are laid out at a time on a CPU: what its caches hold."""

MAX_OUTPUTS, MIN_PAIRS, MIN_SIDE = 64, 1024, 16
"""Most channels out, fewest pairs of channels in and out, and smallest side of the convolutions
that products of matrices are taken for on a CPU: XLA's take 1.3 to 1.6 times as long there."""

Borders = tuple[tuple[int, int], ...]
"""Pixels added before and after, along H and along W; fewer than 0 cuts."""

_is_canonical: ContextVar[bool] = ContextVar("is_canonical", default=False)


@contextmanager
def canonical() -> Iterator[None]:
    """Make the convolutions that are traced inside XLA's own on a CPU too: what they count depends
    on no backend.
    """
    token = _is_canonical.set(True)
    try:
        yield
    finally:
        _is_canonical.reset(token)


he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def convolve(x: jax.Array, kernel: jax.Array, stride: int, same: bool) -> jax.Array:
    """Convolve ``[B, H, W, I]`` with ``[size, size, I, O]`` to ``[B, ceil(H / stride), ceil(W /
    stride), O]``.

    The padding is symmetric, ``size // 2`` for an odd `size`. With `same` it is XLA's ``SAME``
    instead, which at a stride of 2 and even sides adds the larger half below and to the right, and
    shifts the answer by a pixel against that of a 1x1 convolution.
    """
    size = kernel.shape[0]
    is_on_cpu = jax.default_backend() == "cpu" and not _is_canonical.get()
    if size == 1 and is_on_cpu:
        # A quarter to two thirds of the time of XLA's CPU convolution with its gradients. Elsewhere
        # a convolution it remains: a product would fix the layout of the images around it, which
        # the compiler chooses for the others.
        x = x[:, ::stride, ::stride]
        product = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
        return product.reshape(*x.shape[:-1], kernel.shape[-1])
    borders: Borders = ((size // 2, size // 2),) * 2
    if same:
        borders = tuple(
            jax.lax.padtype_to_pads(x.shape[1:3], (size, size), (stride, stride), "SAME")
        )
    if not is_on_cpu:
        return _windowed(x, kernel, stride, borders)
    steps = [
        (side + sum(border) - size) // stride + 1
        for side, border in zip(x.shape[1:3], borders, strict=True)
    ]
    if max(steps) > SMALL_MAP:
        return _windowed_on_cpu(x, kernel, stride, borders)
    product = _windows(x, size, stride, borders) @ kernel.reshape(-1, kernel.shape[-1])
    return product.reshape(x.shape[0], *steps, -1)


def _windowed(x: jax.Array, kernel: jax.Array, stride: int, borders: Borders) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), borders, dimension_numbers=LAYOUT
    )


def _windows(x: jax.Array, size: int, stride: int, borders: Borders) -> jax.Array:
    """Return what a kernel meets: ``[B * H' * W', size * size * I]``, a line for each window."""
    padded = jax.lax.pad(
        x, np.zeros((), x.dtype), ((0, 0, 0), *((*border, 0) for border in borders), (0, 0, 0))
    )
    height, width = (
        (side - size) // stride * stride + 1 for side in padded.shape[1:3]
    )  # from first to last window
    shifted = [
        padded[:, i : i + height : stride, j : j + width : stride]
        for i in range(size)
        for j in range(size)
    ]
    return jnp.concatenate(shifted, axis=-1).reshape(-1, size * size * x.shape[-1])


def _in_pieces(x: jax.Array, windows: int, size: int) -> jax.Array:
    """Cut ``[B, H, W, I]`` into ``[pieces, B / pieces, H, W, I]``, as few as fit `PIECE`.

    One alone where there are several devices, among which the batch is divided: a loop over pieces
        would gather it.

    Args:
        x: The images.
        windows: Windows of an image.
        size: Side of the kernel.
    """
    batch, scalars = len(x), windows * size * size * x.shape[-1]
    fitting = [
        images
        for images in range(1, batch + 1)
        if batch % images == 0 and images * scalars <= PIECE
    ]
    images = batch if jax.device_count() > 1 else max(fitting, default=1)
    return x.reshape(batch // images, images, *x.shape[1:])


def _is_narrow(x: tuple[int, ...], kernel: tuple[int, ...]) -> bool:
    """Return whether `_by_products` is the faster one, for images and a kernel of these shapes."""
    _, height, width, _ = x
    size, _, inputs, outputs = kernel
    is_cached = height * width * size * size * inputs <= PIECE
    return (
        is_cached
        and outputs <= MAX_OUTPUTS
        and inputs * outputs >= MIN_PAIRS
        and min(height, width) >= MIN_SIDE
    )


def _by_products(x: jax.Array, kernel: jax.Array, borders: Borders) -> jax.Array:
    """Return what `_windowed` does at a stride of 1, by products of matrices."""
    size, outputs = kernel.shape[0], kernel.shape[-1]
    height, width = (
        side + sum(border) - size + 1 for side, border in zip(x.shape[1:3], borders, strict=True)
    )
    matrix = kernel.reshape(-1, outputs)
    pieces = _in_pieces(x, height * width, size)
    lines: jax.Array = jax.lax.map(lambda piece: _windows(piece, size, 1, borders) @ matrix, pieces)
    return lines.reshape(len(x), height, width, outputs)


def _kernel_gradient(
    x: jax.Array, dy: jax.Array, size: int, stride: int, borders: Borders
) -> jax.Array:
    """Return ``[size, size, I, O]``, the derivative with respect to the kernel of `_windowed`,
    added up in float32.
    """

    def product(x: jax.Array, dy: jax.Array) -> jax.Array:
        lines = dy.reshape(-1, dy.shape[-1])
        wide = np.promote_types(dy.dtype, np.float32)
        return jnp.matmul(lines.T, _windows(x, size, stride, borders), preferred_element_type=wide)

    pieces = _in_pieces(x, dy.shape[1] * dy.shape[2], size)
    none = product(x[:0], dy[:0])  # zero, and it varies over the mesh as a product does
    total, _ = jax.lax.scan(
        lambda total, piece: (total + product(*piece), None),
        none,
        (pieces, dy.reshape(*pieces.shape[:2], *dy.shape[1:])),
    )
    gradient: jax.Array = total.T.astype(dy.dtype).reshape(size, size, x.shape[-1], dy.shape[-1])
    return gradient


def _turned(kernel: jax.Array) -> jax.Array:
    """Return the kernel of the derivative with respect to the images: ``[size, size, O, I]``,
    turned by 180 degrees.
    """
    return kernel[::-1, ::-1].transpose(0, 1, 3, 2)


# XLA's CPU backend has fast code for a convolution in `LAYOUT` alone. Others it rewrites into it,
# but not inside loops: there the gradient of a sliced batch (`gr.groups`, `train.accumulate`) took
# twenty times as long. And with respect to the kernel, a convolution whose windows are whole
# images, even the fast code takes up to twelve times as long as products of matrices. So on a CPU
# the gradient is written out; the price is that such a network has no derivative forward. Forward
# over reverse, for Hessian-vector products, it has.
@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _windowed_on_cpu(x: jax.Array, kernel: jax.Array, stride: int, borders: Borders) -> jax.Array:
    return _fastest(x, kernel, stride, borders)


def _fastest(x: jax.Array, kernel: jax.Array, stride: int, borders: Borders) -> jax.Array:
    if stride == 1 and _is_narrow(x.shape, kernel.shape) and jax.device_count() == 1:
        return _by_products(x, kernel, borders)
    return _windowed(x, kernel, stride, borders)


def _forward(
    x: jax.Array, kernel: jax.Array, stride: int, borders: Borders
) -> tuple[jax.Array, Any]:
    return _fastest(x, kernel, stride, borders), (x, kernel)


def _backward(
    stride: int, borders: Borders, kept: Any, dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    size = kernel.shape[0]
    x_borders = tuple(
        (size - 1 - low, side - (steps - 1) * stride - 1 + low)
        for side, steps, (low, _) in zip(x.shape[1:3], dy.shape[1:3], borders, strict=True)
    )
    if stride == 1:
        dx = _fastest(dy, _turned(kernel), 1, x_borders)
    else:
        dx = jax.lax.conv_general_dilated(
            dy,
            _turned(kernel),
            (1, 1),
            x_borders,
            lhs_dilation=(stride, stride),
            dimension_numbers=LAYOUT,
        )
    if stride == 1 and dy.shape[-1] < x.shape[-1]:  # the windows of dy are the fewer scalars
        return dx, _turned(_kernel_gradient(dy, x, size, 1, x_borders))
    return dx, _kernel_gradient(x, dy, size, stride, borders)


_windowed_on_cpu.defvjp(_forward, _backward)


def max_pool(x: jax.Array, size: int, same: bool = False) -> jax.Array:
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


def avg_pool(x: jax.Array, size: int) -> jax.Array:
    """Average over `size` x `size` windows, `size` pixels apart: ``[B, H, W, C]`` to ``[B, ceil(H /
    size), ..., C]``.

    At sides that `size` does not divide, the last window holds fewer pixels and is the mean of
    those. Sums of strided slices, as in `max_pool`; Linen's pooling divides by float32 counts,
    which strict promotion refuses in bfloat16.
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
