"""Arithmetic on gradients as vectors: trees of floating point arrays, reduced in at least float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

_SMALL = 1 << 15
"""Elements below which leaves are reduced together."""

Scalar = jax.Array | float
"""A Python number or a traced scalar."""


def dot(left: Any, right: Any) -> jax.Array:
    """Return the sum over all leaves of ``left * right``, accumulated in float32 (in float64 where
    a leaf is).
    """
    pairs = list(zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))
    dtype = widest([leaf for pair in pairs for leaf in pair])
    # Most leaves of a network are small: reduced together they are a few kernels to compile and to
    # launch instead of hundreds. The large ones stay apart, so that no copy of them is made. The
    # factors are joined and not the products: XLA takes the sum of joined arrays apart again.
    small = [pair for pair in pairs if pair[0].size < _SMALL]
    large = [(a.astype(dtype), b.astype(dtype)) for a, b in pairs if a.size >= _SMALL]
    together = (
        [(joined([a for a, _ in small], dtype), joined([b for _, b in small], dtype))]
        if small
        else []
    )
    return sum((jnp.sum(a * b) for a, b in large + together), jnp.zeros((), dtype))


def joined(leaves: Sequence[jax.Array], dtype: Any) -> jax.Array:
    """Return the elements of all `leaves`, at least one, as one vector of `dtype`."""
    return jnp.concatenate([leaf.reshape(-1).astype(dtype) for leaf in leaves])


def widest(leaves: Sequence[jax.Array]) -> Any:
    """Return float64 where a leaf is of it, else float32."""
    return jnp.float64 if any(leaf.dtype == jnp.float64 for leaf in leaves) else jnp.float32


def global_norm(tree: Any) -> jax.Array:
    """Return the L2 norm over all leaves, accumulated as in `dot`: a scalar."""
    return jnp.sqrt(dot(tree, tree))


@jax.custom_vjp
def half_squared_norm(tree: Any) -> jax.Array:
    """Return half the sum of squares over all leaves, accumulated as in `dot`; its gradient is
    `tree`.

    There is no plain forward-mode derivative; forward over reverse there is.
    """
    return 0.5 * dot(tree, tree)


# By hand, because `dot` joins leaves: the derivative of that would be cut up again.
half_squared_norm.defvjp(
    lambda tree: (0.5 * dot(tree, tree), tree),
    lambda tree, rate: (jax.tree.map(lambda leaf: scaled(rate, leaf).astype(leaf.dtype), tree),),
)


def inverse(norm: jax.Array) -> jax.Array:
    """Return 1 / norm, and 0 for a norm of 0: a zero gradient has no direction."""
    is_zero = norm == 0
    return jnp.where(
        is_zero, jnp.zeros_like(norm), 1 / jnp.where(is_zero, jnp.ones_like(norm), norm)
    )


def wide(leaf: jax.Array) -> jax.Array:
    """Return `leaf` in float32, or as it is in float64."""
    return leaf.astype(widest([leaf]))


def scaled(scale: jax.Array, leaf: jax.Array) -> jax.Array:
    """Return ``scale * leaf`` in at least float32."""
    leaf = wide(leaf)
    return scale.astype(leaf.dtype) * leaf


def add(tree: Any, scale: jax.Array, direction: Any) -> Any:
    """Return ``tree + scale * direction``, computed in at least float32 and rounded once to the
    dtypes of `tree`.
    """
    return jax.tree.map(
        lambda leaf, step: (wide(leaf) + scaled(scale, step)).astype(leaf.dtype), tree, direction
    )
