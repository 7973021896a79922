"""Schedules: pure functions from the step number (0 for the first step) to the learning rate, r and alpha.

This is the one place where the epochs of a configuration become steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gnpcli.config import GrConfig, ScheduleConfig

Step = jax.Array | int
Schedule = Callable[[Step], jax.Array]
"""``step -> value``: int32 scalar to float32 scalar."""


@dataclass(frozen=True)
class Horizon:
    """The length of a training run in steps."""

    steps_per_epoch: int
    epochs: int

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.steps_per_epoch * self.epochs

    def steps(self, epochs: float) -> int:
        """Return `epochs` in whole steps, rounded to the nearest."""
        return round(epochs * self.steps_per_epoch)


def lr_schedule(config: ScheduleConfig, peak: float, horizon: Horizon) -> Schedule:
    """Return the learning rate: a linear warmup from 0 to `peak`, then the decay that `config` names.

    With W warmup steps, T total steps and the progress ``p = (step - W) / (T - W)`` in [0, 1]:

    - constant: ``peak``
    - cosine: ``peak * (f + (1 - f) * (1 + cos(pi p)) / 2)`` with f = `final_factor`
    - exponential: ``peak * f ** p`` with f = `final_factor`
    - stepped: ``peak * factor ** k``, k being how many boundaries ``b * T`` the step has reached

    During the warmup the rate is ``peak * step / W``, so that the first of W > 0 warmup steps leaves the parameters as
    they are. Steps from T on keep the final value. A warmup as long as the training never decays.
    """
    warmup, total = horizon.steps(config.warmup_epochs), horizon.total_steps
    decay_steps = max(total - warmup, 1)

    def schedule(step: Step) -> jax.Array:
        now = jnp.asarray(step, jnp.float32)
        progress = jnp.clip((now - warmup) / decay_steps, 0.0, 1.0)
        match config.name:
            case "constant":
                factor = jnp.ones_like(now)
            case "cosine":
                factor = config.final_factor + (1 - config.final_factor) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
            case "exponential":
                factor = config.final_factor**progress
            case "stepped":
                factor = jnp.ones_like(now)
                for boundary in config.boundaries:
                    factor = jnp.where(now >= round(boundary * total), factor * config.factor, factor)
        return peak * jnp.where(now < warmup, now / max(warmup, 1), factor)

    return schedule


@dataclass(frozen=True)
class GrSchedule:
    """Gradient regularization step by step; see `gr_schedule`."""

    plain_steps: int
    """The steps before this one are plain: lambda is 0 and no perturbed pass is computed."""
    r: Schedule
    """Perturbation radius from step `plain_steps` on."""
    alpha: Schedule
    """Mixing weight from step `plain_steps` on."""


def gr_schedule(config: GrConfig, horizon: Horizon) -> GrSchedule:
    """Return how r and alpha move over the run (arXiv 2406.09723).

    With ``w = min(step / W, 1)`` over the W steps of ``gr.warmup_epochs``:

    - constant, sam: r and alpha as configured, from the first step (sam: alpha is 1)
    - lambda-warmup: r constant, ``alpha * w``
    - r-warmup: ``r * w``, alpha constant
    - zero-warmup: W plain steps, then r and alpha as configured
    - none, and any strategy where lambda = alpha * r is 0: plain steps for the whole run

    Every warmup starts from plain training: lambda is 0 at step 0.
    """
    warmup = horizon.steps(config.warmup_epochs or 0.0)
    r, alpha = config.r or 0.0, config.alpha or 0.0

    def constant(value: float) -> Schedule:
        return lambda step: jnp.full_like(jnp.asarray(step, jnp.float32), value)

    def rising(value: float) -> Schedule:
        return lambda step: value * jnp.minimum(jnp.asarray(step, jnp.float32) / max(warmup, 1), 1.0)

    match config.strategy:
        case _ if config.strategy == "none" or r * alpha == 0:
            return GrSchedule(horizon.total_steps, constant(0.0), constant(0.0))
        case "lambda-warmup":
            return GrSchedule(0, constant(r), rising(alpha))
        case "r-warmup":
            return GrSchedule(0, rising(r), constant(alpha))
        case "zero-warmup":
            return GrSchedule(min(warmup, horizon.total_steps), constant(r), constant(alpha))
        case _:
            return GrSchedule(0, constant(r), constant(alpha))
