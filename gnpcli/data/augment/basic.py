"""Augmentation and normalisation of image batches: pure, jittable, on uint8 until the last step.

Each image draws its own random numbers. Measured on two CPU cores (jax 0.10.2; batch 256 of
32x32x3, taken from a resident data set, cropped, flipped and normalised): 0.7 ms with the gathers
below, 0.4 ms without augmentation. Reflecting into a padded copy and slicing it under vmap takes
4.3 ms, one-hot matrix products 4.0 ms, a choice among all static shifts 2.0 ms; a flip as
`where(flip, images[:, :, ::-1], images)` alone 2.1 ms. Gathers win because XLA fuses them, and the
normalisation, into the one that takes the batch from the data set: no copy is ever written.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int32, Key, Shaped, UInt8


def normalize(
    images: UInt8[Array, "B H W C"],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "B H W C"]:
    """Return ``(images / 255 - mean) / std``.

    Args:
        images: uint8 ``[B, H, W, C]``.
        mean: Per channel, of pixel values in [0, 1].
        std: Per channel, of pixel values in [0, 1]; above 0.
        dtype: Type of the result; the arithmetic is float32.

    Returns:
        `dtype` ``[B, H, W, C]``.
    """
    # One multiplication and one addition per pixel, with constants computed in float64.
    deviation = np.asarray(std, dtype=np.float64).reshape(1, 1, 1, -1)
    scale = (1 / (255 * deviation)).astype(np.float32)
    shift = (-np.asarray(mean, dtype=np.float64).reshape(1, 1, 1, -1) / deviation).astype(
        np.float32
    )
    return (images.astype(jnp.float32) * scale + shift).astype(dtype)


def random_reflect_crop(
    key: Key[Array, ""], images: Shaped[Array, "B H W C"], padding: int
) -> Shaped[Array, "B H W C"]:
    """Extend each image by its reflection on all sides and cut a window from a random place.

    The window has the size of the image. The result is that of ``numpy.pad(images, padding,
    mode="reflect")`` on rows and columns and a crop. Its offsets are drawn per image and axis,
    uniform in 0 .. 2 * padding; `padding` leaves the image as it was.

    Args:
        key: Typed PRNG key.
        images: ``[B, H, W, C]`` of any type.
        padding: Pixels; 0 returns the images, at most ``min(H, W) - 1``.

    Returns:
        Type and shape of `images`.
    """
    offsets = jax.random.randint(key, (2, images.shape[0]), 0, 2 * padding + 1, dtype=jnp.int32)
    return reflect_crop(images, offsets, padding)


def reflect_crop(
    images: Shaped[Array, "B H W C"], offsets: Int32[Array, "2 B"], padding: int
) -> Shaped[Array, "B H W C"]:
    """Crop as `random_reflect_crop` does, at given places.

    Args:
        images: ``[B, H, W, C]``.
        offsets: int32 ``[2, B]``, of rows and of columns, 0 to 2 * padding.
        padding: At most ``min(H, W) - 1``.
    """
    _, height, width, _ = images.shape
    if not 0 <= padding < min(height, width):
        raise ValueError(f"padding {padding} is not below the image size {height}x{width}")
    rows = _window(offsets[0], height, padding)
    columns = _window(offsets[1], width, padding)
    return _gather(images, rows, columns)


def random_flip(key: Key[Array, ""], images: Shaped[Array, "B H W C"]) -> Shaped[Array, "B H W C"]:
    """Mirror each image left to right with probability one half.

    Args:
        key: Typed PRNG key.
        images: ``[B, H, W, C]`` of any type.

    Returns:
        Type and shape of `images`.
    """
    batch, height, width, _ = images.shape
    flip = jax.random.bernoulli(key, shape=(batch, 1))
    rows = jnp.broadcast_to(jnp.arange(height, dtype=jnp.int32), (batch, height))
    columns = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), (batch, width))
    return _gather(images, rows, jnp.where(flip, width - 1 - columns, columns))


def _window(offset: jax.Array, size: int, padding: int) -> jax.Array:
    """Return int32 ``[B, size]``: the place in the image of each place of a window.

    The window lies on the image extended by its reflection.
    """
    place = offset[:, None] + jnp.arange(size, dtype=jnp.int32)[None, :] - padding
    # Reflection at the first pixel is |x|; at the last one, the same seen from there.
    return (size - 1) - jnp.abs((size - 1) - jnp.abs(place))


def _gather(images: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Return ``images[b, rows[b, i], columns[b, j]]``.

    `rows` and `columns` are int32 ``[B, size]``, in range.
    """

    # vmap, not an index array for b: XLA then sees that images do not mix, and splits the batch
    # over devices without any communication.
    def pick(image: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
        return image.at[row[:, None], column[None, :]].get(mode="promise_in_bounds")

    picked: jax.Array = jax.vmap(pick)(images, rows, columns)
    return picked
