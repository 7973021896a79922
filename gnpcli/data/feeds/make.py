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
from gnpcli.data.room import check_bytes, share, train_on_each
from gnpcli.devices.mesh import Place, batch_placer
from gnpcli.devices.processes import peers
from gnpcli.devices.rows import RowsInOrder, rows_on


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
    `gnpcli.data.feeds.streamed.StreamedFeed`. The mesh and `data.placement` say where images lie,
    unless `place` does.

    Raises:
        DataError: Images in memory are more than a device has (`check_bytes`).
    """
    if isinstance(split, Split):
        if place is None:
            _check_room(split, config, mesh)
        rows = rows_on(mesh, config.placement, place)
        return InMemoryFeed(split, spec, config, key=key, rows=rows, dtype=dtype)
    from gnpcli.data.feeds.streamed import StreamedFeed

    put, host = place or batch_placer(mesh), host_share()
    return StreamedFeed(split, spec, config, key=key, place=put, dtype=dtype, host=host)


def make_eval_feed(
    split: Split | FileSplit, spec: DataSpec, config: DataConfig, mesh: Mesh, *, dtype: DTypeLike
) -> EvalFeed:
    """Return the evaluation feed of a split in memory or of a streamed one.

    Arguments and errors are those of `InMemoryEvalFeed` and
    `gnpcli.data.feeds.streamed.StreamedEvalFeed`. The mesh says where images lie.

    Raises:
        DataError: As of `make_train_feed`.
    """
    if isinstance(split, Split):
        check_bytes(config, split.images.nbytes, share(split.images.nbytes, mesh.size), mesh.size)
        return InMemoryEvalFeed(split, spec, config, rows=RowsInOrder(mesh), dtype=dtype)
    from gnpcli.data.feeds.streamed import StreamedEvalFeed

    place, host = batch_placer(mesh), host_share()
    return StreamedEvalFeed(
        split, spec, config, place=place, devices=mesh.size, dtype=dtype, host=host
    )


def _check_room(split: Split, config: DataConfig, mesh: Mesh) -> None:
    images = split.images.nbytes
    check_bytes(config, images, train_on_each(config, images, mesh.size), mesh.size)


def host_share() -> HostShare:
    """Return which rows of a batch this process reads, of as many as there are processes."""
    return HostShare(peers.index(), peers.count())
