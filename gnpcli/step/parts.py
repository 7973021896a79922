"""What a train step is made of."""

from __future__ import annotations

from dataclasses import dataclass

import optax
from jax.sharding import Mesh

from gnpcli.config.resolved import Resolved, ResolvedGr
from gnpcli.config.schema import Shard
from gnpcli.config.training import TrainConfig
from gnpcli.data.feeds.base import TrainFeed
from gnpcli.devices.sharding import Layout
from gnpcli.models.base import Model, split_over
from gnpcli.step.optimizer import build_optimizer
from gnpcli.step.schedules import GrSchedule, Horizon, Schedule, gr_schedule, lr_schedule


@dataclass(frozen=True)
class Parts:
    """What a train step is made of. Every step of a run shares them, whatever its kind."""

    model: Model
    """Traced with ``train=True``."""
    feed: TrainFeed
    """Batch t is a function of the run's keys and t, so a resumed run sees the same batches."""
    optimizer: optax.GradientTransformation
    """Applied to the mixed and clipped gradient. Minus the learning rate scales its result."""
    train: TrainConfig
    """What acts on loss, gradient and update."""
    gr: ResolvedGr
    """Gradient regularization; `schedule` holds what the strategy makes of r and alpha."""
    schedule: GrSchedule
    """The kind of every step, and r and alpha in it."""
    lr: Schedule
    """The learning rate of every step."""
    mesh: Mesh
    """Made for these groups. The batch is split over it."""
    shard: Shard = "none"
    """Whether the state is split over the mesh too. The model is made for it."""

    @property
    def layout(self) -> Layout:
        """Where the state lies."""
        return Layout(self.mesh, self.shard)


def build_parts(config: Resolved, model: Model, feed: TrainFeed, mesh: Mesh) -> Parts:
    """Return the parts of a run: `config` says what optimizer and schedules are.

    Args:
        config: The run.
        model: What is trained.
        feed: Of the training split. Its epochs give the schedules their length.
        mesh: Made for `config`.
    """
    horizon = Horizon(feed.steps_per_epoch, config.train.epochs)
    return Parts(
        model=split_over(model, Layout(mesh, config.mesh.shard)),
        feed=feed,
        optimizer=build_optimizer(config.optimizer, config.train),
        train=config.train,
        gr=config.gr,
        schedule=gr_schedule(config.gr, horizon, config.train.seed),
        lr=lr_schedule(config.schedule, config.optimizer.lr, horizon),
        mesh=mesh,
        shard=config.mesh.shard,
    )
