"""Policies on batches of uint8 images in JAX: pure and jittable. The pixels are Pillow's.

Every image has its own draws. The operations it can draw are the rows of
`gnpcli.data.augment.rows`. `gnpcli.data.augment.passes` applies them.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Int32, Key, UInt8

from gnpcli.data.augment.passes import apply_layer, pick
from gnpcli.data.augment.policies import SIGNED, Policy
from gnpcli.data.augment.rows import Layer, make_layer


class Draw(NamedTuple):
    """What the images of a batch do at one layer."""

    layer: Layer
    rows: Int32[Array, " B"]
    centres: Int32[Array, "2 B"]
    """Row and column of the middle of Cutout's square, uniform over the image."""


def draw(key: Key[Array, ""], policy: Policy, batch: int, size: int) -> list[Draw]:
    """Draw for each image what `policy` does to it.

    Each round draws a choice, and each step a coin, a sign and a place.

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
            chosen = pick(rows.reshape(-1), 2 * choices + side)
            is_applied = coins[index][turn] < pick(probabilities, choices)
            centres = jnp.stack([_below(row[index][turn], size), _below(column[index][turn], size)])
            draws.append(Draw(layer, jnp.where(is_applied, chosen, 0), centres))
    return draws


def _below(uniform: jax.Array, count: int) -> jax.Array:
    """Return int32 uniform on 0 .. count - 1, from float32 of 23 bits in [0, 1)."""
    return (uniform * count).astype(jnp.int32)


@cache
def _layers(
    policy: Policy, size: int
) -> list[tuple[Layer, npt.NDArray[np.int32], npt.NDArray[np.float32]]]:
    """Return for each step of the choices its layer, its rows by sign, and its probabilities.

    Rows are int32 ``[choices, 2]``, probabilities float32 ``[choices]``.
    """
    layers = []
    for steps in zip(*policy.choices, strict=True):
        operations: list[tuple[str, float]] = []
        for name, _, level in steps:
            argument = policy.scale.argument(name, level, size)
            negated = -argument if name in SIGNED else argument
            operations += [(name, argument), (name, negated)]
        distinct = list(dict.fromkeys(operations))
        rows = [1 + distinct.index(operation) for operation in operations]
        probabilities = np.array([step.probability for step in steps], np.float32)
        by_sign = np.array(rows, np.int32).reshape(-1, 2)
        layers.append((make_layer(distinct, size), by_sign, probabilities))
    return layers


def apply_policy(
    key: Key[Array, ""], images: UInt8[Array, "B S S C"], policy: Policy
) -> UInt8[Array, "B S S C"]:
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
