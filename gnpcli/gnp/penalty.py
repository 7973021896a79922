"""The penalised gradient: plain training, SAM, GNP and their variants as one transform.

The objective (arXiv 2202.03599, section 3, with the L2 norm) is ``L(w) + lambda ||grad L(w)||``.
Its gradient is

    grad L(w) + lambda H(w) u,        u = grad L(w) / ||grad L(w)||

Let r be a perturbation radius and ``alpha = lambda / r``. With a forward difference in the place of
the Hessian-vector product this becomes the paper's formula:

    g = (1 - alpha) g_clean + alpha g_perturbed
    g_clean = grad L(w),        g_perturbed = grad L(w + r u)

alpha = 0 is plain training, and alpha = 1 is SAM (arXiv 2010.01412). `gnpcli.gnp.ascent` has other
ways to the perturbed point: there, ``w + r e`` takes the place of ``w + r u``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gnpcli.gnp.ascent import Scales
from gnpcli.gnp.passes import AtPoint, Passes, exact, loss_of, visited
from gnpcli.gnp.trees import Scalar, Tree, dot, global_norm, inverse, scaled

_Norms = tuple[Float[Array, ""], Float[Array, ""]]
"""Of the clean and of the perturbed gradient."""


class GnpMetrics(NamedTuple):
    """What the two passes say about the loss surface: float scalars.

    They are over the same examples as the loss itself. Averaged by `accumulate` they are means over
    the slices, each of which has a gradient of its own.

    ``gradient="exact"`` never visits the perturbed point. `perturbed_loss` and
    `perturbed_grad_norm` are then the first-order values ``L + r <g, e>`` and ``||g + r H e||``.
    The former is ``L + r ||g||`` for the L2 ball.
    """

    perturbed_loss: Float[Array, ""]
    """Loss at ``w + r e``."""
    clean_grad_norm: Float[Array, ""]
    """``||grad L(w)||``."""
    perturbed_grad_norm: Float[Array, ""]
    """``||grad L(w + r e)||``."""
    cosine: Float[Array, ""]
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
    """Transform a loss into the value and gradient of its gradient-norm-penalised form.

    The gradient is taken with respect to the first argument of `loss_fn`, the parameters: a tree of
    floating point arrays. All other arguments are passed on unchanged to both passes, so both see
    the same examples and the same random draws. Whatever `loss_fn` averages over shares one
    perturbation.

    Args:
        loss_fn: ``loss_fn(params, *args, **kwargs) -> loss``, or ``-> (loss, aux)`` with `has_aux`;
            loss is a scalar.
        r, alpha, gradient, mix, scales, surrogate_gap, has_aux, with_metrics: As in `penalize`.

    Returns:
        A function with the arguments of `loss_fn` and the result of ``jax.value_and_grad(loss_fn,
        has_aux=has_aux)``: the clean loss (and aux), and the mixed gradient in the shapes and
        dtypes of the parameters. With `with_metrics` the result is ``(value, gradient, metrics)``.
        Limit cases are those of `penalize`.

    Raises:
        ValueError: As in `penalize`.

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
    """Transform the value and gradient of a loss into those of its penalised form.

    The result has the type of what is given, so transforms compose; `gnp_value_and_grad` begins
    with the loss itself.

    Args:
        value_and_grad: ``f(params, *args, **kwargs) -> (loss, grads)``, or ``-> ((loss, aux),
            grads)`` with `has_aux`: `jax.value_and_grad` of a loss, or an average of such
            (`accumulate`). What it averages over shares one perturbation.
        r: Perturbation radius, at least 0: the L2 norm, over the parameters that move, of the step
            to the perturbed point. With `scales` it is the norm ``||T^-1 e||`` of that step. It may
            be traced.
        alpha: Mixing weight ``lambda / r``. The penalty coefficient lambda is ``alpha * r``. It may
            be traced.
        clean: What gives g_clean, and with it the direction, where that is not `value_and_grad`: a
            function of the same type that computes the loss from the same parameters to the same
            value, with another gradient. None takes `value_and_grad`.
        gradient: ``"finite-difference"`` evaluates a second gradient at the perturbed point; its
            error against the exact gradient is of first order in r. ``"exact"`` computes ``H e``
            forward over reverse.
        recompute: Only for ``"exact"``: take the clean gradient once alone, and then again under
            the forward derivative. That is about 3 plain gradients in all. Otherwise what the first
            pass computed is kept until the direction is known; of an average over slices that is
            the memory of all slices, which slicing is to save.
        mix: ``"raw"`` is the formula above. ``"unit"`` replaces g_clean by ``u`` in the sum, as the
            papers' code does by default; it is not the gradient of the penalised loss.
        scales: T as a function of the parameters, see `gnpcli.gnp.ascent` and
            `perturbation_scales`; None is T = 1.
        surrogate_gap: a of GSAM (arXiv 2203.08065, algorithm 1), at least 0. It subtracts a times
            the component of g_clean orthogonal to g_perturbed from the mix. GSAM itself has
            alpha = 1.
        has_aux: Whether the value is a pair. The aux of the clean pass is returned and that of the
            perturbed pass dropped: batch statistics come from the clean pass alone.
        with_metrics: Whether to return `GnpMetrics` besides.

    Returns:
        A function with the arguments and the result of `value_and_grad`: the clean loss (and aux),
        and the mixed gradient in the dtypes of the clean one. With `with_metrics` the result is
        ``(value, gradient, metrics)``.

        Where ``alpha * r`` is 0 the gradient is the clean one, bit for bit and whatever else is
        asked for. A gradient that is zero on the parameters that move has no direction: the
        perturbation is zero, and the gradient is the clean one. A gradient with a NaN or an
        infinity gives a `clean_grad_norm` that is not finite. Norms are accumulated in at least
        float32.

    Raises:
        ValueError: An unknown `gradient` or `mix`, or a negative r given as a Python number.
    """
    _check(r, gradient, mix)
    if _is_plain(r, alpha):
        only = clean or value_and_grad
        return plain(only, has_aux=has_aux) if with_metrics else only

    def penalized(params: Tree, *args: Any, **kwargs: Any) -> Any:
        def bound(function: Callable[..., Any]) -> AtPoint:
            return lambda point: function(point, *args, **kwargs)

        at, clean_at = bound(value_and_grad), bound(clean) if clean else None
        if gradient == "exact":
            passes = exact(at, clean_at, params, r, scales, has_aux, recompute)
        else:
            passes = visited(at, clean_at or at, params, r, scales, has_aux)
        norms = global_norm(passes.g_clean), global_norm(passes.g_perturbed)
        grads = _mixed(passes, norms, r, alpha, mix, surrogate_gap)
        if not with_metrics:
            return passes.value, grads
        return passes.value, grads, _metrics(passes, norms)

    return penalized


