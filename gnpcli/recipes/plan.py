"""What a configuration amounts to before anything is trained: its model, and its steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gnpcli.config.resolved import Resolved

if TYPE_CHECKING:
    from gnpcli.data.base import DataInfo
    from gnpcli.models.base import Model


EVALUATION = 1 / 3
"""What evaluating an image costs of what a plain step spends on it.

A forward pass, of a forward and a backward one.
"""


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
    from gnpcli.step.schedules import Horizon, gr_schedule

    horizon = Horizon(steps_per_epoch, config.train.epochs)
    steps = horizon.total_steps if until is None else until
    kinds = gr_schedule(config.gr, horizon, config.train.seed).kinds[:steps]
    double = sum(kind == "gnp" for kind in kinds)
    return len(kinds) - double, double


def evaluated_images(config: Resolved, data: DataInfo) -> int:
    """Return how many images a run evaluates, counting each as often as that happens."""
    evaluations = -(-config.train.epochs // config.train.eval_every_epochs)
    return evaluations * (data.num_validation + data.num_test)


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
