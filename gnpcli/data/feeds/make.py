"""The feed of a split, in memory or streamed."""

from __future__ import annotations

from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Key

from gnpcli.config.schema import DataConfig
from gnpcli.data.base import DataSpec, FileSplit, Split
from gnpcli.data.feeds.base import EvalFeed, TrainFeed
from gnpcli.data.feeds.chunks import HostShare
from gnpcli.data.feeds.memory import InMemoryEvalFeed, InMemoryFeed
from gnpcli.devices.mesh import Place, batch_placer, placer
from gnpcli.devices.processes import peers


def make_train_feed(
    split: Split | FileSplit,
    spec: DataSpec,
    config: DataConfig,
    mesh: Mesh,
    *,
    key: Key[Array, ""],
    dtype: DTypeLike,
    place: Place | None = None,
) -> TrainFeed:
    """Return the training feed of a split in memory or of a streamed one.

    Arguments and errors are those of `InMemoryFeed` and
    `gnpcli.data.feeds.streamed.StreamedFeed`. The mesh says where batches are placed, unless
    `place` does.
    """
    if isinstance(split, Split):
        put = place or placer(mesh)
        return InMemoryFeed(split, spec, config, key=key, place=put, dtype=dtype)
    from gnpcli.data.feeds.streamed import StreamedFeed

    put, host = place or batch_placer(mesh), host_share()
    return StreamedFeed(split, spec, config, key=key, place=put, dtype=dtype, host=host)


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

    place, host = batch_placer(mesh), host_share()
    return StreamedEvalFeed(split, spec, config, place=place, dtype=dtype, host=host)


def host_share() -> HostShare:
    """Return which rows of a batch this process reads, of as many as there are processes."""
    return HostShare(peers.index(), peers.count())
