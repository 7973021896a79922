"""Policies on batches of uint8 images in JAX: pure, jittable, every image with its own draws, the pixels Pillow's.

Under vmap a choice among 17 operations would compute all 17. Instead every operation is a row of parameters of four
passes, each of which leaves an image alone at its neutral parameters, and a layer applies each pass once:

1. a nearest-neighbour gather with affine coordinates (shears, translations, rotation);
2. a lookup of every channel in a table of 256 (AutoContrast, Equalize, Invert, Solarize, SolarizeAdd, Posterize,
   Brightness);
3. a blend with another image (Contrast, Color, Sharpness);
4. a painted square (Cutout).

The rows are NumPy constants computed in float64 as Pillow computes them. A pass that no operation of a layer needs is
left out. The histogram behind Equalize is a scatter: on two CPU cores (jax 0.10.2, 256 images of 32x32x3) 1.5 ms,
against 14 ms as an int8 product of one-hot halves and 20 ms by sorting.

AutoContrast may be one grey level beside Pillow's where ``255 (v - low)`` is a multiple of ``high - low``: Pillow's
floating point then falls short of the whole number in 0.4 % of all cases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from gnpcli.data.augment.policies import FILL, SIGNED, Policy

_FIXED, _AUTOCONTRAST, _EQUALIZE = range(3)
"""Where a row's lookup table comes from: the row itself, or the image."""

_BLACK, _MEAN, _GREY, _SMOOTH = range(4)
"""What a row blends an image with: black (for rows that blend nothing), its mean, itself in grey, itself smoothed."""

_TABLES_FROM = {"AutoContrast": _AUTOCONTRAST, "Equalize": _EQUALIZE}
_BLENDS = {"Contrast": _MEAN, "Color": _GREY, "Sharpness": _SMOOTH}


@dataclass(frozen=True, eq=False)
class Layer:
    """The operations that images can draw at one place of a policy: R rows of parameters. Row 0 does nothing."""

    operations: tuple[tuple[str, float], ...]
    """(name, signed argument) of each row."""
    coordinates: npt.NDArray[np.int32]
    """``[R, 6]``, 16.16 fixed point: pixel (x, y) comes from ``(a x + b y + c, d x + e y + f)``, rounded down."""
    tables: npt.NDArray[np.uint8]
    """``[R, 256]``."""
    table_from: npt.NDArray[np.int32]
    """``[R]``."""
    factors: npt.NDArray[np.float32]
    """``[R]``: blends give ``other + factor (image - other)``."""
    blend_with: npt.NDArray[np.int32]
    """``[R]``."""
    halves: npt.NDArray[np.int32]
    """``[R]``, half the side of the painted square."""


def make_layer(operations: Sequence[tuple[str, float]], size: int) -> Layer:
    """Return the layer with a row for each operation, after row 0.

    Args:
        operations: (name, signed argument), as in `gnpcli.data.augment.policies.OPERATIONS`.
        size: Side of the images.
    """
    rows = (("Identity", 0.0), *operations)
    return Layer(
        operations=rows,
        coordinates=np.array([_fixed_point(_affine(*row, size)) for row in rows], np.int32),
        tables=np.array([_table(*row, size) for row in rows], np.uint8),
        table_from=np.array([_TABLES_FROM.get(name, _FIXED) for name, _ in rows], np.int32),
        factors=np.array([argument if name in _BLENDS else 1 for name, argument in rows], np.float32),
        blend_with=np.array([_BLENDS.get(name, _BLACK) for name, _ in rows], np.int32),
        halves=np.array([argument if name == "Cutout" else 0 for name, argument in rows], np.int32),
    )


def _affine(name: str, argument: float, size: int) -> tuple[float, ...]:
    """Return ``a .. f`` with which output position (x, y) reads input ``(a x + b y + c, d x + e y + f)``.

    Positions are measured from the image's corner: the first pixel's centre is (0.5, 0.5).
    """
    a, b, c, d, e, f = 1.0, 0.0, 0.0, 0.0, 1.0, 0.0
    if name == "ShearX":
        b = argument
    elif name == "ShearY":
        d = argument
    elif name == "TranslateX":
        c = argument
    elif name == "TranslateY":
        f = argument
    elif name == "Rotate":
        # Pillow's steps in Pillow's order, so that the fixed point below agrees to the last bit.
        angle = -math.radians(argument % 360)
        a, b = round(math.cos(angle), 15), round(math.sin(angle), 15)
        d, e = round(-math.sin(angle), 15), a
        middle = size / 2
        c = a * -middle + b * -middle + middle
        f = d * -middle + e * -middle + middle
    return a, b, c, d, e, f


def _fixed_point(matrix: tuple[float, ...]) -> list[int]:
    a, b, c, d, e, f = matrix
    # The half pixels put whole numbers at pixel centres.
    values = (a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5)
    return [math.floor(value * 65536 + 0.5) for value in values]


