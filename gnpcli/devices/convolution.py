"""Convolution: XLA's own, and for a CPU the products of matrices that are faster there.

Legend: ``[B, H, W, C]`` batch, height, width, channels; Y, X height and width of the answer;
    I channels in, O channels out; kernels ``[size, size, I, O]``.

All arrays of a call have one dtype, which is also that of the answer.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gnpcli.devices import cpu
from gnpcli.devices.mesh import is_batch_split

LAYOUT = ("NHWC", "HWIO", "NHWC")
"""Order of the axes of images, kernel and answer."""

SMALL_MAP = 4
"""Largest side of an answer that a product of matrices is taken for on a CPU.

XLA's convolution of a 3x3 kernel takes 1.2 to 1.4 times as long at 4 x 4 pixels, and 50 to 80 times
at 2 x 2."""

CHUNK = 3 * 2**19
"""Most scalars of windows that are laid out at a time on a CPU: what its caches hold."""

MAX_OUTPUTS, MIN_PAIRS, MIN_SIDE = 64, 1024, 16
"""Where products of matrices are taken for larger maps on a CPU.

Most channels out, fewest pairs of channels in and out, and smallest side. XLA's convolutions take
1.3 to 1.6 times as long there."""

Borders = tuple[tuple[int, int], ...]
"""Pixels added before and after, along H and along W; fewer than 0 cuts."""


def convolve(
    x: Float[Array, "B H W I"],
    kernel: Float[Array | np.ndarray, "size size I O"],
    stride: int,
    same: bool,
) -> Float[Array, "B Y X O"]:
    """Convolve ``[B, H, W, I]`` to ``[B, ceil(H / stride), ceil(W / stride), O]``.

    The padding is symmetric, ``size // 2`` for an odd `size`. With `same` it is XLA's ``SAME``.
    At a stride of 2 and even sides ``SAME`` adds the larger half below and to the right, and shifts
    the answer by a pixel against that of a 1x1 convolution.

    Under `gnpcli.devices.cpu.tuning` it has no plain forward-mode derivative. Forward over reverse,
    for Hessian-vector products, it has.

    Args:
        x: The images.
        kernel: ``[size, size, I, O]``.
        stride: Pixels between two windows, along both sides.
        same: Whether the padding is ``SAME``.
    """
    kernel = jnp.asarray(kernel)
    size = kernel.shape[0]
    borders: Borders = ((size // 2, size // 2),) * 2
    if same:
        borders = tuple(
            jax.lax.padtype_to_pads(x.shape[1:3], (size, size), (stride, stride), "SAME")
        )
    if not cpu.is_tuned():
        return windowed(x, kernel, stride, borders)
    return _convolve(x, kernel, stride, borders, is_batch_split())


def windowed(
    x: Float[Array, "B H W I"],
    kernel: Float[Array, "size size I O"],
    stride: int,
    borders: Borders,
) -> Float[Array, "B Y X O"]:
    """Return XLA's own convolution; arguments as in `convolve`, but for the borders."""
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), borders, dimension_numbers=LAYOUT
    )


# The choice between the backends is made in the values and again in the gradients. So none is
# differentiated through, and each backend keeps for the gradient what it needs.
@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolve(
    x: jax.Array, kernel: jax.Array, stride: int, borders: Borders, is_split: bool
) -> jax.Array:
    return _values(x, kernel, stride, borders, is_split)


def _values(
    x: jax.Array, kernel: jax.Array, stride: int, borders: Borders, is_split: bool
) -> jax.Array:
    return cpu.on_cpu(
        partial(_values_on_cpu, stride=stride, borders=borders, is_split=is_split),
        partial(windowed, stride=stride, borders=borders),
        x,
        kernel,
    )


