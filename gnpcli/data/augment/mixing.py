"""Erasing and mixing of normalised batches in JAX: pure and jittable; 0 is the mean colour.

Every image has its own draws. The partner of image i is image i + 1, and that of the last one is
the first. No image of a batch of two or more is its own partner. Batches are drawn in random order,
so any fixed pairing is as good as a random one. On several devices one image is sent to a
neighbour.

With ``shared=True`` a whole batch has one draw, and its partner is the batch in reverse order. The
GNP papers' code does so. The middle image of an odd batch is its own partner then.

Labels that mix are class probabilities, float32 ``[B, K]``.
"""

from __future__ import annotations

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Float, Float32, Key

ERASED_AREA = (0.02, 0.33)
"""Smallest and largest share of the image that random erasing covers."""
ERASED_ASPECT = (0.3, 1 / 0.3)
"""Smallest and largest height / width of its rectangle."""

_QUANTILES = 4096

Interval = tuple[jax.Array, jax.Array]
"""First and end, int32 ``[n]``, along one axis of n images."""


def random_erasing(
    key: Key[Array, ""], images: Float[Array, "B H W C"], probability: float
) -> Float[Array, "B H W C"]:
    """Set a random rectangle of an image to 0 (arXiv 1708.04896, algorithm 1), with a probability.

    Area and place are uniform, the aspect is log-uniform. The paper draws again until the rectangle
    fits. Here one longer than the image, possible from a share of 0.3 on, is cut to the image's
    length. Its place is uniform among those where it fits.

    Args:
        key: Typed PRNG key.
        images: ``[B, H, W, C]``, floating.
        probability: Of each image.

    Returns:
        Type and shape of `images`.
    """
    batch, height, width, _ = images.shape
    coin, area, aspect, row, column = jax.random.uniform(key, (5, batch))
    erased = ERASED_AREA[0] + (ERASED_AREA[1] - ERASED_AREA[0]) * area
    # Height is to width as `stretch` squared.
    low, high = (0.5 * math.log(end) for end in ERASED_ASPECT)
    stretch = jnp.exp(low + (high - low) * aspect)
    side = jnp.sqrt(erased * (height * width))

    def interval(length: jax.Array, size: int, place: jax.Array) -> Interval:
        whole = jnp.clip(jnp.round(length).astype(jnp.int32), 1, size)
        free = (size - whole + 1).astype(jnp.float32)
        start = (place * free).astype(jnp.int32)
        return start, start + whole

    rows = interval(side * stretch, height, row)
    columns = interval(side / stretch, width, column)
    is_erased = (coin < probability)[:, None, None, None] & _box(rows, columns, height, width)
    return jnp.where(is_erased, jnp.zeros_like(images), images)


def cutout(
    key: Key[Array, ""], images: Float[Array, "B H W C"], size: int, *, shared: bool = False
) -> Float[Array, "B H W C"]:
    """Set a square to 0 whose middle is uniform over the image (arXiv 1708.04552).

    Parts outside the image are cut off.

    Args:
        key: Typed PRNG key.
        images: ``[B, H, W, C]``, floating.
        size: Side of the square in pixels: ``size // 2`` before the middle, the rest from there on.
        shared: One square for the whole batch.

    Returns:
        Type and shape of `images`.
    """
    batch, height, width, _ = images.shape
    places = jax.random.uniform(key, (2, 1 if shared else batch))
    lengths = jnp.full(places.shape[1:], size, jnp.int32)
    rows = _around(places[0], lengths, height)
    columns = _around(places[1], lengths, width)
    return jnp.where(_box(rows, columns, height, width), jnp.zeros_like(images), images)


def mixup(
    key: Key[Array, ""],
    images: Float[Array, "B H W C"],
    labels: Float32[Array, "B K"],
    alpha: float,
    *,
    shared: bool = False,
) -> tuple[Float[Array, "B H W C"], Float32[Array, "B K"]]:
    """Return ``w x + (1 - w) x'`` of images and labels (arXiv 1710.09412).

    x' is the partner, and w is drawn from Beta(alpha, alpha).

    Args:
        key: Typed PRNG key.
        images: float32 ``[B, H, W, C]``.
        labels: Class probabilities, float32 ``[B, K]``.
        alpha: Above 0.
        shared: One w for the whole batch, the larger of w and 1 - w.
    """
    draws = 1 if shared else len(images)
    weights = jnp.broadcast_to(_weights(key, draws, alpha, shared=shared), len(images))
    mixed = _blend(images, _partner(images, shared=shared), weights)
    return mixed, _blend(labels, _partner(labels, shared=shared), weights)