def _table(name: str, argument: float, size: int) -> npt.NDArray[np.uint8]:
    levels = np.arange(256)
    if name == "Invert":
        levels = 255 - levels
    elif name == "Solarize":
        levels = np.where(levels < argument, levels, 255 - levels)
    elif name == "SolarizeAdd":
        levels = np.where(levels < 128, np.minimum(levels + int(argument), 255), levels)
    elif name == "Posterize":
        levels = levels & ~(2 ** (8 - int(argument)) - 1)
    elif name in ("Brightness", "CountContrast"):
        other = min(255, size * size // 256) if name == "CountContrast" else 0
        blend = np.float32(other) + np.float32(argument) * (levels - other).astype(np.float32)
        levels = np.clip(blend, 0, 255)
    return levels.astype(np.uint8)


class Draw(NamedTuple):
    """What the images of a batch do at one layer."""

    layer: Layer
    rows: jax.Array
    """int32 ``[B]``."""
    centres: jax.Array
    """int32 ``[2, B]``: row and column of the middle of Cutout's square, uniform over the image."""


def draw(key: jax.Array, policy: Policy, batch: int, size: int) -> list[Draw]:
    """Draw for each image what `policy` does to it: a choice per round, then per step a coin, a sign and a place.

    Args:
        key: Typed PRNG key.
        policy: The choices.
        batch: Number of images.
        size: Their side in pixels.

    Returns:
        Layers in the order in which they act.
    """
    layers = _layers(policy, size)
    # One call for everything: each costs a kernel, and compile time.
    choice, *drawn = jax.random.uniform(key, (1 + 4 * len(layers), policy.rounds, batch))
    coins, signs, row, column = (drawn[kind::4] for kind in range(4))
    draws = []
    for turn in range(policy.rounds):
        choices = _below(choice[turn], len(policy.choices))
        for index, (layer, rows, probabilities) in enumerate(layers):
            side = (signs[index][turn] < 0.5).astype(jnp.int32)
            chosen = _pick(rows.reshape(-1), 2 * choices + side)
            is_applied = coins[index][turn] < _pick(probabilities, choices)
            centres = jnp.stack([_below(row[index][turn], size), _below(column[index][turn], size)])
            draws.append(Draw(layer, jnp.where(is_applied, chosen, 0), centres))
    return draws


def _below(uniform: jax.Array, count: int) -> jax.Array:
    """Return int32 uniform on 0 .. count - 1, from float32 of 23 bits in [0, 1)."""
    return (uniform * count).astype(jnp.int32)


@cache
def _layers(policy: Policy, size: int) -> list[tuple[Layer, npt.NDArray[np.int32], npt.NDArray[np.float32]]]:
    """Return for each step of the choices its layer, the rows ``[choices, 2]`` by sign, and the probabilities."""
    layers = []
    for steps in zip(*policy.choices, strict=True):
        operations: list[tuple[str, float]] = []
        for name, _, level in steps:
            argument = policy.scale.argument(name, level, size)
            operations += [(name, argument), (name, -argument if name in SIGNED else argument)]
        distinct = list(dict.fromkeys(operations))
        rows = [1 + distinct.index(operation) for operation in operations]
        probabilities = np.array([step.probability for step in steps], np.float32)
        layers.append((make_layer(distinct, size), np.array(rows, np.int32).reshape(-1, 2), probabilities))
    return layers


def apply_policy(key: jax.Array, images: jax.Array, policy: Policy) -> jax.Array:
    """Augment every image by its own draw from `policy`.

    Args:
        key: Typed PRNG key.
        images: uint8 ``[B, H, W, C]`` with H = W; C is 1 or 3.
        policy: See `gnpcli.data.augment.policies`.

    Returns:
        uint8 ``[B, H, W, C]``.
    """
    batch, size, _, _ = images.shape
    for drawn in draw(key, policy, batch, size):
        images = apply_layer(images, *drawn)
    return images


def apply_operation(images: jax.Array, name: str, argument: float, centres: jax.Array | None = None) -> jax.Array:
    """Apply one operation to all images.

    Args:
        images: uint8 ``[B, H, W, C]`` with H = W; C is 1 or 3.
        name: Of `gnpcli.data.augment.policies.OPERATIONS`.
        argument: As described there; a positive one moves the content towards row or column 0 (ShearX, ShearY,
            TranslateX, TranslateY) or turns it counter-clockwise (Rotate).
        centres: int32 ``[2, B]``, for Cutout.
    """
    batch, size, _, _ = images.shape
    rows = jnp.ones(batch, jnp.int32)
    places = jnp.zeros((2, batch), jnp.int32) if centres is None else centres
    return apply_layer(images, make_layer([(name, argument)], size), rows, places)


def apply_layer(images: jax.Array, layer: Layer, rows: jax.Array, centres: jax.Array) -> jax.Array:
    """Apply to each image the operation of its row.

    Args:
        images: uint8 ``[B, H, W, C]`` with H = W; C is 1 or 3.
        layer: R operations.
        rows: int32 ``[B]``, 0 to R - 1.
        centres: int32 ``[2, B]``, for Cutout.

    Returns:
        uint8 ``[B, H, W, C]``.
    """
    if (layer.coordinates != layer.coordinates[:1]).any():
        images = _move(images, _pick(layer.coordinates, rows))
    if (layer.table_from != _FIXED).any() or (layer.tables != layer.tables[:1]).any():
        images = _look_up(images, _tables(images, layer, rows))
    if (layer.factors != 1).any():
        images = _blend(images, layer, rows)
    if layer.halves.any():
        images = _paint(images, _pick(layer.halves, rows), centres)
    return images


def _pick(values: npt.NDArray[Any], rows: jax.Array) -> jax.Array:
    """Return ``values[rows]``; `rows` are in range."""
    picked: jax.Array = jnp.asarray(values).at[rows].get(mode="promise_in_bounds")
    return picked


def _move(images: jax.Array, coordinates: jax.Array) -> jax.Array:
    """Read each pixel from its affine place, the nearest pixel; `FILL` where that is outside.

    Args:
        images: uint8 ``[B, H, W, C]``.
        coordinates: int32 ``[B, 6]``, 16.16 fixed point.
    """
    _, height, width, _ = images.shape
    x = jax.lax.broadcasted_iota(jnp.int32, (height, width), 1)
    y = jax.lax.broadcasted_iota(jnp.int32, (height, width), 0)

    # vmap, as for all gathers here: XLA then sees that images do not mix and splits the batch over devices.
    def move(image: jax.Array, place: jax.Array) -> jax.Array:
        a, b, c, d, e, f = place
        column = jnp.right_shift(a * x + b * y + c, 16)
        row = jnp.right_shift(d * x + e * y + f, 16)
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        read = image.at[jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)].get(mode="promise_in_bounds")
        return jnp.where(inside[..., None], read, jnp.uint8(FILL))

    moved: jax.Array = jax.vmap(move)(images, coordinates)
    return moved


