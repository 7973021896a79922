"""Arithmetic on gradients as vectors: trees of floating point arrays, reduced in at least float32."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

_SMALL = 1 << 15
"""Elements below which leaves are reduced together."""

Scalar = jax.Array | float
"""A Python number or a traced scalar."""


def dot(left: Any, right: Any) -> jax.Array:
    """Return the sum over all leaves of ``left * right``, accumulated in float32 (in float64 where a leaf is)."""
    pairs = list(zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))
    wide = jnp.float64 if any(a.dtype == jnp.float64 for a, _ in pairs) else jnp.float32
    products = [a.astype(wide) * b.astype(wide) for a, b in pairs]
    # Most leaves of a network are small: reduced together they are one kernel to compile and to launch instead of a
    # hundred. The large ones stay apart, so that no copy of them is made.
    small = [product.reshape(-1) for product in products if product.size < _SMALL]
    sums = [jnp.sum(product) for product in products if product.size >= _SMALL]
    sums += [jnp.sum(jnp.concatenate(small))] if small else []
    return sum(sums, jnp.zeros((), wide))


def global_norm(tree: Any) -> jax.Array:
    """Return the L2 norm over all leaves, accumulated as in `dot`: a scalar."""
    return jnp.sqrt(dot(tree, tree))


def inverse(norm: jax.Array) -> jax.Array:
    """Return 1 / norm, and 0 for a norm of 0: a zero gradient has no direction."""
    is_zero = norm == 0
    return jnp.where(is_zero, jnp.zeros_like(norm), 1 / jnp.where(is_zero, jnp.ones_like(norm), norm))


def wide(leaf: jax.Array) -> jax.Array:
    """Return `leaf` in float32, or as it is in float64."""
    return leaf.astype(jnp.float64 if leaf.dtype == jnp.float64 else jnp.float32)


def scaled(scale: jax.Array, leaf: jax.Array) -> jax.Array:
    """Return ``scale * leaf`` in at least float32."""
    leaf = wide(leaf)
    return scale.astype(leaf.dtype) * leaf


def add(tree: Any, scale: jax.Array, direction: Any) -> Any:
    """Return ``tree + scale * direction``, computed in at least float32 and rounded once to the dtypes of `tree`."""
    return jax.tree.map(lambda leaf, step: (wide(leaf) + scaled(scale, step)).astype(leaf.dtype), tree, direction)