def cutmix(
    key: Key[Array, ""],
    images: Float[Array, "B H W C"],
    labels: Float32[Array, "B K"],
    alpha: float,
    *,
    shared: bool = False,
) -> tuple[Float[Array, "B H W C"], Float32[Array, "B K"]]:
    """Replace a rectangle of each image by its partner's (arXiv 1905.04899, section 3).

    w is drawn from Beta(alpha, alpha). The rectangle's sides are ``sqrt(1 - w)`` of the image's,
    rounded down. Its middle is uniform over the image, and parts outside are cut off. Labels are
    mixed by the area that is left.

    Args:
        key: Typed PRNG key.
        images: ``[B, H, W, C]``, floating.
        labels: Class probabilities, float32 ``[B, K]``.
        alpha: Above 0.
        shared: One rectangle for the whole batch, from the larger of w and 1 - w.
    """
    batch, height, width, _ = images.shape
    draws = 1 if shared else batch
    weight_key, place_key = jax.random.split(key)
    share = jnp.sqrt(1 - _weights(weight_key, draws, alpha, shared=shared))
    places = jax.random.uniform(place_key, (2, draws))
    rows = _around(places[0], (share * height).astype(jnp.int32), height)
    columns = _around(places[1], (share * width).astype(jnp.int32), width)
    area = (rows[1] - rows[0]) * (columns[1] - columns[0])
    weights = jnp.broadcast_to(1 - area.astype(jnp.float32) / (height * width), batch)
    mixed = jnp.where(_box(rows, columns, height, width), _partner(images, shared=shared), images)
    return mixed, _blend(labels, _partner(labels, shared=shared), weights)


def _partner(values: jax.Array, *, shared: bool) -> jax.Array:
    return values[::-1] if shared else jnp.roll(values, -1, axis=0)


def _blend(values: jax.Array, others: jax.Array, weights: jax.Array) -> jax.Array:
    """Return ``w values + (1 - w) others``, with a weight for each place of the first axis."""
    weight = weights.reshape(-1, *[1] * (values.ndim - 1))
    return weight * values + (1 - weight) * others


def _weights(key: jax.Array, draws: int, alpha: float, *, shared: bool) -> jax.Array:
    """Draw from Beta(alpha, alpha), float32 ``[draws]``; the larger of w and 1 - w where `shared`.

    Uniform numbers go through the quantile function, which is taken to be linear between 4097
    points. It is exact for alpha = 1. For any other the distribution function is right to 1 / 4096.
    The exact sampler of JAX rejects in loops. They cost a second and a half of compile time, and on
    an accelerator they wait for the host at every turn.
    """
    place = jax.random.uniform(key, (draws,)) * _QUANTILES
    below = place.astype(jnp.int32)
    quantiles = jnp.asarray(_quantiles(alpha))
    weights = _blend(
        quantiles.at[below + 1].get(mode="promise_in_bounds"),
        quantiles.at[below].get(mode="promise_in_bounds"),
        place - below.astype(jnp.float32),
    )
    return jnp.maximum(weights, 1 - weights) if shared else weights


@cache
def _quantiles(alpha: float) -> npt.NDArray[np.float32]:
    from scipy.special import betaincinv  # 0.2 s, for mixing only

    return np.asarray(betaincinv(alpha, alpha, np.arange(_QUANTILES + 1) / _QUANTILES), np.float32)


def _around(place: jax.Array, length: jax.Array, size: int) -> Interval:
    """Return an interval whose middle lies at `place`, a share of `size`, cut to 0 .. size."""
    start = (place * size).astype(jnp.int32) - length // 2
    return jnp.maximum(start, 0), jnp.minimum(start + length, size)


def _box(rows: Interval, columns: Interval, height: int, width: int) -> jax.Array:
    """Return where the rectangles are, bool ``[n, H, W, 1]``."""

    def covered(interval: Interval, size: int) -> jax.Array:
        first, end = (bound[:, None] for bound in interval)
        place = jnp.arange(size, dtype=jnp.int32)[None, :]
        return (place >= first) & (place < end)

    return (covered(rows, height)[:, :, None] & covered(columns, width)[:, None, :])[..., None]
