"""What a step tells about itself beside losses and norms.

All are pure functions of numbers that the step has already.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, PyTree

_SMALL = 1 << 15
"""Elements below which leaves are reduced together: one kernel instead of a hundred."""


def surrogate_gap(loss: Float[Array, ""], perturbed_loss: Float[Array, ""]) -> Float[Array, ""]:
    """Return the surrogate gap ``h(w) = L(w + r g / ||g||) - L(w)``.

    It is GSAM's measure of sharpness (arXiv 2203.08065, section 3.2). To second order in r it is
    ``r ||g|| + r^2 / 2 u^T H u`` with ``u = g / ||g||``: what it has beyond ``r ||g||`` is the
    curvature along the gradient. A plain step visits one point, so there it is 0.
    """
    return perturbed_loss - loss


def update_ratio(update_norm: Float[Array, ""], grad_norm: Float[Array, ""]) -> Float[Array, ""]:
    """Return ``||update|| / ||gradient||``; 0 for a zero gradient.

    It says how much the optimizer stretches a step. For plain SGD without momentum, decay and
    clipping it is the learning rate. For an adaptive optimizer it moves with the gradient's scale.
    Its jumps early in training are what the warmups of arXiv 2406.09723 are to prevent.

    Args:
        update_norm: L2 norm of what is added to the parameters, learning rate included.
        grad_norm: L2 norm of the mixed gradient before clipping.
    """
    is_zero = grad_norm == 0
    divisor = jnp.where(is_zero, 1.0, grad_norm)
    return jnp.where(is_zero, jnp.zeros_like(update_norm), update_norm / divisor)


def mean_and_variance(rates: PyTree) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
    """Return mean and (biased) variance over all elements of all leaves.

    Each element counts once. An empty tree gives zeros. There are two passes, since ``E[x^2] -
    E[x]^2`` cancels where the mean is large.

    Args:
        rates: Tree of float32 arrays, of any shapes.
    """
    leaves = jax.tree.leaves(rates)
    small = [leaf.reshape(-1) for leaf in leaves if leaf.size < _SMALL]
    parts = [leaf for leaf in leaves if leaf.size >= _SMALL]
    if small:
        parts.append(jnp.concatenate(small))
    count = max(sum(part.size for part in parts), 1)

    def mean(values: Sequence[Float32[Array, "*_"]]) -> Float32[Array, ""]:
        total = sum((jnp.sum(part) for part in values), jnp.zeros((), jnp.float32))
        return total / jnp.asarray(count, jnp.float32)

    centre = mean(parts)
    return centre, mean([jnp.square(part - centre) for part in parts])
