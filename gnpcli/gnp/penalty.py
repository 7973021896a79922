"""The penalised gradient, with which plain training, SAM, GNP and their variants share one train
step.

The objective (arXiv 2202.03599, with the L2 norm) is ``L(w) + lambda ||grad L(w)||``; its gradient
is

    grad L(w) + lambda H(w) u,        u = grad L(w) / ||grad L(w)||

With a perturbation radius r and ``alpha = lambda / r``, the Hessian-vector product by a forward
difference gives the papers' formula:

    g = (1 - alpha) g_clean + alpha g_perturbed,   g_clean = grad L(w),   g_perturbed = grad L(w + r
    u)

alpha = 0 is plain training, alpha = 1 is SAM (arXiv 2010.01412). `gnpcli.gnp.ascent` has other ways
to the perturbed point.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from gnpcli.gnp.ascent import Scales, steepest
from gnpcli.gnp.trees import Scalar, add, dot, global_norm, inverse, scaled


class GnpMetrics(NamedTuple):
    """What the two passes say about the loss surface; float scalars, over the same examples as the
    loss itself.

    For ``gradient="exact"`` the perturbed point is never visited: `perturbed_loss` and
    `perturbed_grad_norm` are then the first-order values ``L + r <g, e>`` and ``||g + r H e||``,
    which for the L2 ball is ``L + r ||g||``. Averaged by `accumulate` they are means over the
    slices, each of which has a gradient of its own.
    """

    perturbed_loss: jax.Array
    """Loss at ``w + r e``."""
    clean_grad_norm: jax.Array
    """``||grad L(w)||``."""
    perturbed_grad_norm: jax.Array
    """``||grad L(w + r e)||``."""
    cosine: jax.Array
    """Cosine of the angle between the two gradients; 0 where one of them is zero."""


def gnp_value_and_grad(
    loss_fn: Callable[..., Any],
    *,
    r: Scalar,
    alpha: Scalar,
    gradient: Literal["finite-difference", "exact"] = "finite-difference",
    mix: Literal["raw", "unit"] = "raw",
    scales: Scales | None = None,
    surrogate_gap: float = 0.0,
    has_aux: bool = False,
    with_metrics: bool = False,
) -> Callable[..., Any]:
    """Transform a loss into a function that returns the loss and the gradient of its
    gradient-norm-penalised form.

    The gradient is taken with respect to the first argument of `loss_fn`, a pytree of floating
    point arrays (the parameters); all other arguments are passed on unchanged to both passes, so
    that both see the same examples and the same random draws. Whatever `loss_fn` averages over, the
    perturbation is one for all of it.

    Args:
        loss_fn: ``loss_fn(params, *args, **kwargs) -> loss``, or ``-> (loss, aux)`` with `has_aux`;
            loss is a scalar.
        r, alpha, gradient, mix, scales, surrogate_gap, has_aux, with_metrics: As in `penalize`.

    Returns:
        A function with the arguments of `loss_fn` and the result of ``jax.value_and_grad(loss_fn,
        has_aux=has_aux)``: the clean loss (and aux) and the mixed gradient, in the shapes and
        dtypes of the parameters; with `with_metrics`, ``(value, gradient, metrics)``. Limit cases
        and errors are those of `penalize`.

    >>> def loss(w):
    ...     return 0.5 * jnp.vdot(w, jnp.array([1.0, 4.0]) * w)
    >>> value, gradient = gnp_value_and_grad(loss, r=0.1, alpha=0.5)(jnp.array([3.0, 1.0]))
    >>> print(value, gradient)  # g = (3, 4), H u = (0.6, 3.2), lambda = 0.05
    6.5 [3.03 4.16]
    """
    return penalize(
        jax.value_and_grad(loss_fn, has_aux=has_aux),
        r=r,
        alpha=alpha,
        gradient=gradient,
        mix=mix,
        scales=scales,
        surrogate_gap=surrogate_gap,
        has_aux=has_aux,
        with_metrics=with_metrics,
    )


def penalize(
    value_and_grad: Callable[..., Any],
    *,
    r: Scalar,
    alpha: Scalar,
    clean: Callable[..., Any] | None = None,
    gradient: Literal["finite-difference", "exact"] = "finite-difference",
    recompute: bool = False,
    mix: Literal["raw", "unit"] = "raw",
    scales: Scales | None = None,
    surrogate_gap: float = 0.0,
    has_aux: bool = False,
    with_metrics: bool = False,
) -> Callable[..., Any]:
    """Transform the value and gradient of a loss into those of its gradient-norm-penalised form, of
    the same type.

    Args:
        value_and_grad: ``f(params, *args, **kwargs) -> (loss, grads)``, or ``-> ((loss, aux),
            grads)`` with `has_aux`: `jax.value_and_grad` of a loss, or an average of such
            (`accumulate`). What it averages over shares one perturbation.
        r: Perturbation radius, at least 0: the L2 norm, over the parameters that move, of the step
            to the perturbed point; with `scales`, the norm ``||T^-1 e||`` of that step.
        alpha: Mixing weight ``lambda / r``. The penalty coefficient lambda is ``alpha * r``.
        clean: What gives g_clean, and with it the direction, where that is another function than
            what gives g_perturbed: one of the same type that computes the loss from the same
            parameters to the same value, with another gradient. None takes `value_and_grad`.
        gradient: ``"finite-difference"`` evaluates a second gradient at the perturbed point; its
            error against the exact gradient is of first order in r. ``"exact"`` computes ``H e``
            forward over reverse.
        recompute: Only for ``"exact"``: take the clean gradient once alone and then again under the
            forward derivative, about 3 plain gradients in all, instead of keeping what the first
            pass computed until the direction is known. An average over slices needs it: else the
            intermediate values of all slices are kept at once, which is the memory that slicing is
            to save.
        mix: ``"raw"`` is the formula above. ``"unit"`` replaces g_clean by ``u`` in the sum, as the
            papers' code does by default; it is not the gradient of the penalised loss.
        scales: T as a function of the parameters, see `gnpcli.gnp.ascent` and
            `perturbation_scales`; None is T = 1.
        surrogate_gap: a of GSAM (arXiv 2203.08065, algorithm 1), at least 0: subtracts a times the
            component of g_clean orthogonal to g_perturbed from the mix. GSAM itself has alpha = 1.
        has_aux: Whether the value is a pair. The aux of the clean pass is returned, that of the
            perturbed pass dropped: batch statistics come from the clean pass alone.
        with_metrics: Whether to return `GnpMetrics` besides.

    Returns:
        A function with the arguments and the result of `value_and_grad`: the clean loss (and aux)
        and the mixed gradient; with `with_metrics`, ``(value, gradient, metrics)``.

    Raises:
        ValueError: An unknown `gradient` or `mix`, or a negative r given as a Python number.

    Limit cases: where ``alpha * r`` is 0 the result is the clean gradient, bit for bit and whatever
    else is asked for. A gradient that is zero (on the parameters that move) has no direction: the
    perturbation is zero and the result is the clean gradient. A gradient with a NaN or an infinity
    gives a non-finite `clean_grad_norm`. Norms are accumulated in at least float32.
    """
    if gradient not in ("finite-difference", "exact"):
        raise ValueError(f"gradient must be 'finite-difference' or 'exact', not {gradient!r}")
    if mix not in ("raw", "unit"):
        raise ValueError(f"mix must be 'raw' or 'unit', not {mix!r}")
    if isinstance(r, int | float) and r < 0:
        raise ValueError(f"r must be at least 0, not {r}")
    if isinstance(r, int | float) and isinstance(alpha, int | float) and alpha * r == 0:
        first = clean or value_and_grad
        return plain(first, has_aux=has_aux) if with_metrics else first

    def penalized(params: Any, *args: Any, **kwargs: Any) -> Any:
        def at(point: Any) -> Any:
            return value_and_grad(point, *args, **kwargs)

        def clean_at(point: Any) -> Any:
            return (clean or value_and_grad)(point, *args, **kwargs)

        if gradient == "exact":
            passes = _exact(at, clean_at if clean else None, params, r, scales, has_aux, recompute)
        else:
            passes = _visited(at, clean_at, params, r, scales, has_aux)
        g_clean, g_perturbed = passes.g_clean, passes.g_perturbed
        clean_norm, perturbed_norm = global_norm(g_clean), global_norm(g_perturbed)
        share = jnp.asarray(alpha, clean_norm.dtype)
        clean_weight = (1 - share) * inverse(clean_norm) if mix == "unit" else 1 - share
        perturbed_weight = share
        if surrogate_gap:
            # The orthogonal component is g_clean - projection * g_perturbed: other weights are all
            # it takes.
            projection = dot(g_clean, g_perturbed) * jnp.square(inverse(perturbed_norm))
            clean_weight = clean_weight - surrogate_gap
            perturbed_weight = perturbed_weight + surrogate_gap * projection
        # Selecting, not multiplying by zero: an unused perturbed gradient must not leak rounding or
        # a NaN.
        is_penalised = (share * jnp.asarray(r, share.dtype) > 0) & (passes.slope != 0)

        def mixed(clean: jax.Array, perturbed: jax.Array) -> jax.Array:
            total = scaled(clean_weight, clean) + scaled(perturbed_weight, perturbed)
            return jnp.where(is_penalised, total.astype(clean.dtype), clean)

        grads = jax.tree.map(mixed, g_clean, g_perturbed)
        if not with_metrics:
            return passes.value, grads
        cosine = dot(g_clean, g_perturbed) * inverse(clean_norm) * inverse(perturbed_norm)
        return (
            passes.value,
            grads,
            GnpMetrics(passes.perturbed_loss, clean_norm, perturbed_norm, cosine),
        )

    return penalized


def plain(value_and_grad: Callable[..., Any], *, has_aux: bool = False) -> Callable[..., Any]:
    """Return `value_and_grad` with the result of ``penalize(..., with_metrics=True)`` at alpha = 0.

    One pass: the perturbed loss and norm are those of the clean pass and the cosine is 1 (0 for a
        zero gradient).
    """

    def with_metrics(params: Any, *args: Any, **kwargs: Any) -> Any:
        value, grads = value_and_grad(params, *args, **kwargs)
        norm = global_norm(grads)
        cosine = jnp.where(norm == 0, jnp.zeros_like(norm), jnp.ones_like(norm))
        return value, grads, GnpMetrics(value[0] if has_aux else value, norm, norm, cosine)

    return with_metrics


class _Passes(NamedTuple):
    value: Any
    g_clean: Any
    slope: jax.Array
    """``||T g||``: how fast the loss rises along the direction; 0 where there is none."""
    perturbed_loss: jax.Array
    g_perturbed: Any


def _visited(
    at: Callable[[Any], Any],
    clean_at: Callable[[Any], Any],
    params: Any,
    r: Scalar,
    scales: Scales | None,
    has_aux: bool,
) -> _Passes:
    """Evaluate the gradient again at ``params + r e``."""
    value, g_clean = clean_at(params)
    ray, slope = steepest(params, g_clean, scales)
    value_perturbed, g_perturbed = at(
        add(params, jnp.asarray(r, slope.dtype) * inverse(slope), ray)
    )
    return _Passes(
        value, g_clean, slope, value_perturbed[0] if has_aux else value_perturbed, g_perturbed
    )


def _exact(
    at: Callable[[Any], Any],
    clean_at: Callable[[Any], Any] | None,
    params: Any,
    r: Scalar,
    scales: Scales | None,
    has_aux: bool,
    recompute: bool,
) -> _Passes:
    """Give, without a second point, the first-order loss and gradient at ``params + r e``."""

    def split(point: Any, of: Callable[[Any], Any] = at) -> Any:
        value, grads = of(point)
        loss, aux = value if has_aux else (value, None)
        return (loss, grads), aux

    is_first_apart = recompute or clean_at is not None
    if is_first_apart:
        (loss, g_clean), aux = split(params, clean_at or at)
    else:
        (loss, g_clean), tangent_of, aux = jax.linearize(split, params, has_aux=True)
    ray, slope = steepest(params, g_clean, scales)
    unit = jax.tree.map(lambda g, leaf: scaled(inverse(slope), leaf).astype(g.dtype), g_clean, ray)
    g_here = g_clean
    if is_first_apart:
        (_, g_again), (rise, hessian_unit) = jax.jvp(
            lambda point: split(point)[0], (params,), (unit,)
        )
        g_here = g_clean if clean_at is None else g_again
    else:
        rise, hessian_unit = tangent_of(unit)
    perturbed_loss = loss + jnp.asarray(r, loss.dtype) * rise
    g_perturbed = add(g_here, jnp.asarray(r, slope.dtype), hessian_unit)
    return _Passes((loss, aux) if has_aux else loss, g_clean, slope, perturbed_loss, g_perturbed)
