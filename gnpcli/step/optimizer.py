"""Configuration to optax chain; which parameters decay."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gnpcli.config.optimizers import OptimizerConfig
from gnpcli.config.schema import TrainConfig
from gnpcli.step.programs import Metrics, OptimizerStatistics
from gnpcli.step.telemetry import mean_and_variance


def decay_mask(params: Any, *, biases_and_norms: bool) -> Any:
    """Return a tree of bools: which leaves weight decay and L2 act on.

    Biases and the scales of normalisation layers are the leaves of at most one dimension; they
    decay only with `biases_and_norms`.
    """
    return jax.tree.map(lambda leaf: biases_and_norms or leaf.ndim > 1, params)


def clip_ratio(norm: jax.Array, max_norm: float | None) -> jax.Array:
    """Return ``min(1, max_norm / norm)``, what clipping multiplies a gradient of L2 norm `norm` by;
    1 without a limit.

    A norm of 0 gives 1. A norm that is not finite gives 0 or NaN: the guard has dropped such a step
    by then.
    """
    if max_norm is None:
        return jnp.ones_like(norm)
    return jnp.where(norm > max_norm, max_norm / norm, jnp.ones_like(norm))


def clip_by_norm(grads: Any, norm: jax.Array, max_norm: float | None) -> Any:
    """Scale `grads`, whose global L2 norm is `norm`, to a norm of at most `max_norm`; None leaves
    them alone.

    The norm is an argument because the step has it already, for its log.
    """
    if max_norm is None:
        return grads
    ratio = clip_ratio(norm, max_norm)
    return jax.tree.map(lambda grad: (ratio * grad.astype(ratio.dtype)).astype(grad.dtype), grads)


def build_optimizer(config: OptimizerConfig, train: TrainConfig) -> optax.GradientTransformation:
    """Build the optimizer and then decoupled decay.

    What comes out is to be multiplied by minus the learning rate. The step does that, and clips
    before it: its number is the run's only clock. The optimizer counts its updates for its own bias
    correction alone, and so may skip one.

    Decoupled decay adds ``weight_decay * parameter`` to the update before the learning rate
    multiplies it (AdamW, arXiv 1711.05101), also for SGD and RMSProp.

    Args:
        config: The section, which is the optimizer itself.
        train: For `decay_biases_and_norms`.
    """
    parts = [config.transform()]
    if config.weight_decay:

        def mask(params: Any) -> Any:
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
