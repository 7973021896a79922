"""Streamed batches: files decoded on the host ahead of their step, normalised on the device.

The batch of a step is a function of (split, configuration, key, step), whoever decodes it: see
`gnpcli.data.feeds.chunks`. Nothing needs to be saved to go on in the middle of an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int32, Key

from gnpcli.config.schema import DataConfig
from gnpcli.data.augment.basic import normalize
from gnpcli.data.augment.host import make_host_policy
from gnpcli.data.augment.pipeline import make_pipeline
from gnpcli.data.augment.policies import is_flipped
from gnpcli.data.base import DataSpec, FileSplit, Images, Labels
from gnpcli.data.feeds.base import (
    BatchLabels,
    FeedData,
    StepNumber,
    eval_batches,
    steps_per_epoch,
)
from gnpcli.data.feeds.chunks import (
    ChunkSource,
    FileOrder,
    HostShare,
    Order,
    PackedPaths,
    Seed,
    ShuffledOrder,
)
from gnpcli.data.feeds.reading import ChunkReader
from gnpcli.data.images.crops import Transform
from gnpcli.data.images.pixels import decoding
from gnpcli.devices.mesh import Place
from gnpcli.devices.processes.peers import united
from gnpcli.errors import DataError
from gnpcli.keys import host_seed

_WORTH_A_PROCESS = 256
"""Files that are decoded in about the time in which a process starts and ends."""

_ALL_ROWS = HostShare()


class StreamedFeed:
    """Training batches, shuffled anew every epoch.

    Args:
        split: The training files.
        spec: Their size, mean and std.
        config: `batch_size`, everything about augmentation, `workers` and `unreadable`.
        key: Key of the run's data order. Crops, flips and policies are drawn from it, too.
        place: Puts a host array on the mesh, split along its first axis. With several hosts each
            one gives its rows.
        dtype: Type of the images that `batch` returns.
        host: Which rows of a batch this host reads.

    Raises:
        ConfigError: If the batch is larger than the split or cannot be split between the hosts
            (``data.batch_size``), or augmentation does not fit the image size.
        DataError: If the images are not to be RGB.
    """

    def __init__(
        self,
        split: FileSplit,
        spec: DataSpec,
        config: DataConfig,
        *,
        key: Key[Array, ""],
        place: Place,
        dtype: DTypeLike = jnp.float32,
        host: HostShare = _ALL_ROWS,
    ) -> None:
        self.steps_per_epoch: int = steps_per_epoch(len(split), config.batch_size)
        self._augment = make_pipeline(config, spec, is_streamed=True, dtype=dtype)
        self._place = place
        seed = host_seed(key)
        self._batches = _Batches(
            split,
            config,
            transform=train_transform(config, spec),
            order=ShuffledOrder(len(split), config.batch_size, seed),
            seed=seed,
            host=host,
            skipping="replace",
        )
        _check_colour(spec)

    @property
    def skipped(self) -> list[str]:
        """Files that a host could not read since this feed was made, each once.

        All hosts ask for them at the same place: each waits for the others.
        """
        return united("skipped in training", list(self._batches.skipped))

    def source(self, step: int) -> FeedData:
        """Return what `batch` reads at `step`.

        Any step but the one after the last starts reading anew.

        Returns:
            ``images`` uint8 ``[B, S, S, 3]``, cropped, flipped and changed by the policy, and
            ``labels`` int32 ``[B]``.

        Raises:
            DataError: On a file that cannot be read; where such files are skipped, if none can be
                read; and as `ChunkReader`.
        """
        images, labels, _ = self._batches.read(step)
        return {"images": self._place(images), "labels": self._place(labels)}

    def batch(
        self, source: FeedData, step_in_epoch: StepNumber, key: Key[Array, ""]
    ) -> tuple[Float[Array, "B S S C"], BatchLabels]:
        """Do to a batch what is left to the device. Pure: it is traced inside the jitted step.

        Args:
            source: Of the step.
            step_in_epoch: Not used: the source holds this step's images alone.
            key: For augmentation, another one each step.

        Returns:
            Images `dtype` ``[B, S, S, 3]``, normalised, and labels int32 ``[B]``, or class
            probabilities float32 ``[B, K]`` where images are mixed.
        """
        return self._augment(key, source["images"], source["labels"])

    def close(self) -> None:
        """End the processes or threads that decode; may be called again.

        `source` starts them anew.
        """
        self._batches.close()


class StreamedEvalFeed:
    """Evaluation batches in the order of the split, every file exactly once.

    The last batch is filled up. The short side of an image is resized to ``image_size / 0.875``,
    bilinear with antialiasing, and the centre is cut out.

    Args:
        split: The files.
        spec: Of the data the model was trained on: its size, mean and std.
        config: `eval_batch_size` images are the most of a batch, or `batch_size` where it is null;
            `workers` and `unreadable`.
        place: As of `StreamedFeed`.
        devices: How many share a batch, those of all hosts.
        dtype: Type of the images that `batch` returns.
        host: As of `StreamedFeed`.

    Raises:
        ConfigError: If the batch cannot be split between the hosts.
        DataError: If the images are not to be RGB.
    """

    def __init__(
        self,
        split: FileSplit,
        spec: DataSpec,
        config: DataConfig,
        *,
        place: Place,
        devices: int = 1,
        dtype: DTypeLike = jnp.float32,
        host: HostShare = _ALL_ROWS,
    ) -> None:
        self.batches = eval_batches(len(split), config, devices)
        self._spec = spec
        self._place = place
        self._dtype = dtype
        self._batches = _Batches(
            split,
            config,
            transform=Transform(spec.image_size, decoding=decoding(config)),
            order=FileOrder(len(split), self.batches.size),
            host=host,
            skipping="mark",
            most_workers=len(split) // _WORTH_A_PROCESS,
        )
        _check_colour(spec)

    @property
    def skipped(self) -> list[str]:
        """Files that the last `sources` could not read, in order; `batch` masks them.

        All hosts ask for them at the same place: each waits for the others.
        """
        return united("skipped in an evaluation", list(self._batches.skipped))

    def sources(self) -> Iterator[FeedData]:
        """Yield ``images`` uint8 ``[B, S, S, 3]``, ``labels`` int32 ``[B]``, ``mask`` bool ``[B]``.

        Raises:
            DataError: On a file that cannot be read, unless they are skipped, and as `ChunkReader`.
        """
        self._batches.skipped.clear()
        try:
            for step in range(self.batches.number):
                images, labels, mask = self._batches.read(step)
                yield {
                    "images": self._place(images),
                    "labels": self._place(labels),
                    "mask": self._place(mask),
                }
        finally:
            self._batches.close()

    def batch(
        self, source: FeedData, index: StepNumber
    ) -> tuple[Float[Array, "B S S C"], Int32[Array, " B"], Bool[Array, " B"]]:
        """Normalise a batch. Pure.

        Args:
            source: From `sources`.
            index: Not used: the source holds this batch alone.

        Returns:
            Images `dtype` ``[B, S, S, 3]``, labels int32 ``[B]``, and a mask bool ``[B]``. It is
            True for an image, and False for one that could not be read and for a place beyond the
            end of the split.
        """
        images = normalize(source["images"], self._spec.mean, self._spec.std, self._dtype)
        return images, source["labels"], source["mask"]


def train_transform(config: DataConfig, spec: DataSpec) -> Transform:
    """Return what is done to a training image on the host.

    Without augmentation it is what evaluation does.
    """
    return Transform(
        spec.image_size,
        min_area=None if config.augment == "none" else config.crop_min_area,
        flip=is_flipped(config, spec.name, is_streamed=True),
        policy=make_host_policy(config),
        decoding=decoding(config),
    )


class _Batches:
    """This host's rows of whole batches, put together from chunks, in order or from any step on.

    Args:
        split: The files.
        config: `workers` and `unreadable` are used.
        transform: From file to pixels.
        order: Files of each step.
        seed: Images' random numbers are drawn from it.
        host: Which rows this host reads.
        skipping: What is done about a file that cannot be read, where such files are skipped.
        most_workers: Processes that are worth their start, where `workers` is null.
    """

    def __init__(
        self,
        split: FileSplit,
        config: DataConfig,
        *,
        transform: Transform,
        order: Order,
        host: HostShare,
        skipping: Literal["replace", "mark"],
        seed: Seed = (),
        most_workers: int | None = None,
    ) -> None:
        self._split = split
        self._source = ChunkSource(
            paths=PackedPaths(split.paths),
            transform=transform,
            order=order,
            seed=seed,
            rows=host.rows(order.batch_size),
            unreadable=skipping if config.unreadable == "skip" else "error",
        )
        self._workers = config.workers
        self._most_workers = most_workers
        self._reader: ChunkReader | None = None
        self._next_step = 0
        self.skipped: dict[str, None] = {}
        """Files that could not be read, each once, in order of meeting."""

    def read(self, step: int) -> tuple[Images, Labels, npt.NDArray[np.bool_]]:
        """Return this host's rows of a batch: images, labels, and which rows hold an image."""
        reader = self._reader_at(step)
        num_rows, size = len(self._source.rows), self._source.transform.image_size
        # A new array each time: the one before may still be on its way to the device, or be the
        # device's own.
        images = np.empty((num_rows, size, size, 3), np.uint8)
        files = np.full(num_rows, -1)
        filled = 0
        for _ in range(self._source.per_batch):
            found, skipped = reader.read(images[filled:])
            files[filled : filled + len(found)] = found
            filled += len(found)
            for file in skipped.tolist():
                self.skipped[self._split.paths[file]] = None
        images[filled:] = 0
        self._next_step = step + 1
        mask = files >= 0
        labels = np.where(mask, self._split.labels[files], 0).astype(np.int32)
        return images, labels, mask

    def _reader_at(self, step: int) -> ChunkReader:
        """Return a reader whose next chunk is the first one of `step`."""
        if self._reader is None or step != self._next_step:
            self.close()
            start = step * self._source.per_batch
            self._reader = ChunkReader(self._source, start, self._workers, self._most_workers)
        return self._reader

    def close(self) -> None:
        """End what decodes; may be called again."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None


def _check_colour(spec: DataSpec) -> None:
    if spec.channels != 3:
        raise DataError(
            f"streamed images are in colour, but the model takes {spec.channels} channel(s)"
        )
