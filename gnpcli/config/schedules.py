"""The learning-rate schedules: each is one section, with its keys and the decay that they mean.

To add one is to write a class and to add a line to `SCHEDULES`. Importing this module does not
import jax: the methods do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from gnpcli.config.ranges import Share, WarmupEpochs
from gnpcli.config.section import NamedSection

if TYPE_CHECKING:
    import jax


@dataclass(frozen=True)
class Moment:
    """Where in a run a step is."""

    step: jax.Array
    """Number of the step, 0 for the first; float32 scalar."""
    progress: jax.Array
    """Share of the training after the warmup that is over, in [0, 1]; float32 scalar."""
    total_steps: int
    """Steps of the whole run, the warmup among them."""


class ScheduleConfig(NamedSection):
    """How the learning rate moves: a linear warmup from 0 to its peak, and then a decay."""

    warmup_epochs: WarmupEpochs = 0.0
    """Epochs over which the learning rate rises linearly from 0 to its peak."""

    def decay(self, at: Moment) -> jax.Array | float:
        """Return the learning rate after the warmup as a share of its peak."""
        raise NotImplementedError


class ConstantConfig(ScheduleConfig):
    """The peak learning rate after the warmup."""

    def decay(self, at: Moment) -> float:
        """Return 1."""
        return 1.0


class CosineConfig(ScheduleConfig):
    """Half a cosine after the warmup.

    It falls from the peak to `final_factor` of it at the end of training.
    """

    final_factor: Share = 0.0
    """Learning rate at the last step as a share of the peak."""

    def decay(self, at: Moment) -> jax.Array:
        """Return ``f + (1 - f) * (1 + cos(pi * progress)) / 2`` with f = `final_factor`."""
        import jax.numpy as jnp

        final = self.final_factor
        return final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * at.progress))


class SteppedConfig(ScheduleConfig):
    """The peak, multiplied by `factor` at each of the boundaries."""

    boundaries: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(max_length=100)] = [
        0.3,
        0.6,
        0.8,
    ]
    """Where the rate drops, as rising shares of the whole training.

    The default is WideResNet's recipe.
    """
    factor: Annotated[float, Field(gt=0, le=1)] = 0.2
    """What each boundary multiplies the rate by."""

    def decay(self, at: Moment) -> jax.Array:
        """Return ``factor ** k``: k boundaries b have been reached, at the steps ``b * total``."""
        import jax.numpy as jnp

        share = jnp.ones_like(at.step)
        for boundary in self.boundaries:
            is_reached = at.step >= round(boundary * at.total_steps)
            share = jnp.where(is_reached, share * self.factor, share)
        return share


class ExponentialConfig(ScheduleConfig):
    """An exponential decay after the warmup.

    It falls from the peak to `final_factor` of it at the end of training.
    """

    final_factor: Annotated[float, Field(gt=0, le=1)] = 0.012
    """Learning rate at the end of training as a share of the peak."""

    def decay(self, at: Moment) -> jax.Array:
        """Return ``final_factor ** progress``."""
        return self.final_factor**at.progress


SCHEDULES: dict[str, type[ScheduleConfig]] = {
    "constant": ConstantConfig,
    "cosine": CosineConfig,
    "stepped": SteppedConfig,
    "exponential": ExponentialConfig,
}
"""The class of the `schedule` section by its ``name``."""
DEFAULT_SCHEDULE = "cosine"
"""What a `schedule` section without a name is, so that ``schedule.warmup_epochs`` alone will do."""
