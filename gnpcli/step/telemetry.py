"""What a step tells about itself beside losses and norms: pure functions of numbers that it has
already.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

_SMALL = 1 << 15
"""Elements below which leaves are reduced together: one kernel instead of a hundred."""


def surrogate_gap(loss: jax.Array, perturbed_loss: jax.Array) -> jax.Array:
    """Return ``h(w) = L(w + r g / ||g||) - L(w)``, GSAM's measure of sharpness (arXiv 2203.08065,
    section 3.2).

    It is ``r ||g|| + r^2 / 2 u^T H u`` to second order in r, with ``u = g / ||g||``: what it has
    beyond ``r ||g||`` is the curvature along the gradient. 0 in a plain step, which visits one
    point.
    """
    return perturbed_loss - loss


def update_ratio(update_norm: jax.Array, grad_norm: jax.Array) -> jax.Array:
    """Return ``||update|| / ||gradient||``, by how much the optimizer stretches a step; 0 for a
    zero gradient.

    For plain SGD without momentum, decay and clipping it is the learning rate; for an adaptive
    optimizer it moves with the gradient's scale, and its jumps early in training are what the
    warmups of arXiv 2406.09723 are to prevent.

    Args:
        update_norm: L2 norm of what is added to the parameters, learning rate included.
        grad_norm: L2 norm of the mixed gradient before clipping.
    """
    is_zero = grad_norm == 0
    return jnp.where(
        is_zero, jnp.zeros_like(update_norm), update_norm / jnp.where(is_zero, 1.0, grad_norm)
    )


def mean_and_variance(rates: Any) -> tuple[jax.Array, jax.Array]:
    """Return mean and (biased) variance over all elements of all leaves, each element counting
    once; float32 scalars.

    In two passes, since ``E[x^2] - E[x]^2`` cancels where the mean is large; an empty tree gives
    zeros.
    """
    leaves = jax.tree.leaves(rates)
    small = [leaf.reshape(-1) for leaf in leaves if leaf.size < _SMALL]
    parts = [leaf for leaf in leaves if leaf.size >= _SMALL] + (
        [jnp.concatenate(small)] if small else []
    )
    count = max(sum(part.size for part in parts), 1)

    def mean(values: list[jax.Array]) -> jax.Array:
        total = sum((jnp.sum(part) for part in values), jnp.zeros((), jnp.float32))
        return total / jnp.asarray(count, jnp.float32)

    centre = mean(parts)
    return centre, mean([jnp.square(part - centre) for part in parts])
