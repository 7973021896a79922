"""Gradient norm penalty as a function transform with the type of `jax.value_and_grad`.

The objective (arXiv 2202.03599, with the L2 norm) is ``L(w) + lambda ||grad L(w)||``; its gradient is

    grad L(w) + lambda H(w) u,        u = grad L(w) / ||grad L(w)||

With a perturbation radius r and ``alpha = lambda / r``, the Hessian-vector product by a forward difference gives the
papers' formula:

    g = (1 - alpha) g_clean + alpha g_perturbed,   g_clean = grad L(w),   g_perturbed = grad L(w + r u)

alpha = 0 is plain training, alpha = 1 is SAM (arXiv 2010.01412). Everything here is pure and knows nothing of models,
data or configurations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

_SMALL = 1 << 15
"""Elements below which leaves are reduced together."""

Scalar = jax.Array | float
"""A Python number or a traced scalar."""


class GnpMetrics(NamedTuple):
    """What the two passes say about the loss surface; float scalars, over the same examples as the loss itself.

    For ``gradient="exact"`` the perturbed point is never visited: `perturbed_loss` and `perturbed_grad_norm` are then
    the first-order values ``L + r ||g||`` and ``||g + r H u||``.
    """

    perturbed_loss: jax.Array
    """Loss at ``w + r u``."""
    clean_grad_norm: jax.Array
    """``||grad L(w)||``."""
    perturbed_grad_norm: jax.Array
    """``||grad L(w + r u)||``."""
    cosine: jax.Array
    """Cosine of the angle between the two gradients; 0 where one of them is zero."""


def gnp_value_and_grad(
    loss_fn: Callable[..., Any],
    *,
    r: Scalar,
    alpha: Scalar,
    gradient: Literal["finite-difference", "exact"] = "finite-difference",
    mix: Literal["raw", "unit"] = "raw",
    has_aux: bool = False,
    with_metrics: bool = False,
) -> Callable[..., Any]:
    """Transform a loss into a function that returns the loss and the gradient of its gradient-norm-penalised form.

    The gradient is taken with respect to the first argument of `loss_fn`, a pytree of floating point arrays (the
    parameters); all other arguments are passed on unchanged to both passes, so that both see the same examples and the
    same random draws. Whatever `loss_fn` averages over, the perturbation is one for all of it.

    Args:
        loss_fn: ``loss_fn(params, *args, **kwargs) -> loss``, or ``-> (loss, aux)`` with `has_aux`; loss is a scalar.
        r: Perturbation radius, the L2 norm over all parameters of the step to the perturbed point; at least 0.
        alpha: Mixing weight ``lambda / r``. The penalty coefficient lambda is ``alpha * r``.
        gradient: ``"finite-difference"`` evaluates a second gradient at the perturbed point; its error against the
            exact gradient is of first order in r. ``"exact"`` computes ``H u`` forward over reverse.
        mix: ``"raw"`` is the formula above. ``"unit"`` replaces g_clean by ``u`` in the sum, as the papers' code does
            by default; it is not the gradient of the penalised loss.
        has_aux: Whether `loss_fn` returns a pair. The aux of the clean pass is returned, that of the perturbed pass
            dropped: batch statistics come from the clean pass alone.
        with_metrics: Whether to return `GnpMetrics` besides.

    Returns:
        A function with the arguments of `loss_fn` and the result of ``jax.value_and_grad(loss_fn, has_aux=has_aux)``:
        the clean loss (and aux) and the mixed gradient, in the shapes and dtypes of the parameters; with
        `with_metrics`, ``(value, gradient, metrics)``.

    Raises:
        ValueError: An unknown `gradient` or `mix`, or a negative r given as a Python number.

    Limit cases: where ``alpha * r`` is 0 the result is the clean gradient, bit for bit and whatever the mix. A zero
    gradient has no direction: the perturbation is zero and the result is the clean gradient. A gradient with a NaN or
    an infinity gives a non-finite `clean_grad_norm`. Norms are accumulated in at least float32.

    >>> def loss(w):
    ...     return 0.5 * jnp.vdot(w, jnp.array([1.0, 4.0]) * w)
    >>> value, gradient = gnp_value_and_grad(loss, r=0.1, alpha=0.5)(jnp.array([3.0, 1.0]))
    >>> print(value, gradient)  # g = (3, 4), H u = (0.6, 3.2), lambda = 0.05
    6.5 [3.03 4.16]
    """
    if gradient not in ("finite-difference", "exact"):
        raise ValueError(f"gradient must be 'finite-difference' or 'exact', not {gradient!r}")
    if mix not in ("raw", "unit"):
        raise ValueError(f"mix must be 'raw' or 'unit', not {mix!r}")
    if isinstance(r, int | float) and r < 0:
        raise ValueError(f"r must be at least 0, not {r}")
    if isinstance(r, int | float) and isinstance(alpha, int | float) and alpha * r == 0:
        plain = plain_value_and_grad(loss_fn, has_aux=has_aux)
        return plain if with_metrics else jax.value_and_grad(loss_fn, has_aux=has_aux)

    def transformed(params: Any, *args: Any, **kwargs: Any) -> Any:
        def value_and_grad(point: Any) -> Any:
            return jax.value_and_grad(loss_fn, has_aux=has_aux)(point, *args, **kwargs)

        if gradient == "exact":
            value, g_clean, perturbed_loss, g_perturbed = _linearized(value_and_grad, params, r, has_aux)
        else:
            value, g_clean = value_and_grad(params)
            inverse = _inverse(global_norm(g_clean))
            value_perturbed, g_perturbed = value_and_grad(
                _add(params, jnp.asarray(r, inverse.dtype) * inverse, g_clean)
            )
            perturbed_loss = value_perturbed[0] if has_aux else value_perturbed

        clean_norm, perturbed_norm = global_norm(g_clean), global_norm(g_perturbed)
        share = jnp.asarray(alpha, clean_norm.dtype)
        clean_weight = (1 - share) * _inverse(clean_norm) if mix == "unit" else 1 - share
        # Selecting, not multiplying by zero: an unused perturbed gradient must not leak rounding or a NaN.
        is_penalised = (share * jnp.asarray(r, share.dtype) > 0) & (clean_norm != 0)

        def mixed(clean: jax.Array, perturbed: jax.Array) -> jax.Array:
            total = _scaled(clean_weight, clean) + _scaled(share, perturbed)
            return jnp.where(is_penalised, total.astype(clean.dtype), clean)

        grads = jax.tree.map(mixed, g_clean, g_perturbed)
        if not with_metrics:
            return value, grads
        cosine = _dot(g_clean, g_perturbed) * _inverse(clean_norm) * _inverse(perturbed_norm)
        return value, grads, GnpMetrics(perturbed_loss, clean_norm, perturbed_norm, cosine)

    return transformed


def plain_value_and_grad(loss_fn: Callable[..., Any], *, has_aux: bool = False) -> Callable[..., Any]:
    """Return `jax.value_and_grad` with the result of `gnp_value_and_grad(..., with_metrics=True)` at alpha = 0.

    One pass: the perturbed loss and norm are those of the clean pass and the cosine is 1 (0 for a zero gradient).
    """

    def plain(params: Any, *args: Any, **kwargs: Any) -> Any:
        value, grads = jax.value_and_grad(loss_fn, has_aux=has_aux)(params, *args, **kwargs)
        norm = global_norm(grads)
        loss = value[0] if has_aux else value
        return (
            value,
            grads,
            GnpMetrics(loss, norm, norm, jnp.where(norm == 0, jnp.zeros_like(norm), jnp.ones_like(norm))),
        )

    return plain


def global_norm(tree: Any) -> jax.Array:
    """Return the L2 norm over all leaves, accumulated in float32 (in float64 where a leaf is): a scalar."""
    return jnp.sqrt(_dot(tree, tree))


def _dot(left: Any, right: Any) -> jax.Array:
    """Return the sum over all leaves of ``left * right``, accumulated in at least float32."""
    pairs = list(zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))
    wide = jnp.float64 if any(a.dtype == jnp.float64 for a, _ in pairs) else jnp.float32
    products = [a.astype(wide) * b.astype(wide) for a, b in pairs]
    # Most leaves of a network are small: reduced together they are one kernel to compile and to launch instead of a
    # hundred. The large ones stay apart, so that no copy of them is made.
    small = [product.reshape(-1) for product in products if product.size < _SMALL]
    sums = [jnp.sum(product) for product in products if product.size >= _SMALL]
    sums += [jnp.sum(jnp.concatenate(small))] if small else []
    return sum(sums, jnp.zeros((), wide))


def _wide(leaf: jax.Array) -> jax.Array:
    return leaf.astype(jnp.float64 if leaf.dtype == jnp.float64 else jnp.float32)


def _scaled(scale: jax.Array, leaf: jax.Array) -> jax.Array:
    wide = _wide(leaf)
    return scale.astype(wide.dtype) * wide


def _inverse(norm: jax.Array) -> jax.Array:
    """Return 1 / norm, and 0 for a norm of 0: a zero gradient has no direction."""
    is_zero = norm == 0
    return jnp.where(is_zero, jnp.zeros_like(norm), 1 / jnp.where(is_zero, jnp.ones_like(norm), norm))


def _add(params: Any, scale: jax.Array, direction: Any) -> Any:
    """Return ``params + scale * direction``, computed at least in float32 and rounded once to each leaf's own dtype."""
    return jax.tree.map(lambda leaf, step: (_wide(leaf) + _scaled(scale, step)).astype(leaf.dtype), params, direction)


def _linearized(value_and_grad: Callable[[Any], Any], params: Any, r: Scalar, has_aux: bool) -> Any:
    """Return value, clean gradient, and the first-order loss and gradient at ``params + r u``."""

    def split(point: Any) -> Any:
        value, grads = value_and_grad(point)
        loss, aux = value if has_aux else (value, None)
        return (loss, grads), aux

    (loss, g_clean), tangent_of, aux = jax.linearize(split, params, has_aux=True)
    inverse = _inverse(global_norm(g_clean))
    unit = jax.tree.map(lambda g: _scaled(inverse, g).astype(g.dtype), g_clean)
    slope, hessian_unit = tangent_of(unit)
    perturbed_loss = loss + jnp.asarray(r, loss.dtype) * slope
    g_perturbed = _add(g_clean, jnp.asarray(r, inverse.dtype), hessian_unit)
    return (loss, aux) if has_aux else loss, g_clean, perturbed_loss, g_perturbed
