"""What a configuration amounts to before anything is trained: its model, and its steps."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gnpcli.config.resolved import Resolved
from gnpcli.config.schema import RunConfig

if TYPE_CHECKING:
    from gnpcli.data.base import DataInfo
    from gnpcli.models.base import Model
    from gnpcli.step.schedules import StepKind

EVALUATION = 1 / 3
"""What evaluating an image costs of what a step of one gradient spends on it.

A forward pass, of a forward and a backward one.
"""


@dataclass(frozen=True)
class Work:
    """What a run does, in numbers: how long it takes is these, and the time of each step."""

    batch_size: int
    steps: Mapping[StepKind, int]
    """How many of each kind."""
    evaluated: int
    """Images, over the whole run."""

    @property
    def single(self) -> int:
        """Steps of one gradient."""
        return sum(self.steps.values()) - self.double

    @property
    def double(self) -> int:
        """Steps of two gradients."""
        return self.steps.get("gnp", 0)

    @property
    def evaluations(self) -> float:
        """What is evaluated, as so many steps of one gradient."""
        return EVALUATION * self.evaluated / self.batch_size


def work_of(config: Resolved, data: DataInfo) -> Work:
    """Return what a run does.

    Args:
        config: The run.
        data: The sizes of its images.

    Raises:
        ConfigError: As `fit_batches`, or there are too many steps.
    """
    steps = dict(Counter(_kinds(config, fit_batches(config, data))))
    evaluations = -(-config.train.epochs // config.train.eval_every_epochs)
    evaluated = evaluations * (data.num_validation + data.num_test)
    return Work(config.data.batch_size, steps, evaluated)


def _kinds(config: Resolved, steps_per_epoch: int) -> Sequence[StepKind]:
    from gnpcli.step.schedules import Horizon, gr_schedule

    horizon = Horizon(steps_per_epoch, config.train.epochs)
    return gr_schedule(config.gr, horizon, config.train.seed).kinds


def what_a_step_depends_on(config: RunConfig | Resolved) -> str:
    """Return what the cost of a step depends on, as a key: runs with the same one share it.

    They differ in numbers alone: seeds, radii, rates, epochs.
    """
    numbers = {"strategy", "r", "alpha", "warmup_epochs", "every", "probability", "probability_end"}
    parts = [
        config.model.model_dump(mode="json"),
        config.data.model_dump(mode="json", exclude={"dir"}),
        config.gr.model_dump(mode="json", exclude=numbers),
        config.optimizer.name,
        config.train.model_dump(mode="json", include={"dtype", "accumulate", "ema_decay"}),
        config.mesh.model_dump(mode="json"),
    ]
    return json.dumps(parts, sort_keys=True)


def count_steps(
    config: Resolved, steps_per_epoch: int, until: int | None = None
) -> tuple[int, int]:
    """Return how many steps of a run take one gradient, and how many take two.

    Plain steps and steps that reuse a component take one.

    Args:
        config: The run.
        steps_per_epoch: As `gnpcli.data.feeds.base.steps_per_epoch` says.
        until: Count the steps before this one; None counts all.
    """
    kinds = _kinds(config, steps_per_epoch)[:until]
    double = sum(kind == "gnp" for kind in kinds)
    return len(kinds) - double, double


def fit(config: Resolved, data: DataInfo) -> tuple[Model, int]:
    """Build the model of a run and count the steps of an epoch, from the sizes of the data alone.

    No image is needed, so that errors are told before images are fetched or decoded.

    Raises:
        ConfigError: Model, augmentation or batch size do not fit the data.
    """
    from gnpcli.models.registry import build_for

    steps = fit_batches(config, data)
    return build_for(config, data), steps


def fit_batches(config: Resolved, data: DataInfo) -> int:
    """Count the steps of an epoch, from the sizes of the data alone.

    Raises:
        ConfigError: Augmentation or batch size do not fit the data.
    """
    from gnpcli.data.augment.pipeline import check_pipeline
    from gnpcli.data.feeds.base import steps_per_epoch

    check_pipeline(config.data, data.image_size, is_streamed=data.is_streamed)
    return steps_per_epoch(data.num_train, config.data.batch_size)
