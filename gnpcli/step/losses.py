"""Losses and metric sums. Pure. Shapes: B examples, K classes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

Labels = Int32[Array, " B"] | Float[Array, "B K"]
"""A class for each example, or the class probabilities of an image mixed of several."""


def cross_entropy(
    logits: Float[Array, "B K"], labels: Labels, smoothing: float = 0.0
) -> Float[Array, " B"]:
    """Return the cross-entropy of each example, in nats.

    The target is ``(1 - smoothing) * p + smoothing / K`` (label smoothing, arXiv 1512.00567,
    section 7), where p is the one-hot label, or the class probabilities of an image mixed of
    several.

    Args:
        logits: ``[B, K]`` float32.
        labels: ``[B]`` int32 in ``[0, K)``, or ``[B, K]`` float32 that sum to 1.
        smoothing: In ``[0, 1)``; 0 is the plain cross-entropy.

    Returns:
        ``[B]`` float32, not averaged.
    """
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    if labels.ndim == 1:
        own = jnp.take_along_axis(log_probs, labels[:, None], axis=-1)[:, 0]
    else:
        own = jnp.sum(labels * log_probs, axis=-1)
    if smoothing == 0.0:
        return -own
    return -(1 - smoothing) * own - smoothing * jnp.mean(log_probs, axis=-1)


def main_class(labels: Labels) -> Int32[Array, " B"]:
    """Return the labels themselves, or the most probable class: of two equal ones the lower."""
    return labels if labels.ndim == 1 else jnp.argmax(labels, axis=-1).astype(jnp.int32)


def is_outside_top(
    logits: Float[Array, "B K"], labels: Int32[Array, " B"], k: int
) -> Bool[Array, " B"]:
    """Return ``[B]`` bool: whether the label is not among the k largest logits.

    Of equal logits the lower class index counts as larger, as in `jnp.argmax`. A NaN at the label,
    or a label beaten by nothing because the others are NaN, is outside: a diverged model has no
    right answers.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    classes = jnp.arange(logits.shape[-1], dtype=labels.dtype)[None, :]
    is_below = (logits < own) | ((logits == own) & (classes >= labels[:, None]))
    return jnp.sum(~is_below, axis=-1) >= k


class MetricSums(NamedTuple):
    """Sums over the examples of an evaluation, from which the averages follow once at the end."""

    loss: jax.Array
    """Sum of the cross-entropy without smoothing and without L2, float32."""
    errors: jax.Array
    """Examples whose largest logit is not their label, int32."""
    top5_errors: jax.Array
    """Examples whose label is not among the five largest logits, int32."""
    num_examples: jax.Array
    """Examples, int32."""


def zero_sums() -> MetricSums:
    """Return the sums over no examples."""
    return MetricSums(jnp.zeros((), jnp.float32), *(jnp.zeros((), jnp.int32) for _ in range(3)))


def metric_sums(
    logits: Float[Array, "B K"], labels: Int32[Array, " B"], mask: Bool[Array, " B"]
) -> MetricSums:
    """Sum loss and errors over the examples where `mask` is set.

    The others are padding, which may hold anything, even NaN.
    """

    def total(values: jax.Array, dtype: Any) -> jax.Array:
        return jnp.sum(jnp.where(mask, values.astype(dtype), jnp.zeros((), dtype)))

    return MetricSums(
        loss=total(cross_entropy(logits, labels), jnp.float32),
        errors=total(is_outside_top(logits, labels, 1), jnp.int32),
        top5_errors=total(is_outside_top(logits, labels, 5), jnp.int32),
        num_examples=jnp.sum(mask.astype(jnp.int32)),
    )
