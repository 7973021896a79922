"""The optimizer of a configuration as an optax chain, and which parameters decay."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from gnpcli.config.optimizers import OptimizerConfig
from gnpcli.config.training import TrainConfig
from gnpcli.step.programs import Metrics, OptimizerStatistics
from gnpcli.step.telemetry import mean_and_variance


def decay_mask(params: PyTree, *, biases_and_norms: bool) -> PyTree[bool]:
    """Return a tree of bools: which leaves weight decay and L2 act on.

    Biases and the scales of normalisation layers are the leaves of at most one dimension. They
    decay only with `biases_and_norms`.

    Args:
        params: Tree of arrays or of their shapes.
        biases_and_norms: Whether leaves of at most one dimension decay too.
    """
    return jax.tree.map(lambda leaf: biases_and_norms or leaf.ndim > 1, params)


def clip_ratio(norm: Float[Array, ""], max_norm: float | None) -> Float[Array, ""]:
    """Return ``min(1, max_norm / norm)``, by which clipping multiplies a gradient.

    It is 1 for a norm of 0 and without a limit. A norm that is not finite gives 0 or 1: the guard
    drops such a step.

    Args:
        norm: L2 norm of the gradient.
        max_norm: The limit, greater than 0; None is no limit.
    """
    if max_norm is None:
        return jnp.ones_like(norm)
    return jnp.where(norm > max_norm, max_norm / norm, jnp.ones_like(norm))


def clip_by_norm(grads: PyTree, norm: Float[Array, ""], max_norm: float | None) -> PyTree:
    """Scale `grads` to a global L2 norm of at most `max_norm`.

    Args:
        grads: Tree of float arrays, of any shapes. They keep their dtypes.
        norm: Their L2 norm, which the step has already for its log.
        max_norm: Greater than 0; None leaves `grads` alone.
    """
    if max_norm is None:
        return grads
    ratio = clip_ratio(norm, max_norm)

    def clipped(grad: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return (ratio * grad.astype(ratio.dtype)).astype(grad.dtype)

    return jax.tree.map(clipped, grads)


def build_optimizer(config: OptimizerConfig, train: TrainConfig) -> optax.GradientTransformation:
    """Build the optimizer and then decoupled decay.

    What comes out is to be multiplied by minus the learning rate. The step does that, and it clips
    before: its number is the run's only clock. The optimizer counts its updates for its own bias
    correction alone, so it may skip one.

    Decoupled decay adds ``weight_decay * parameter`` to the update before the learning rate
    multiplies it (AdamW, arXiv 1711.05101), also for SGD and RMSProp.

    Args:
        config: The section, which is the optimizer itself.
        train: For `decay_biases_and_norms`.
    """
    parts = [config.transform()]
    if config.weight_decay:

        def mask(params: PyTree) -> PyTree[bool]:
            return decay_mask(params, biases_and_norms=train.decay_biases_and_norms)

        parts.append(optax.add_decayed_weights(config.weight_decay, mask))
    return optax.chain(*parts)


def make_statistics(config: OptimizerConfig) -> OptimizerStatistics | None:
    """Build what an adaptive optimizer tells about itself between two steps.

    Returns:
        None for an optimizer that adapts nothing (SGD). Otherwise jitted, ``opt_state -> metrics``:
        float32 scalars over all parameters, of their adaptive learning rate psi
        (`OptimizerConfig.adaptive_rates`): `adaptive_lr_mean`, `adaptive_lr_variance` and
        `adaptive_lr_log_variance`, of ln psi. A few parameters that have no gradient yet, with a
        huge psi, dominate the first two; the last one weighs a factor the same wherever it is.
    """
    if not config.is_adaptive:
        return None

    def statistics(opt_state: Any) -> Metrics:
        psi = config.adaptive_rates(opt_state)
        mean, variance = mean_and_variance(psi)
        _, log_variance = mean_and_variance(jax.tree.map(jnp.log, psi))
        return {
            "adaptive_lr_mean": mean,
            "adaptive_lr_variance": variance,
            "adaptive_lr_log_variance": log_variance,
        }

    return jax.jit(statistics)