def _look_up(images: jax.Array, tables: jax.Array) -> jax.Array:
    """Replace each value by its entry in the table of its image and channel, uint8 ``[B, C, 256]``."""
    channels = 256 * jnp.arange(images.shape[-1], dtype=jnp.int32)[None, None, :]

    def look_up(image: jax.Array, table: jax.Array) -> jax.Array:
        return table.at[channels + image.astype(jnp.int32)].get(mode="promise_in_bounds")

    found: jax.Array = jax.vmap(look_up)(images, tables.reshape(len(images), -1))
    return found


def _tables(images: jax.Array, layer: Layer, rows: jax.Array) -> jax.Array:
    """Return uint8 ``[B, C, 256]``."""
    batch, height, width, channels = images.shape
    tables = jnp.broadcast_to(_pick(layer.tables, rows)[:, None, :], (batch, channels, 256))
    if (layer.table_from == _FIXED).all():
        return tables
    origin = _pick(layer.table_from, rows)[:, None, None]
    histogram = _histogram(images)
    up_to = jnp.cumsum(histogram, axis=-1)
    if (layer.table_from == _AUTOCONTRAST).any():
        tables = jnp.where(origin == _AUTOCONTRAST, _stretched(up_to, height * width), tables)
    if (layer.table_from == _EQUALIZE).any():
        tables = jnp.where(origin == _EQUALIZE, _equalized(histogram, up_to), tables)
    return tables


def _histogram(images: jax.Array) -> jax.Array:
    """Return how many pixels of each channel have each value, int32 ``[B, C, 256]``."""
    batch, _, _, channels = images.shape
    offsets = 256 * jnp.arange(channels, dtype=jnp.int32)[None, None, :]

    def count(image: jax.Array) -> jax.Array:
        counts = jnp.zeros(channels * 256, jnp.int32)
        return counts.at[offsets + image.astype(jnp.int32)].add(1, mode="promise_in_bounds")

    counts: jax.Array = jax.vmap(count)(images)
    return counts.reshape(batch, channels, 256)


def _levels() -> jax.Array:
    return jnp.arange(256, dtype=jnp.int32)[None, None, :]


