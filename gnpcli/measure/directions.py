"""Directions in which parameters are moved, on a scale that makes networks comparable.

Filter normalisation is that of arXiv 1712.09913, section 4. In a network with ReLU or normalisation
layers, scaling a filter up and the next layer down leaves what it computes, but makes a random step
of a given length matter less. So each filter of a random direction gets the norm of the same filter
of the network.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from gnpcli.gnp import global_norm
from gnpcli.models.base import Params


def random_direction(key: Key[Array, ""], params: Params) -> Params:
    """Return independent standard normal numbers in the shapes of `params`.

    They depend on the key and the structure alone: two runs of one architecture are left in the
    same raw directions.
    """
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    drawn = [
        jax.random.normal(own, leaf.shape, leaf.dtype)
        for own, leaf in zip(keys, leaves, strict=True)
    ]
    direction: Params = jax.tree.unflatten(structure, drawn)
    return direction


def filter_normalized(direction: Params, params: Params) -> Params:
    """Give each filter the norm of the same filter of `params`.

    ``d_ij <- d_ij ||w_ij|| / ||d_ij||``. A filter is what makes one output: all weights of a kernel
    ``[..., inputs, outputs]`` with the same last index. Of a dense layer that is the weights into
    one neuron, of a position embedding one feature at all positions. Leaves of at most one
    dimension, biases and the parameters of normalisation layers, do not move: their part of the
    direction is 0, as in the code of the paper. So is that of a filter which is 0 in either.

    Args:
        direction: In the structure and shapes of `params`.
        params: Floating point leaves.

    Returns:
        A direction whose norm is that of the parameters of at least two dimensions.
    """
    normalized: Params = jax.tree.map(_filter_normalized, direction, params)
    return normalized


def _filter_normalized(
    step: Float[Array, "*shape"], weight: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    if weight.ndim < 2:
        return jnp.zeros_like(step)
    return step * _ratio(_filter_norms(weight), _filter_norms(step))


def _filter_norms(leaf: Float[Array, "*inputs outputs"]) -> Float[Array, ...]:
    axes = tuple(range(leaf.ndim - 1))
    return jnp.sqrt(jnp.sum(jnp.square(leaf), axis=axes, keepdims=True))


def _ratio(norm: Float[Array, ...], own: Float[Array, ...]) -> Float[Array, ...]:
    """Return ``norm / own``; 0 where `own` is."""
    return jnp.where(
        own > 0, norm / jnp.where(own > 0, own, jnp.ones_like(own)), jnp.zeros_like(own)
    )


def with_norm(direction: Params, norm: float) -> Params:
    """Scale a direction to an L2 norm over all leaves; a direction of 0 stays 0."""
    own = global_norm(direction)
    factor = _ratio(jnp.asarray(norm, own.dtype), own)
    scaled: Params = jax.tree.map(lambda leaf: factor.astype(leaf.dtype) * leaf, direction)
    return scaled
