"""The two passes of a penalised gradient: loss and gradient here, and at the perturbed point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from gnpcli.gnp.ascent import Scales, steepest
from gnpcli.gnp.trees import Scalar, Tree, add, inverse, scaled

Value: TypeAlias = PyTree
"""A scalar loss, or ``(loss, aux)`` where the function has aux, which is any tree."""

AtPoint = Callable[[Tree], tuple[Value, Tree]]
"""``params -> (value, grads)``: a value and gradient whose other arguments are bound."""


class Passes(NamedTuple):
    """What the two passes give."""

    value: Value
    """Of the clean pass."""
    g_clean: Tree
    """Gradient of the clean pass."""
    slope: Float[Array, ""]
    """``||T g||``: how fast the loss rises along the direction; 0 where there is none."""
    perturbed_loss: Float[Array, ""]
    """Loss at ``params + r e``, or its first-order value."""
    g_perturbed: Tree
    """Gradient there, or its first-order value."""


def visited(
    at: AtPoint,
    clean_at: AtPoint,
    params: Tree,
    r: Scalar,
    scales: Scales | None,
    has_aux: bool,
) -> Passes:
    """Evaluate the gradient again at ``params + r e``.

    Args:
        at: Gives the perturbed gradient.
        clean_at: Gives the clean gradient, and with it the direction e.
        params: The point w.
        r: Perturbation radius, at least 0.
        scales: T of `gnpcli.gnp.ascent`; None is 1.
        has_aux: Whether values are ``(loss, aux)``.
    """
    value, g_clean = clean_at(params)
    ray, slope = steepest(params, g_clean, scales)
    perturbed = add(params, jnp.asarray(r, slope.dtype) * inverse(slope), ray)
    perturbed_value, g_perturbed = at(perturbed)
    return Passes(value, g_clean, slope, loss_of(perturbed_value, has_aux), g_perturbed)


class _Slopes(NamedTuple):
    """The clean pass, and what a direction makes of loss and gradient."""

    loss: Float[Array, ""]
    g_clean: Tree
    aux: PyTree
    along: Callable[[Tree], tuple[Tree, Float[Array, ""], Tree]]
    """``e -> (g, <g, e>, H e)``, where g is the gradient that H is the derivative of."""


def exact(
    at: AtPoint,
    clean_at: AtPoint | None,
    params: Tree,
    r: Scalar,
    scales: Scales | None,
    has_aux: bool,
    recompute: bool,
) -> Passes:
    """Give the first-order loss and gradient at ``params + r e``, without a second point.

    They are ``L + r <g, e>`` and ``g + r H e``, with ``H e`` forward over reverse.

    Args:
        at: Gives H, and the g that it is added to.
        clean_at: Gives the clean gradient, and with it the direction e; None takes `at`.
        params, r, scales, has_aux: As of `visited`.
        recompute: Take the clean gradient apart from the pass of the derivative.
    """
    if recompute or clean_at is not None:
        slopes = _taken_twice(at, clean_at, params, has_aux)
    else:
        slopes = _kept(at, params, has_aux)
    loss, g_clean, aux, along = slopes
    ray, slope = steepest(params, g_clean, scales)

    def normalized(g: jax.Array, leaf: jax.Array) -> jax.Array:
        return scaled(inverse(slope), leaf).astype(g.dtype)

    g_here, rise, hessian_unit = along(jax.tree.map(normalized, g_clean, ray))
    perturbed_loss = loss + jnp.asarray(r, loss.dtype) * rise
    g_perturbed = add(g_here, jnp.asarray(r, slope.dtype), hessian_unit)
    return Passes((loss, aux) if has_aux else loss, g_clean, slope, perturbed_loss, g_perturbed)


def _apart(at: AtPoint, has_aux: bool) -> Callable[[Tree], tuple[tuple[Any, Tree], PyTree]]:
    """Return ``params -> ((loss, grads), aux)``; aux is None where there is none."""

    def split(point: Tree) -> tuple[tuple[Any, Tree], PyTree]:
        value, grads = at(point)
        loss, aux = value if has_aux else (value, None)
        return (loss, grads), aux

    return split


def _kept(at: AtPoint, params: Tree, has_aux: bool) -> _Slopes:
    """Linearise the pass: what it computed is kept until the direction is known."""
    (loss, g_clean), tangent_of, aux = jax.linearize(_apart(at, has_aux), params, has_aux=True)

    def along(unit: Tree) -> tuple[Tree, Float[Array, ""], Tree]:
        rise, hessian_unit = tangent_of(unit)
        return g_clean, rise, hessian_unit

    return _Slopes(loss, g_clean, aux, along)


def _taken_twice(at: AtPoint, clean_at: AtPoint | None, params: Tree, has_aux: bool) -> _Slopes:
    """Take the clean pass alone, and the pass of the derivative once the direction is known."""
    (loss, g_clean), aux = _apart(clean_at or at, has_aux)(params)
    split = _apart(at, has_aux)

    def along(unit: Tree) -> tuple[Tree, Float[Array, ""], Tree]:
        tangents = jax.jvp(lambda point: split(point)[0], (params,), (unit,))
        (_, g_again), (rise, hessian_unit) = tangents
        return g_clean if clean_at is None else g_again, rise, hessian_unit

    return _Slopes(loss, g_clean, aux, along)


def loss_of(value: Value, has_aux: bool) -> Float[Array, ""]:
    """Return the loss of a value."""
    loss: Float[Array, ""] = value[0] if has_aux else value
    return loss