def _stretched(up_to: jax.Array, pixels: int) -> jax.Array:
    """Return ``255 (v - low) / (high - low)``, rounded down, or v where a channel has one value only.

    Args:
        up_to: int32 ``[B, C, 256]``: pixels of value v or less.
        pixels: Of an image.

    Returns:
        uint8 ``[B, C, 256]``.
    """
    low = jnp.sum(up_to == 0, axis=-1, keepdims=True, dtype=jnp.int32)
    high = jnp.sum(up_to < pixels, axis=-1, keepdims=True, dtype=jnp.int32)
    span = jnp.broadcast_to(jnp.maximum(high - low, 1), up_to.shape)
    stretched = jnp.minimum(jax.lax.div(255 * jnp.maximum(_levels() - low, 0), span), 255)
    return jnp.where(high > low, stretched, _levels()).astype(jnp.uint8)


def _equalized(histogram: jax.Array, up_to: jax.Array) -> jax.Array:
    """Return the share of darker pixels, in units of all pixels but the brightest / 255, or v where that unit is 0.

    Args:
        histogram: int32 ``[B, C, 256]``.
        up_to: Its sum over values up to v.

    Returns:
        uint8 ``[B, C, 256]``.
    """
    darker = up_to - histogram
    step = jnp.max(jnp.where(histogram > 0, darker, 0), axis=-1, keepdims=True) // 255
    share = jax.lax.div(darker + step // 2, jnp.broadcast_to(jnp.maximum(step, 1), darker.shape))
    return jnp.where(step > 0, jnp.minimum(share, 255), _levels()).astype(jnp.uint8)


def _blend(images: jax.Array, layer: Layer, rows: jax.Array) -> jax.Array:
    """Return ``other + factor (image - other)``, truncated to 0 .. 255."""

    def per_image(values: npt.NDArray[Any]) -> jax.Array:
        return _pick(values, rows)[:, None, None, None]

    whole = images.astype(jnp.int32)
    used = set(layer.blend_with.tolist())
    kind = per_image(layer.blend_with)
    other = jnp.zeros_like(whole)
    if used & {_MEAN, _GREY}:
        grey = _grey(whole)
        if _MEAN in used:
            other = jnp.where(kind == _MEAN, _mean(grey), other)
        if _GREY in used:
            other = jnp.where(kind == _GREY, grey, other)
    if _SMOOTH in used:
        other = jnp.where(kind == _SMOOTH, _smooth(whole), other)
    change = per_image(layer.factors) * (whole - other).astype(jnp.float32)
    # Pillow truncates the float32 sum of `other` and `change`. Rounding down before the sum keeps hardware from fusing
    # it with the product; 2**-25 of the sum stands for its rounding, which lifts what is just below a whole number.
    lift = (other.astype(jnp.float32) + change) * 2.0**-25
    result = other + jnp.floor(change + lift).astype(jnp.int32)
    return jnp.clip(result, 0, 255).astype(jnp.uint8)


def _grey(images: jax.Array) -> jax.Array:
    """Return ITU-R 601 luma of int32 ``[B, H, W, C]`` in 16-bit fixed point, ``[B, H, W, 1]``."""
    if images.shape[-1] == 1:
        return images
    red, green, blue = jnp.split(images, 3, axis=-1)
    return jnp.right_shift(19595 * red + 38470 * green + 7471 * blue + 0x8000, 16)


def _mean(grey: jax.Array) -> jax.Array:
    """Return the mean of int32 ``[B, H, W, 1]``, rounded half up, ``[B, 1, 1, 1]``."""
    pixels = grey.shape[1] * grey.shape[2]
    return (2 * jnp.sum(grey, axis=(1, 2), keepdims=True, dtype=jnp.int32) + pixels) // (2 * pixels)


def _smooth(images: jax.Array) -> jax.Array:
    """Return the mean of each pixel, weighted 5, and its eight neighbours, rounded; the border stays as it is.

    Args:
        images: int32 ``[B, H, W, C]``.
    """
    _, height, width, _ = images.shape
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    columns = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    box = columns[:, :, :-2] + columns[:, :, 1:-1] + columns[:, :, 2:]
    smooth = (2 * (box + 4 * images) + 13) // 26
    x = jax.lax.broadcasted_iota(jnp.int32, (1, height, width, 1), 2)
    y = jax.lax.broadcasted_iota(jnp.int32, (1, height, width, 1), 1)
    inner = (x > 0) & (x < width - 1) & (y > 0) & (y < height - 1)
    return jnp.where(inner, smooth, images)


def _paint(images: jax.Array, halves: jax.Array, centres: jax.Array) -> jax.Array:
    """Set the pixels from ``centre - half`` up to, not including, ``centre + half`` on both axes to `FILL`."""
    _, height, width, _ = images.shape

    def covered(axis: int, size: int) -> jax.Array:
        place = jnp.arange(size, dtype=jnp.int32)[None, :] - centres[axis][:, None]
        return (place >= -halves[:, None]) & (place < halves[:, None])

    square = covered(0, height)[:, :, None] & covered(1, width)[:, None, :]
    return jnp.where(square[..., None], jnp.uint8(FILL), images)
