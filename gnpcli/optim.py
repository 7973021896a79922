"""Configuration to optax chain; which parameters decay."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gnpcli.config import OptimizerConfig, TrainConfig
from gnpcli.schedules import Schedule


def decay_mask(params: Any, *, biases_and_norms: bool) -> Any:
    """Return a tree of bools: which leaves weight decay and L2 act on.

    Biases and the scales of normalisation layers are the leaves of at most one dimension; they decay only with
    `biases_and_norms`.
    """
    return jax.tree.map(lambda leaf: biases_and_norms or leaf.ndim > 1, params)


def clip_by_norm(grads: Any, norm: jax.Array, max_norm: float | None) -> Any:
    """Scale `grads`, whose global L2 norm is `norm`, to a norm of at most `max_norm`; None leaves them alone.

    The norm is an argument because the step has it already, for its log. A zero or non-finite gradient is not changed
    into anything else: 0 stays 0, and the non-finite norm stops the run.
    """
    if max_norm is None:
        return grads
    scale = jnp.where(norm > max_norm, max_norm / norm, jnp.ones_like(norm))
    return jax.tree.map(lambda grad: (scale * grad.astype(scale.dtype)).astype(grad.dtype), grads)


def build_optimizer(config: OptimizerConfig, train: TrainConfig, lr: Schedule) -> optax.GradientTransformation:
    """Build the optimizer, decoupled decay and the learning rate, in this order; `clip_by_norm` comes before.

    Decoupled decay adds ``weight_decay * parameter`` to the update before the learning rate multiplies it (AdamW,
    arXiv 1711.05101), also for SGD and RMSProp.

    Args:
        config: One of the typed optimizer sections.
        train: For `decay_biases_and_norms`.
        lr: The learning rate at each step; the optimizer's own count of steps equals the state's.
    """
    match config.name:
        case "sgd":
            scale = optax.trace(config.momentum, config.nesterov) if config.momentum else optax.identity()
        case "adamw":
            scale = optax.scale_by_adam(config.b1, config.b2, config.eps)
        case "rmsprop":
            scale = optax.scale_by_rms(config.decay, config.eps)
            if config.momentum:
                scale = optax.chain(scale, optax.trace(config.momentum, config.nesterov))
    parts = [scale]
    if config.weight_decay:

        def mask(params: Any) -> Any:
            return decay_mask(params, biases_and_norms=train.decay_biases_and_norms)

        parts.append(optax.add_decayed_weights(config.weight_decay, mask))
    return optax.chain(*parts, optax.scale_by_learning_rate(lr))
