"""Directions in which parameters are moved, on a scale that makes networks comparable.

Filter normalisation is that of arXiv 1712.09913, section 4: scaling a filter up and the next layer
down leaves what a network with ReLU or normalisation layers computes, but makes a random step of a
given length matter less; so each filter of a random direction gets the norm of the same filter of
the network.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gnpcli.gnp import global_norm


def random_direction(key: jax.Array, params: Any) -> Any:
    """Return independent standard normal numbers in the shapes of `params`, as `filter_normalized`
    asks for.

    They depend on the key and the structure alone: two runs of one architecture are left in the
        same raw directions.
    """
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    drawn = [
        jax.random.normal(own, leaf.shape, leaf.dtype)
        for own, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, drawn)


def filter_normalized(direction: Any, params: Any) -> Any:
    """Give each filter of `direction` the norm of the same filter of `params`: ``d_ij <- d_ij
    ||w_ij|| / ||d_ij||``.

    A filter is what makes one output: all weights of a kernel ``[..., inputs, outputs]`` with the
    same last index (of a dense layer the weights into one neuron, of a position embedding one
    feature at all positions). Leaves of at most one dimension, biases and the parameters of
    normalisation layers, do not move: their part of the direction is 0, as in the code of the
    paper. So is that of a filter which is 0 in either.

    Args:
        direction: In the structure and shapes of `params`.
        params: Floating point leaves.

    Returns:
        A direction whose norm is that of the parameters of at least two dimensions.
    """

    def scaled(step: jax.Array, weight: jax.Array) -> jax.Array:
        if weight.ndim < 2:
            return jnp.zeros_like(step)
        axes = tuple(range(weight.ndim - 1))
        own, wanted = (
            jnp.sqrt(jnp.sum(jnp.square(leaf), axis=axes, keepdims=True)) for leaf in (step, weight)
        )
        return step * jnp.where(
            own > 0, wanted / jnp.where(own > 0, own, jnp.ones_like(own)), jnp.zeros_like(own)
        )

    return jax.tree.map(scaled, direction, params)


def with_norm(direction: Any, norm: jax.Array | float) -> Any:
    """Scale a direction to an L2 norm over all leaves; a direction of 0 stays 0."""
    own = global_norm(direction)
    factor = jnp.where(
        own > 0, norm / jnp.where(own > 0, own, jnp.ones_like(own)), jnp.zeros_like(own)
    )
    return jax.tree.map(lambda leaf: factor.astype(leaf.dtype) * leaf, direction)
