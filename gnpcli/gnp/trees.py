"""Arithmetic on gradients as vectors. Sums are taken in at least float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

Tree: TypeAlias = PyTree
"""A tree of floating point arrays: parameters, or a vector of the space that they live in.

The dtype is any floating point one. The shapes are the caller's, so no signature can say them.
"""

Scalar = Float[Array, ""] | float
"""A Python number or a traced scalar."""

_SMALL = 1 << 15
"""Elements below which leaves are reduced together."""


def dot(left: Tree, right: Tree) -> Float[Array, ""]:
    """Return the sum over all leaves of ``left * right``.

    It is accumulated in float32, or in float64 where a leaf is of it. Without leaves it is 0.

    Args:
        left: Any floating point leaves.
        right: In the structure and shapes of `left`.
    """
    pairs = list(zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))
    dtype = widest([leaf for pair in pairs for leaf in pair])
    # Most leaves of a network are small: reduced together they are a few kernels to compile and to
    # launch instead of hundreds. The large ones stay apart, so that no copy of them is made. The
    # factors are joined and not the products: XLA takes the sum of joined arrays apart again.
    small = [pair for pair in pairs if pair[0].size < _SMALL]
    factors = [(a.astype(dtype), b.astype(dtype)) for a, b in pairs if a.size >= _SMALL]
    if small:
        lefts, rights = zip(*small, strict=True)
        factors.append((joined(lefts, dtype), joined(rights, dtype)))
    return sum((jnp.sum(a * b) for a, b in factors), jnp.zeros((), dtype))


def joined(leaves: Sequence[Float[Array, "*_"]], dtype: DTypeLike) -> Float[Array, " elements"]:
    """Return the elements of all `leaves`, at least one, as one vector of `dtype`."""
    return jnp.concatenate([leaf.reshape(-1).astype(dtype) for leaf in leaves])


def widest(leaves: Sequence[Float[Array, "*_"]]) -> np.dtype:
    """Return float64 where a leaf is of it, else float32."""
    is_double = any(leaf.dtype == jnp.float64 for leaf in leaves)
    return np.dtype(np.float64 if is_double else np.float32)


def global_norm(tree: Tree) -> Float[Array, ""]:
    """Return the L2 norm over all leaves, accumulated as in `dot`."""
    return jnp.sqrt(dot(tree, tree))


@jax.custom_vjp
def half_squared_norm(tree: Tree) -> Float[Array, ""]:
    """Return half the sum of squares over all leaves, whose gradient is `tree` itself.

    It is accumulated as in `dot`. It has no plain forward-mode derivative; forward over reverse
    works.
    """
    return 0.5 * dot(tree, tree)


# By hand, because `dot` joins leaves: the derivative of that would be cut up again.
half_squared_norm.defvjp(
    lambda tree: (0.5 * dot(tree, tree), tree),
    lambda tree, rate: (jax.tree.map(lambda leaf: scaled(rate, leaf).astype(leaf.dtype), tree),),
)


def inverse(norm: Float[Array, ""]) -> Float[Array, ""]:
    """Return ``1 / norm``, and 0 for a norm of 0: a zero gradient has no direction."""
    is_zero = norm == 0
    divisor = jnp.where(is_zero, jnp.ones_like(norm), norm)
    return jnp.where(is_zero, jnp.zeros_like(norm), 1 / divisor)


def wide(leaf: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return `leaf` in float32, or as it is in float64."""
    return leaf.astype(widest([leaf]))


def scaled(scale: Float[Array, "*_"], leaf: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return ``scale * leaf`` in at least float32.

    Args:
        scale: A scalar, or an array of the shape of `leaf`.
        leaf: Any floating point dtype.
    """
    leaf = wide(leaf)
    return scale.astype(leaf.dtype) * leaf


def add(tree: Tree, scale: Float[Array, ""], direction: Tree) -> Tree:
    """Return ``tree + scale * direction`` in the dtypes of `tree`.

    It is computed in at least float32 and rounded once.
    """

    def moved(leaf: Float[Array, "*shape"], step: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return (wide(leaf) + scaled(scale, step)).astype(leaf.dtype)

    return jax.tree.map(moved, tree, direction)
