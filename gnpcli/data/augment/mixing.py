"""Erasing and mixing of normalised batches in JAX: pure and jittable; 0 is the mean colour.

Every image has its own draws. With ``shared=True`` a whole batch has one draw, and its partner is
the batch in reverse order: what the GNP papers' code does (the middle image of an odd batch is its
own partner). Otherwise the partner of image i is image i + 1, and of the last one the first: no
image of a batch of two or more is its own partner, and since batches are drawn in random order any
fixed pairing is as good as a random one. On several devices that is one image sent to a neighbour.

Labels that mix are class probabilities, float32 ``[B, K]``.
"""

from __future__ import annotations

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

ERASED_AREA = (0.02, 0.33)
"""Smallest and largest share of the image that random erasing covers."""
ERASED_ASPECT = (0.3, 1 / 0.3)
"""Smallest and largest height / width of its rectangle."""

_QUANTILES = 4096


def random_erasing(key: jax.Array, images: jax.Array, probability: float) -> jax.Array:
    """Set a random rectangle of an image to 0 (arXiv 1708.04896, algorithm 1), with a probability.

    Area and place are uniform, the aspect is log-uniform. The paper draws again until the rectangle
    fits; here one longer than the image, possible from a share of 0.3 on, is cut to the image's
    length, and its place is uniform among those where it fits.

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

    def interval(length: jax.Array, size: int, place: jax.Array) -> tuple[jax.Array, jax.Array]:
        whole = jnp.clip(jnp.round(length).astype(jnp.int32), 1, size)
        free = (size - whole + 1).astype(jnp.float32)
        start = (place * free).astype(jnp.int32)
        return start, start + whole

    box = _box(
        interval(side * stretch, height, row),
        interval(side / stretch, width, column),
        height,
        width,
    )
    return jnp.where(
        box & (coin < probability)[:, None, None, None], jnp.zeros_like(images), images
    )


def cutout(key: jax.Array, images: jax.Array, size: int, *, shared: bool = False) -> jax.Array:
    """Set a square to 0 whose middle is uniform over the image (arXiv 1708.04552); parts outside
    are cut off.

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
    box = _box(
        _around(places[0], lengths, height), _around(places[1], lengths, width), height, width
    )
    return jnp.where(box, jnp.zeros_like(images), images)


def mixup(
    key: jax.Array, images: jax.Array, labels: jax.Array, alpha: float, *, shared: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Return ``w x + (1 - w) x'`` of images and labels, x' being the partner, w from Beta(alpha,
    alpha) (1710.09412).

    Args:
        key: Typed PRNG key.
        images: float32 ``[B, H, W, C]``.
        labels: Class probabilities, float32 ``[B, K]``.
        alpha: Above 0.
        shared: One w for the whole batch, the larger of w and 1 - w.
    """
    weights = jnp.broadcast_to(
        _weights(key, 1 if shared else len(images), alpha, shared=shared), len(images)
    )
    return _blend(images, _partner(images, shared=shared), weights), _blend(
        labels, _partner(labels, shared=shared), weights
    )


def cutmix(
    key: jax.Array, images: jax.Array, labels: jax.Array, alpha: float, *, shared: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Replace a rectangle of each image by its partner's (arXiv 1905.04899, section 3).

    With w from Beta(alpha, alpha) its sides are ``sqrt(1 - w)`` of the image's, rounded down, and
    its middle is uniform over the image; parts outside are cut off. Labels are mixed by the area
    that is left.

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
    pasted = ((rows[1] - rows[0]) * (columns[1] - columns[0])).astype(jnp.float32) / (
        height * width
    )
    mixed = jnp.where(_box(rows, columns, height, width), _partner(images, shared=shared), images)
    return mixed, _blend(
        labels, _partner(labels, shared=shared), jnp.broadcast_to(1 - pasted, batch)
    )


def _partner(values: jax.Array, *, shared: bool) -> jax.Array:
    return values[::-1] if shared else jnp.roll(values, -1, axis=0)


def _blend(values: jax.Array, others: jax.Array, weights: jax.Array) -> jax.Array:
    """Return ``w values + (1 - w) others``, with a weight for each place of the first axis."""
    weight = weights.reshape(-1, *[1] * (values.ndim - 1))
    return weight * values + (1 - weight) * others


def _weights(key: jax.Array, draws: int, alpha: float, *, shared: bool) -> jax.Array:
    """Draw from Beta(alpha, alpha), float32 ``[draws]``; the larger of w and 1 - w where `shared`.

    Uniform numbers go through the quantile function, taken to be linear between 4097 points: exact
    for alpha = 1, a distribution function right to 1 / 4096 for any other. The exact sampler of JAX
    rejects in loops, which costs a second and a half of compile time and on an accelerator waits
    for the host at every turn.
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


def _around(place: jax.Array, length: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Return first and end, int32, of an interval whose middle lies at `place`, a share of `size`;
    cut to 0 .. size.
    """
    start = (place * size).astype(jnp.int32) - length // 2
    return jnp.maximum(start, 0), jnp.minimum(start + length, size)


def _box(
    rows: tuple[jax.Array, jax.Array], columns: tuple[jax.Array, jax.Array], height: int, width: int
) -> jax.Array:
    """Return where the rectangles are, bool ``[n, H, W, 1]``, from int32 ``[n]`` firsts and ends."""

    def covered(interval: tuple[jax.Array, jax.Array], size: int) -> jax.Array:
        first, end = (bound[:, None] for bound in interval)
        place = jnp.arange(size, dtype=jnp.int32)[None, :]
        return (place >= first) & (place < end)

    return (covered(rows, height)[:, :, None] & covered(columns, width)[:, None, :])[..., None]
