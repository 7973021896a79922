"""The batch of a step."""

from __future__ import annotations

import jax
from jax.sharding import Mesh

from gnpcli.data.feeds.base import FeedData, TrainFeed
from gnpcli.devices.mesh import split_batch
from gnpcli.keys import step_keys


def step_batch(
    key: jax.Array, step: jax.Array, feed: TrainFeed, source: FeedData, mesh: Mesh
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return images and labels of a step, and the key of the model in it.

    Args:
        key: Base key of the run (`TrainState.key`).
        step: Number of the step, 0 for the first.
        feed: Makes the batch.
        source: What the feed reads, on the devices.
        mesh: The batch is split over it.
    """
    feed_key, model_key = step_keys(key, step)
    images, labels = split_batch(mesh, feed.batch(source, step % feed.steps_per_epoch, feed_key))
    return images, labels, model_key