def plain(value_and_grad: Callable[..., Any], *, has_aux: bool = False) -> Callable[..., Any]:
    """Return `value_and_grad` with the result of ``penalize(..., with_metrics=True)`` at alpha = 0.

    It takes one pass. The perturbed loss and norm are those of the clean pass, and the cosine is 1,
    or 0 for a zero gradient.

    Args:
        value_and_grad: ``f(params, *args, **kwargs) -> (value, grads)``.
        has_aux: Whether the value is ``(loss, aux)``.
    """

    def with_metrics(params: Tree, *args: Any, **kwargs: Any) -> Any:
        value, grads = value_and_grad(params, *args, **kwargs)
        norm = global_norm(grads)
        cosine = jnp.where(norm == 0, jnp.zeros_like(norm), jnp.ones_like(norm))
        return value, grads, GnpMetrics(loss_of(value, has_aux), norm, norm, cosine)

    return with_metrics


def _check(r: Scalar, gradient: str, mix: str) -> None:
    if gradient not in ("finite-difference", "exact"):
        raise ValueError(f"gradient must be 'finite-difference' or 'exact', not {gradient!r}")
    if mix not in ("raw", "unit"):
        raise ValueError(f"mix must be 'raw' or 'unit', not {mix!r}")
    if isinstance(r, int | float) and r < 0:
        raise ValueError(f"r must be at least 0, not {r}")


def _is_plain(r: Scalar, alpha: Scalar) -> bool:
    """Return whether lambda is known to be 0 before anything is traced."""
    if isinstance(r, int | float) and isinstance(alpha, int | float):
        return alpha * r == 0
    return False


def _mixed(
    passes: Passes,
    norms: _Norms,
    r: Scalar,
    alpha: Scalar,
    mix: Literal["raw", "unit"],
    surrogate_gap: float,
) -> Tree:
    """Return the mixed gradient; the clean one, bit for bit, where nothing is penalised."""
    clean_norm, perturbed_norm = norms
    share = jnp.asarray(alpha, clean_norm.dtype)
    clean_weight = (1 - share) * inverse(clean_norm) if mix == "unit" else 1 - share
    perturbed_weight = share
    if surrogate_gap:
        # The orthogonal component is g_clean - projection * g_perturbed: other weights are all it
        # takes.
        projection = dot(passes.g_clean, passes.g_perturbed) * jnp.square(inverse(perturbed_norm))
        clean_weight = clean_weight - surrogate_gap
        perturbed_weight = perturbed_weight + surrogate_gap * projection
    is_penalised: Bool[Array, ""] = (share * jnp.asarray(r, share.dtype) > 0) & (passes.slope != 0)

    def mixed(clean: jax.Array, perturbed: jax.Array) -> jax.Array:
        total = scaled(clean_weight, clean) + scaled(perturbed_weight, perturbed)
        # Selecting, not multiplying by zero: an unused perturbed gradient must not leak rounding or
        # a NaN.
        return jnp.where(is_penalised, total.astype(clean.dtype), clean)

    return jax.tree.map(mixed, passes.g_clean, passes.g_perturbed)


def _metrics(passes: Passes, norms: _Norms) -> GnpMetrics:
    clean_norm, perturbed_norm = norms
    product = dot(passes.g_clean, passes.g_perturbed)
    cosine = product * inverse(clean_norm) * inverse(perturbed_norm)
    return GnpMetrics(passes.perturbed_loss, clean_norm, perturbed_norm, cosine)
