"""Streamed batches: image files decoded on the host ahead of the step that takes them, normalised
on the device.

The batch of a step is a function of (split, configuration, key, step), whoever decodes it: see
`gnpcli.data.feeds.pieces`. Nothing needs to be saved to go on in the middle of an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.typing import DTypeLike

from gnpcli.config.schema import DataConfig
from gnpcli.data.augment.basic import normalize
from gnpcli.data.augment.host import make_host_policy
from gnpcli.data.augment.pipeline import make_pipeline
from gnpcli.data.augment.policies import is_flipped
from gnpcli.data.base import DataSpec, FileSplit, Images, Labels
from gnpcli.data.feeds.base import FeedData
from gnpcli.data.feeds.memory import steps_per_epoch
from gnpcli.data.feeds.pieces import FileOrder, PackedPaths, Pieces, ShuffledOrder
from gnpcli.data.feeds.reading import PieceReader
from gnpcli.data.images.crops import Transform
from gnpcli.devices.mesh import Place
from gnpcli.errors import ConfigError, DataError

_WORTH_A_PROCESS = 256
"""Files that are decoded in about the time in which a process starts and ends."""


class StreamedFeed:
    """Training batches, shuffled anew every epoch.

    Args:
        split: The training files.
        spec: Their size, mean and std.
        config: `batch_size`, everything about augmentation, `workers` and `unreadable`.
        key: Key of the run's data order; crops, flips and policies are drawn from it, too.
        place: Puts a host array on the mesh, split along its first axis; with several hosts each
            one gives its rows.
        dtype: Type of the images that `batch` returns.
        process_index: Number of this host: it reads rows ``[p B / P, (p + 1) B / P)`` of every
            global batch.
        process_count: P.

    Raises:
        ConfigError: If the batch is larger than the split or P does not divide it
            (``data.batch_size``), or augmentation does not fit the image size.
        DataError: If the images are not to be RGB.
    """

    def __init__(
        self,
        split: FileSplit,
        spec: DataSpec,
        config: DataConfig,
        *,
        key: jax.Array,
        place: Place,
        dtype: DTypeLike = jnp.float32,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        self.steps_per_epoch: int = steps_per_epoch(len(split), config.batch_size)
        self._augment = make_pipeline(config, spec, is_streamed=True, dtype=dtype)
        self._place = place
        seed = tuple(np.asarray(jax.random.key_data(key)).ravel().tolist())
        rows = _rows(config.batch_size, process_count)
        pieces = Pieces(
            paths=PackedPaths(split.paths),
            transform=train_transform(config, spec),
            order=ShuffledOrder(len(split), config.batch_size, seed),
            seed=seed,
            first_row=process_index * rows,
            num_rows=rows,
            replace=True,
            skip=config.unreadable == "skip",
        )
        self._batches = _Batches(split, spec, pieces, config.workers)

    @property
    def skipped(self) -> list[str]:
        """Files that could not be read since this feed was made, each once, in the order in which
        they were met.
        """
        return list(self._batches.skipped)

    def source(self, step: int) -> FeedData:
        """Return what `batch` reads at `step`; any but the step after the last one starts reading
        anew.

        Returns:
            ``images`` uint8 ``[B, S, S, 3]``, cropped, flipped and changed by the policy, and
            ``labels`` int32 ``[B]``.

        Raises:
            DataError: On a file that cannot be read, or that none can where they are skipped, and
                as `PieceReader`.
        """
        images, labels, _ = self._batches.read(step)
        return {"images": self._place(images), "labels": self._place(labels)}

    def batch(
        self, source: FeedData, step_in_epoch: jax.Array | int, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Do to a batch what is left to the device. Pure; meant to be traced inside the jitted
        train step.

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
        """End the processes or threads that decode; may be called again. `source` starts them anew."""
        self._batches.close()


class StreamedEvalFeed:
    """Evaluation batches in the order of the split, every file exactly once; the last batch is
    filled up.

    The short side is resized to ``image_size / 0.875``, bilinear with antialiasing, and the centre
    cut out.

    Args:
        split: The files.
        spec: Of the data the model was trained on: its size, mean and std.
        config: `eval_batch_size` is used, or `batch_size` where it is null; `workers` and
            `unreadable`.
        place: As of `StreamedFeed`.
        dtype: Type of the images that `batch` returns.
        process_index: As of `StreamedFeed`.
        process_count: As of `StreamedFeed`.

    Raises:
        ConfigError: If `process_count` does not divide the batch.
        DataError: If the images are not to be RGB.
    """

    def __init__(
        self,
        split: FileSplit,
        spec: DataSpec,
        config: DataConfig,
        *,
        place: Place,
        dtype: DTypeLike = jnp.float32,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        batch_size = config.eval_batch_size or config.batch_size
        self.num_batches: int = -(-len(split) // batch_size)
        """Batches that cover the split."""
        self._spec, self._place, self._dtype = spec, place, dtype
        rows = _rows(batch_size, process_count)
        pieces = Pieces(
            paths=PackedPaths(split.paths),
            transform=Transform(spec.image_size),
            order=FileOrder(len(split), batch_size),
            seed=(),
            first_row=process_index * rows,
            num_rows=rows,
            replace=False,
            skip=config.unreadable == "skip",
        )
        self._batches = _Batches(
            split, spec, pieces, config.workers, most=len(split) // _WORTH_A_PROCESS
        )

    @property
    def skipped(self) -> list[str]:
        """Files that the last `sources` could not read, in order; `batch` masks them."""
        return list(self._batches.skipped)

    def sources(self) -> Iterator[FeedData]:
        """Yield ``images`` uint8 ``[B, S, S, 3]``, ``labels`` int32 ``[B]`` and ``mask`` bool
        ``[B]`` of each batch.

        Raises:
            DataError: On a file that cannot be read, unless they are skipped, and as `PieceReader`.
        """
        self._batches.skipped.clear()
        try:
            for step in range(self.num_batches):
                images, labels, mask = self._batches.read(step)
                yield {
                    "images": self._place(images),
                    "labels": self._place(labels),
                    "mask": self._place(mask),
                }
        finally:
            self._batches.close()

    def batch(
        self, source: FeedData, index: jax.Array | int
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Normalise a batch. Pure.

        Args:
            source: From `sources`.
            index: Not used: the source holds this batch alone.

        Returns:
            Images `dtype` ``[B, S, S, 3]``, labels int32 ``[B]``, and a mask bool ``[B]``: True for
            an image, False for one that could not be read and for a place beyond the end of the
            split.
        """
        images = normalize(source["images"], self._spec.mean, self._spec.std, self._dtype)
        return images, source["labels"], source["mask"]


