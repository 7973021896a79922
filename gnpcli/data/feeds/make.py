"""The feed of a split, in memory or streamed."""

from __future__ import annotations

from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Key

from gnpcli.config.schema import DataConfig
from gnpcli.data.base import DataSpec, FileSplit, Split
from gnpcli.data.feeds.base import EvalFeed, TrainFeed
from gnpcli.data.feeds.memory import InMemoryEvalFeed, InMemoryFeed
from gnpcli.devices.mesh import batch_placer, placer


def make_train_feed(
    split: Split | FileSplit,
    spec: DataSpec,
    config: DataConfig,
    mesh: Mesh,
    *,
    key: Key[Array, ""],
    dtype: DTypeLike,
) -> TrainFeed:
    """Return the training feed of a split in memory or of a streamed one.

    Arguments and errors are those of `InMemoryFeed` and
    `gnpcli.data.feeds.streamed.StreamedFeed`. The mesh says where batches are placed.
    """
    if isinstance(split, Split):
        return InMemoryFeed(split, spec, config, key=key, place=placer(mesh), dtype=dtype)
    from gnpcli.data.feeds.streamed import StreamedFeed

    return StreamedFeed(split, spec, config, key=key, place=batch_placer(mesh), dtype=dtype)


def make_eval_feed(
    split: Split | FileSplit, spec: DataSpec, config: DataConfig, mesh: Mesh, *, dtype: DTypeLike
) -> EvalFeed:
    """Return the evaluation feed of a split in memory or of a streamed one.

    Arguments and errors are those of `InMemoryEvalFeed` and
    `gnpcli.data.feeds.streamed.StreamedEvalFeed`. The mesh says where batches are placed.
    """
    if isinstance(split, Split):
        return InMemoryEvalFeed(split, spec, config, place=placer(mesh), dtype=dtype)
    from gnpcli.data.feeds.streamed import StreamedEvalFeed

    return StreamedEvalFeed(split, spec, config, place=batch_placer(mesh), dtype=dtype)
