"""The batch of a step, and what a step needs of a feed."""

from __future__ import annotations

from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from gnpcli.devices.mesh import split_batch
from gnpcli.keys import step_keys


class TrainFeed(Protocol):
    """What a train step needs of a feed: the batch of a step, as a pure function traced inside the
    step.
    """

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        ...

    def batch(
        self, source: Any, step_in_epoch: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Return augmented, normalised images ``[B, H, W, C]`` and labels: ``[B]`` int32, or ``[B,
        K]`` float32.
        """
        ...


class EvalFeed(Protocol):
    """What an evaluation step needs of a feed."""

    def batch(self, source: Any, index: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return images ``[B, H, W, C]``, labels ``[B]`` and a mask ``[B]`` bool that is False on
        padding.
        """
        ...


def step_batch(
    key: jax.Array, step: jax.Array, feed: TrainFeed, source: Any, mesh: Mesh
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return images and labels of a step, split over the devices, and the key of the model in it."""
    feed_key, model_key = step_keys(key, step)
    images, labels = split_batch(mesh, feed.batch(source, step % feed.steps_per_epoch, feed_key))
    return images, labels, model_key