def train_transform(config: DataConfig, spec: DataSpec) -> Transform:
    """Return what is done to a training image on the host; without augmentation, what evaluation
    does.
    """
    return Transform(
        spec.image_size,
        min_area=None if config.augment == "none" else config.crop_min_area,
        flip=is_flipped(config, spec.name, is_streamed=True),
        policy=make_host_policy(config),
    )


class _Batches:
    """Whole batches put together from pieces, in order or from any step on."""

    def __init__(
        self,
        split: FileSplit,
        spec: DataSpec,
        pieces: Pieces,
        workers: int | None,
        most: int | None = None,
    ) -> None:
        if spec.channels != 3:
            raise DataError(
                f"streamed images are in colour, but the model takes {spec.channels} channel(s)"
            )
        self._split, self._pieces = split, pieces
        self._workers, self._most = workers, most
        self._reader: PieceReader | None = None
        self._next = 0
        self.skipped: dict[str, None] = {}

    def read(self, step: int) -> tuple[Images, Labels, npt.NDArray[np.bool_]]:
        """Return this host's rows of a batch: images, labels, and which rows hold an image."""
        pieces = self._pieces
        if self._reader is None or step != self._next:
            self.close()
            self._reader = PieceReader(pieces, step * pieces.per_batch, self._workers, self._most)
        # A new array each time: the one before may still be on its way to the device, or be the
        # device's own.
        images = np.empty((pieces.num_rows, *2 * (pieces.transform.image_size,), 3), np.uint8)
        files = np.full(pieces.num_rows, -1)
        at = 0
        for _ in range(pieces.per_batch):
            shown, skipped = self._reader.read(images[at:])
            files[at : at + len(shown)] = shown
            at += len(shown)
            self.skipped.update((self._split.paths[file], None) for file in skipped.tolist())
        images[at:] = 0
        self._next = step + 1
        mask = files >= 0
        return images, np.where(mask, self._split.labels[files], 0).astype(np.int32), mask

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None


def _rows(batch_size: int, process_count: int) -> int:
    """Return how many rows of a global batch a host reads."""
    if batch_size % process_count:
        raise ConfigError(
            f"the batch size {batch_size} is not divisible by {process_count} hosts",
            "data.batch_size",
        )
    return batch_size // process_count
