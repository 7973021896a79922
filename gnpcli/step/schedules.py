"""Schedules: what learning rate, r, alpha and kind of step each step has.

They are pure functions of the step number, 0 for the first step. Here alone the epochs of a
configuration become steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from gnpcli.config.resolved import ResolvedGr
from gnpcli.config.schedules import Moment, ScheduleConfig
from gnpcli.config.strategies import Strategy
from gnpcli.errors import ConfigError
from gnpcli.keys import coins

Step = jax.Array | int
Schedule = Callable[[Step], jax.Array]
"""``step -> value``: int32 scalar to float32 scalar."""


MAX_STEPS = 1 << 24
"""Schedules count steps in float32, which is exact so far."""


@dataclass(frozen=True)
class Horizon:
    """The length of a training run in steps.

    Raises:
        ConfigError: It has more than `MAX_STEPS`.
    """

    steps_per_epoch: int
    epochs: int

    def __post_init__(self) -> None:
        if self.total_steps > MAX_STEPS:
            raise ConfigError(
                f"train.epochs = {self.epochs} of {self.steps_per_epoch:,} steps each are too many:"
                f" at most {MAX_STEPS:,} steps are possible; try"
                f" train.epochs={max(MAX_STEPS // self.steps_per_epoch, 1)}",
                "train.epochs",
            )

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.steps_per_epoch * self.epochs

    def steps(self, epochs: float) -> int:
        """Return `epochs` in whole steps, rounded to the nearest."""
        return round(epochs * self.steps_per_epoch)


def lr_schedule(config: ScheduleConfig, peak: float, horizon: Horizon) -> Schedule:
    """Return the learning rate: a linear warmup from 0 to `peak`, then the decay of `config`.

    With W warmup steps and T total steps the rate is ``peak * step / W`` during the warmup, so that
    the first of W > 0 warmup steps leaves the parameters as they are. Then it is ``peak *
    config.decay(...)`` at the progress ``(step - W) / (T - W)`` in [0, 1]. Steps from T on keep the
    final value. A warmup as long as the training never decays.
    """
    warmup, total = horizon.steps(config.warmup_epochs), horizon.total_steps
    decay_steps = max(total - warmup, 1)

    def schedule(step: Step) -> jax.Array:
        now = jnp.asarray(step, jnp.float32)
        progress = jnp.clip((now - warmup) / decay_steps, 0.0, 1.0)
        share = config.decay(Moment(now, progress, total))
        return peak * jnp.where(now < warmup, now / max(warmup, 1), share)

    return schedule


StepKind = Literal["plain", "gnp", "reuse"]
"""What a step takes.

``plain``: one gradient. ``gnp``: two. ``reuse``: one, and what the last gnp step left behind.
"""


@dataclass(frozen=True)
class GrSchedule:
    """Gradient regularization step by step; see `gr_schedule`."""

    kinds: Sequence[StepKind]
    """What each step of the run takes."""
    r: Schedule
    """Perturbation radius where a step is not plain."""
    alpha: Schedule
    """Mixing weight where a step is not plain."""

    @property
    def plain_steps(self) -> int:
        """The steps before this one are plain, all of them."""
        others = (step for step, kind in enumerate(self.kinds) if kind != "plain")
        return next(others, len(self.kinds))


def gr_schedule(config: ResolvedGr, horizon: Horizon, seed: int) -> GrSchedule:
    """Return how r and alpha move over the run (arXiv 2406.09723), and which steps they act in.

    The table `gnpcli.config.strategies.STRATEGIES` says what each strategy does. A warmup goes by
    ``w = min(step / W, 1)`` over the W steps of ``gr.warmup_epochs``, and starts from plain
    training: lambda is 0 at step 0. The whole run is plain where the strategy penalises nothing or
    ``lambda = alpha * r`` is 0.

    After the plain steps, with ``gr.every`` k the steps 0, k, 2k, ... are penalised and those
    between are plain, or reuse (``gr.between``). With ``gr.probability`` p a step is penalised when
    a coin falls so, with probability p at the end of a GR warmup, moving linearly to
    ``gr.probability_end`` at the last step, and is plain otherwise. The coins are a function of the
    seed and the step alone.

    Args:
        config: The section.
        horizon: Length of the run.
        seed: `train.seed`, for the coins.
    """
    warmup, total = horizon.steps(config.warmup_epochs), horizon.total_steps
    r, alpha, how = config.r, config.alpha, config.how
    if not how.penalises or r * alpha == 0:
        return GrSchedule(["plain"] * total, _constant(0.0), _constant(0.0))
    rs, alphas = _warmed_up(how, r, alpha, warmup)
    steps = np.arange(total)
    since = steps - (warmup if how.is_plain_first else 0)
    is_gnp = (since >= 0) & (since % config.every == 0)
    if config.probability < 1 or config.probability_end is not None:
        is_gnp &= coins(seed, total) < _probability(config, warmup, steps)
    kinds = np.where(is_gnp, "gnp", np.where(since >= 0, config.between, "plain"))
    return GrSchedule(kinds.tolist(), rs, alphas)


def _constant(value: float) -> Schedule:
    return lambda step: jnp.full_like(jnp.asarray(step, jnp.float32), value)


def _warmed_up(how: Strategy, r: float, alpha: float, warmup: int) -> tuple[Schedule, Schedule]:
    """Return r and alpha as the strategy moves them over `warmup` steps."""
    move = how.warmup
    if move is None:
        return _constant(r), _constant(alpha)

    def schedule(index: int) -> Schedule:
        def value(step: Step) -> jax.Array:
            now = jnp.asarray(step, jnp.float32)
            share = jnp.minimum(now / max(warmup, 1), 1.0)
            return jnp.asarray(move(share, r, alpha)[index], jnp.float32)

        return value

    return schedule(0), schedule(1)


def _probability(config: ResolvedGr, warmup: int, steps: np.ndarray) -> np.ndarray:
    start = warmup if config.how.warms_up else 0
    end = config.probability if config.probability_end is None else config.probability_end
    progress = np.clip((steps - start) / max(len(steps) - 1 - start, 1), 0, 1)
    return config.probability + (end - config.probability) * progress