def _forward(
    x: jax.Array, kernel: jax.Array, stride: int, borders: Borders, is_split: bool
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _values(x, kernel, stride, borders, is_split), (x, kernel)


def _backward(
    stride: int,
    borders: Borders,
    is_split: bool,
    kept: tuple[jax.Array, jax.Array],
    dy: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    return cpu.on_cpu(
        partial(_gradients_on_cpu, stride=stride, borders=borders, is_split=is_split),
        partial(_gradients, stride=stride, borders=borders),
        *kept,
        dy,
    )


_convolve.defvjp(_forward, _backward)


def _gradients(
    x: jax.Array, kernel: jax.Array, dy: jax.Array, stride: int, borders: Borders
) -> tuple[jax.Array, jax.Array]:
    """Return the derivatives of `windowed` with respect to images and kernel, as JAX has them."""
    _, pull = jax.vjp(partial(windowed, stride=stride, borders=borders), x, kernel)
    dx, dkernel = pull(dy)
    return dx, dkernel


# From here on: for a CPU.


def _values_on_cpu(
    x: jax.Array, kernel: jax.Array, stride: int, borders: Borders, is_split: bool
) -> jax.Array:
    if _is_one_product(x.shape, kernel.shape, stride, borders):
        return _by_one_product(x, kernel, stride, borders)
    return _fastest(x, kernel, stride, borders, is_split)


def _is_one_product(
    x: tuple[int, ...], kernel: tuple[int, ...], stride: int, borders: Borders
) -> bool:
    """Return whether one product of matrices is the fastest, for images and kernel as these."""
    return kernel[0] == 1 or max(_answer_sides(x, kernel, stride, borders)) <= SMALL_MAP


def _answer_sides(
    x: tuple[int, ...], kernel: tuple[int, ...], stride: int, borders: Borders
) -> list[int]:
    """Return H and W of the answer."""
    return [
        (side + sum(border) - kernel[0]) // stride + 1
        for side, border in zip(x[1:3], borders, strict=True)
    ]


def _by_one_product(x: jax.Array, kernel: jax.Array, stride: int, borders: Borders) -> jax.Array:
    """Return what `windowed` does by one product of matrices.

    A 1x1 convolution takes a quarter to two thirds of the time of XLA's CPU convolution, with its
    gradients. Other backends keep the convolution: a product would fix the layout of the images
    around it, which their compilers choose for the convolutions around.
    """
    size, outputs = kernel.shape[0], kernel.shape[-1]
    if size == 1:
        # Its borders are 0.
        x = x[:, ::stride, ::stride]
        product = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
        return product.reshape(*x.shape[:-1], outputs)
    sides = _answer_sides(x.shape, kernel.shape, stride, borders)
    product = _windows(x, size, stride, borders) @ kernel.reshape(-1, outputs)
    return product.reshape(x.shape[0], *sides, outputs)


def _windows(x: jax.Array, size: int, stride: int, borders: Borders) -> jax.Array:
    """Return what a kernel meets: ``[B * H' * W', size * size * I]``, a line for each window."""
    edges = [(*border, 0) for border in borders]
    padded = jax.lax.pad(x, np.zeros((), x.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
    # From the first to the last window.
    height, width = ((side - size) // stride * stride + 1 for side in padded.shape[1:3])
    shifted = [
        padded[:, i : i + height : stride, j : j + width : stride]
        for i in range(size)
        for j in range(size)
    ]
    return jnp.concatenate(shifted, axis=-1).reshape(-1, size * size * x.shape[-1])


def _in_chunks(x: jax.Array, windows: int, size: int, is_split: bool) -> jax.Array:
    """Cut ``[B, H, W, I]`` into ``[chunks, B / chunks, H, W, I]``, as few as fit `CHUNK`.

    Args:
        x: The images.
        windows: Windows of an image.
        size: Side of the kernel.
        is_split: Whether several devices share the batch. It is one chunk then: a loop over chunks
            would gather it on each of them.
    """
    batch = len(x)
    images = batch if is_split else _images_of_a_chunk(batch, windows * size * size * x.shape[-1])
    return x.reshape(batch // images, images, *x.shape[1:])


def _images_of_a_chunk(batch: int, scalars: int) -> int:
    """Return the largest divisor of `batch` whose images, of so many scalars each, fit `CHUNK`."""
    fitting = [
        images
        for images in range(1, batch + 1)
        if batch % images == 0 and images * scalars <= CHUNK
    ]
    return max(fitting, default=1)


def _fastest(
    x: jax.Array, kernel: jax.Array, stride: int, borders: Borders, is_split: bool
) -> jax.Array:
    if stride == 1 and not is_split and _is_narrow(x.shape, kernel.shape):
        return _by_products(x, kernel, borders)
    return windowed(x, kernel, stride, borders)


def _is_narrow(x: tuple[int, ...], kernel: tuple[int, ...]) -> bool:
    """Return whether `_by_products` is the faster one, for images and a kernel of these shapes."""
    _, height, width, _ = x
    size, _, inputs, outputs = kernel
    is_cached = height * width * size * size * inputs <= CHUNK
    return (
        is_cached
        and outputs <= MAX_OUTPUTS
        and inputs * outputs >= MIN_PAIRS
        and min(height, width) >= MIN_SIDE
    )


def _by_products(x: jax.Array, kernel: jax.Array, borders: Borders) -> jax.Array:
    """Return what `windowed` does at a stride of 1, by a product of matrices for each chunk."""
    size, outputs = kernel.shape[0], kernel.shape[-1]
    height, width = _answer_sides(x.shape, kernel.shape, 1, borders)
    matrix = kernel.reshape(-1, outputs)
    chunks = _in_chunks(x, height * width, size, is_split=False)
    lines: jax.Array = jax.lax.map(lambda chunk: _windows(chunk, size, 1, borders) @ matrix, chunks)
    return lines.reshape(len(x), height, width, outputs)


# XLA's CPU backend has fast code for a convolution in `LAYOUT` alone. It rewrites others into it,
# but not inside loops: there the gradient of a sliced batch (`gr.groups`, `train.accumulate`) took
# twenty times as long. The gradient with respect to the kernel is a convolution whose windows are
# whole images. Even the fast code takes up to twelve times as long for it as products of matrices.
# So the gradients are written out.
def _gradients_on_cpu(
    x: jax.Array,
    kernel: jax.Array,
    dy: jax.Array,
    stride: int,
    borders: Borders,
    is_split: bool,
) -> tuple[jax.Array, jax.Array]:
    if _is_one_product(x.shape, kernel.shape, stride, borders):
        _, pull = jax.vjp(partial(_by_one_product, stride=stride, borders=borders), x, kernel)
        dx, dkernel = pull(dy)
        return dx, dkernel
    size = kernel.shape[0]
    x_borders = tuple(
        (size - 1 - low, side - (steps - 1) * stride - 1 + low)
        for side, steps, (low, _) in zip(x.shape[1:3], dy.shape[1:3], borders, strict=True)
    )
    dx = _image_gradient(dy, kernel, stride, x_borders, is_split)
    if stride == 1 and dy.shape[-1] < x.shape[-1]:  # the windows of dy are the fewer scalars
        return dx, _turned(_kernel_gradient(dy, x, size, 1, x_borders, is_split))
    return dx, _kernel_gradient(x, dy, size, stride, borders, is_split)


def _image_gradient(
    dy: jax.Array, kernel: jax.Array, stride: int, borders: Borders, is_split: bool
) -> jax.Array:
    """Return ``[B, H, W, I]``, the derivative of `windowed` with respect to the images."""
    if stride == 1:
        return _fastest(dy, _turned(kernel), 1, borders, is_split)
    return jax.lax.conv_general_dilated(
        dy,
        _turned(kernel),
        (1, 1),
        borders,
        lhs_dilation=(stride, stride),
        dimension_numbers=LAYOUT,
    )


def _kernel_gradient(
    x: jax.Array, dy: jax.Array, size: int, stride: int, borders: Borders, is_split: bool
) -> jax.Array:
    """Return ``[size, size, I, O]``, the derivative of `windowed` with respect to the kernel.

    It is added up in float32.
    """

    def product(x: jax.Array, dy: jax.Array) -> jax.Array:
        lines = dy.reshape(-1, dy.shape[-1])
        wide = np.promote_types(dy.dtype, np.float32)
        return jnp.matmul(lines.T, _windows(x, size, stride, borders), preferred_element_type=wide)

    chunks = _in_chunks(x, dy.shape[1] * dy.shape[2], size, is_split)
    none = product(x[:0], dy[:0])  # zero, and it varies over the mesh as a product does
    total, _ = jax.lax.scan(
        lambda total, chunk: (total + product(*chunk), None),
        none,
        (chunks, dy.reshape(*chunks.shape[:2], *dy.shape[1:])),
    )
    gradient: jax.Array = total.T.astype(dy.dtype).reshape(size, size, x.shape[-1], dy.shape[-1])
    return gradient


def _turned(kernel: jax.Array) -> jax.Array:
    """Return the kernel of the derivative with respect to the images.

    It is ``[size, size, O, I]``, turned by 180 degrees.
    """
    return kernel[::-1, ::-1].transpose(0, 1, 3, 2)
