"""What is known of weights that were trained elsewhere.

See `from_torch`, `facts` and `resize` of `gnpcli.models.family.Family`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Float32

Path = tuple[str, ...]
"""Names from the root of the parameters to an array."""


class Facts(NamedTuple):
    """The part of a configuration that weights leave no choice in."""

    image_size: int
    """Side in pixels of the images that the weights are for.

    Where any size will do, it is one that is usual for them.
    """
    channels: int
    """Of the images."""
    options: dict[str, Any]
    """Options of the family that the weights decide.

    They are those that the shapes of the parameters tell, and those that all such weights mean.
    """


def patches(rows: int) -> tuple[int, int]:
    """Return side and channels of the patches whose pixels are `rows` inputs.

    Patches are RGB where ``rows / 3`` is a square, else grey.

    >>> patches(4 * 4 * 3), patches(8 * 8)
    ((4, 3), (8, 1))
    """
    channels = 3 if rows % 3 == 0 and math.isqrt(rows // 3) ** 2 == rows // 3 else 1
    return math.isqrt(rows // channels), channels


def resize_grid(
    grid: Float[np.ndarray, "H W D"], side: int
) -> Float32[np.ndarray, "{side} {side} D"]:
    """Resize ``[H, W, D]`` to ``[side, side, D]`` in float32.

    The kernel is bicubic (Keys, a = -0.5), antialiased when the grid shrinks. Pillow does the same
    to an image, and timm to a position embedding.
    """
    shape = (side, side, grid.shape[-1])
    return np.asarray(
        jax.image.resize(np.asarray(grid, np.float32), shape, "cubic", antialias=True)
    )


def resize_positions(
    positions: Float[np.ndarray, "1 S D"], tokens: int, prefix: int
) -> Float[np.ndarray, "1 {tokens} D"] | None:
    """Resize position embeddings ``[1, prefix + H * W, D]`` of square images to `tokens` tokens.

    Args:
        positions: The first `prefix` are of tokens that are no patches, and stay.
        tokens: ``prefix + side * side``.
        prefix: How many.

    Returns:
        ``[1, tokens, D]``, or None where either number of patches is no square.
    """
    old, new = math.isqrt(positions.shape[1] - prefix), math.isqrt(tokens - prefix)
    if old**2 + prefix != positions.shape[1] or new**2 + prefix != tokens:
        return None
    grid = resize_grid(positions[0, prefix:].reshape(old, old, -1), new)
    return np.concatenate([positions[:, :prefix], grid.reshape(1, new**2, -1)], axis=1)
