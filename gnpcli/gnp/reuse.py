"""LookSAM: what a penalised gradient adds to the plain one is used again in the next steps.

A penalised step keeps the component of its gradient that is orthogonal to the clean one:

    g_v = g_mixed - (<g_mixed, g> / <g, g>) g,        g = grad L(w)

Until the next one, the gradient is ``g + a (||g|| / ||g_v||) g_v`` (arXiv 2203.02714, algorithm 1,
where ``g_mixed = g_perturbed``: alpha = 1). The direction of g_v moves slowly. Its length follows
the clean gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gnpcli.gnp.trees import Scalar, Tree, add, dot, global_norm, inverse


def orthogonal_component(grads: Tree, clean: Tree) -> Tree:
    """Return the component g_v of `grads` that is orthogonal to `clean`.

    Args:
        grads: The mixed gradient.
        clean: g, a tree like `grads`. Where it is zero, all of `grads` is orthogonal to it.

    Returns:
        A tree like `grads`. It is zero to the bit where the two are equal.
    """
    # Of the difference, which has the same component: what is left of nearly equal gradients is not
    # their rounding.
    difference = jax.tree.map(jnp.subtract, grads, clean)
    return add(difference, -dot(difference, clean) * jnp.square(inverse(global_norm(clean))), clean)


def reuse(clean: Tree, component: Tree, weight: Scalar) -> Tree:
    """Return ``g + weight (||g|| / ||g_v||) g_v``.

    Args:
        clean: g, the gradient of this step.
        component: g_v, a tree like it. Where it is zero, the result is g.
        weight: a, at least 0; it may be traced.
    """
    norm = global_norm(clean)
    scale = jnp.asarray(weight, norm.dtype) * norm * inverse(global_norm(component))
    return add(clean, scale, component)


def with_gradient(value_and_grad: Callable[..., Any]) -> Callable[..., Any]:
    """Return the gradient a second time, beside the aux of the value.

    Under `penalize`, which returns the aux of the clean pass, that is the clean gradient.

    Args:
        value_and_grad: ``f(...) -> ((loss, aux), grads)``.

    Returns:
        ``f(...) -> ((loss, (aux, grads)), grads)``.
    """

    def doubled(*args: Any, **kwargs: Any) -> Any:
        (loss, aux), grads = value_and_grad(*args, **kwargs)
        return (loss, (aux, grads)), grads

    return doubled
