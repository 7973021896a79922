"""LookSAM: between two penalised steps, the part of the penalised gradient that plain training
lacks is used again.

On a penalised step the component of its gradient orthogonal to the clean one,

    g_v = g_mixed - (<g_mixed, g> / <g, g>) g,        g = grad L(w)

is kept; on the steps until the next, the gradient is ``g + a (||g|| / ||g_v||) g_v`` (arXiv
2203.02714, algorithm 1, there with ``g_mixed = g_perturbed``, alpha = 1). The direction moves
slowly, the length follows the clean gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gnpcli.gnp.trees import Scalar, add, dot, global_norm, inverse


def orthogonal_component(grads: Any, clean: Any) -> Any:
    """Return the component g_v of `grads` orthogonal to `clean`; zero, to the bit, where the two
    are equal.
    """
    # Of the difference, which has the same component: what is left of nearly equal gradients is not
    # their rounding.
    difference = jax.tree.map(jnp.subtract, grads, clean)
    return add(difference, -dot(difference, clean) * jnp.square(inverse(global_norm(clean))), clean)


def reuse(clean: Any, component: Any, weight: Scalar) -> Any:
    """Return ``g + weight (||g|| / ||g_v||) g_v`` for g = `clean` and g_v = `component`; g where
    g_v is zero.
    """
    norm = global_norm(clean)
    return add(
        clean, jnp.asarray(weight, norm.dtype) * norm * inverse(global_norm(component)), component
    )


def with_gradient(value_and_grad: Callable[..., Any]) -> Callable[..., Any]:
    """Return the gradient a second time, beside the aux of the value: ``((loss, (aux, grads)),
    grads)``.

    Under `penalize`, which returns the aux of the clean pass, that is the clean gradient.
    """

    def doubled(*args: Any, **kwargs: Any) -> Any:
        (loss, aux), grads = value_and_grad(*args, **kwargs)
        return (loss, (aux, grads)), grads

    return doubled
