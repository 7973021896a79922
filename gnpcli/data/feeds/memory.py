"""Batches of a data set that lives on the devices.

A split is placed once, as uint8 (`gnpcli.devices.rows`). Of training images every device has a
copy, or a share of them. Of images to evaluate each has those that it will see. A training step
takes its batch inside the jitted step, by position in the epoch's order. A batch is a function of
(configuration, key, step), wherever the images lie. There is no iterator state to save: to resume
in the middle of an epoch is to pass the step number.

Labels and the order of an epoch are small, and lie on every device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int32, Key

from gnpcli.config.schema import DataConfig
from gnpcli.data.augment.basic import normalize
from gnpcli.data.augment.pipeline import make_pipeline
from gnpcli.data.base import DataSpec, Images, Split
from gnpcli.data.feeds.base import (
    BatchLabels,
    FeedData,
    StepNumber,
    eval_batches,
    steps_per_epoch,
)
from gnpcli.devices.rows import Rows, RowsInOrder
from gnpcli.errors import DataError
from gnpcli.keys import epoch_key


class InMemoryFeed:
    """Training batches, shuffled anew every epoch.

    Args:
        split: The training images; the feed keeps no host copy.
        spec: Their mean and std, for normalisation.
        config: `batch_size` and everything about augmentation.
        key: Key of the run's data order.
        rows: Where images lie on the mesh.
        dtype: Type of the images that `batch` returns.

    Raises:
        ConfigError: If the batch is larger than the split (``data.batch_size``) or augmentation
            does not fit the image size.
        DataError: If the images do not have the size or channels of `spec`.
    """

    skipped: Sequence[str] = ()

    def __init__(
        self,
        split: Split,
        spec: DataSpec,
        config: DataConfig,
        *,
        key: Key[Array, ""],
        rows: Rows,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        _check_shape(split, spec)
        self.steps_per_epoch: int = steps_per_epoch(len(split), config.batch_size)
        self._augment = make_pipeline(config, spec, is_streamed=False, dtype=dtype)
        self._batch_size = config.batch_size
        self._size = len(split)
        self._key = key
        self._rows = rows
        self._image = split.images.shape[1:]
        self._data = {
            "images": rows.put(_in_rows(split.images)),
            "labels": rows.place(split.labels),
        }
        self._order: tuple[int, jax.Array] | None = None

    def source(self, step: int) -> FeedData:
        """Return what `batch` reads at `step`. Only the first call of an epoch costs time.

        Returns:
            ``images`` uint8 ``[N, H * W * C]`` as `Rows.put` has them, ``labels`` int32 ``[N]`` and
            ``order`` int32 ``[N]``: the permutation drawn from the key and the epoch, computed on
            the device.
        """
        epoch = step // self.steps_per_epoch
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, self._rows.place(_permutation(self._key, epoch, self._size)))
        return {**self._data, "order": self._order[1]}

    def batch(
        self, source: FeedData, step_in_epoch: StepNumber, key: Key[Array, ""]
    ) -> tuple[Float[Array, "B S S C"], BatchLabels]:
        """Take, augment and normalise a batch. Pure: it is traced inside the jitted step.

        Args:
            source: Of this epoch.
            step_in_epoch: 0 to `steps_per_epoch` - 1, an int or an int32 scalar, traced or not.
            key: For augmentation, another one each step.

        Returns:
            Images `dtype` ``[B, H, W, C]``, normalised, and labels int32 ``[B]``, or class
            probabilities float32 ``[B, K]`` where images are mixed.
        """
        start = jnp.asarray(step_in_epoch, dtype=jnp.int32) * self._batch_size
        chosen = jax.lax.dynamic_slice(source["order"], (start,), (self._batch_size,))
        flat = self._rows.take(source["images"], chosen)
        images = flat.reshape(-1, *self._image)
        return self._augment(key, images, _labels(source, chosen))

    def close(self) -> None:
        """Do nothing: there is nothing in the background."""


class InMemoryEvalFeed:
    """Evaluation batches in the order of the split, every example exactly once.

    The last batch is filled up.

    Args:
        split: The images.
        spec: Of the data the model was trained on: its mean and std normalise.
        config: `eval_batch_size` images are the most of a batch, or `batch_size` where it is null.
        rows: Puts the images on the mesh, each where it is evaluated.
        dtype: Type of the images that `batch` returns.

    Raises:
        DataError: If the images do not have the size or channels of `spec`.
    """

    skipped: Sequence[str] = ()

    def __init__(
        self,
        split: Split,
        spec: DataSpec,
        config: DataConfig,
        *,
        rows: RowsInOrder,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        _check_shape(split, spec)
        self.batches = eval_batches(len(split), config, rows.mesh.size)
        self._spec = spec
        self._dtype = dtype
        self._rows = rows
        self._image = split.images.shape[1:]
        self._size = len(split)
        images = rows.put(_in_rows(split.images), self.batches.size)
        self._data = {"images": images, "labels": rows.place(split.labels)}

    def sources(self) -> Iterator[FeedData]:
        """Yield the same for each batch.

        It is ``images`` uint8 as `RowsInOrder.put` has them, a flat row each, and ``labels``
        int32 ``[N]``.
        """
        for _ in range(self.batches.number):
            yield self._data

    def batch(
        self, source: FeedData, index: StepNumber
    ) -> tuple[Float[Array, "B S S C"], Int32[Array, " B"], Bool[Array, " B"]]:
        """Take and normalise a batch. Pure.

        Args:
            source: From `sources`.
            index: 0 to ``batches.number`` - 1, an int or an int32 scalar, traced or not.

        Returns:
            Images `dtype` ``[B, H, W, C]``, labels int32 ``[B]``, and a mask bool ``[B]``. It is
            True for an example, and False for a place beyond the end of the split, which repeats
            the last example.
        """
        number = jnp.asarray(index, dtype=jnp.int32)
        flat = self._rows.take(source["images"], number)
        images = flat.reshape(-1, *self._image)
        size = self.batches.size
        chosen = number * size + jnp.arange(size, dtype=jnp.int32)
        return (
            normalize(images, self._spec.mean, self._spec.std, self._dtype),
            _labels(source, jnp.minimum(chosen, self._size - 1)),
            chosen < self._size,
        )


def _check_shape(split: Split, spec: DataSpec) -> None:
    """Check that the images of a split are of the size and channels that a model takes."""
    found = split.images.shape[1:]
    wanted = (spec.image_size, spec.image_size, spec.channels)
    if found != wanted:
        raise DataError(
            f"the images are {_shape(found)} (rows x columns x channels), not {_shape(wanted)} as "
            "the model expects"
        )


def _shape(sides: Sequence[int]) -> str:
    return "x".join(str(side) for side in sides)


@partial(jax.jit, static_argnames="size")
def _permutation(key: Key[Array, ""], epoch: StepNumber, size: int) -> Int32[Array, " N"]:
    return jax.random.permutation(epoch_key(key, epoch), jnp.arange(size, dtype=jnp.int32))


def _in_rows(images: Images) -> Images:
    """Return uint8 ``[N, H, W, C]`` as ``[N, H * W * C]``, of which each image is a row.

    A TPU lays the last two axes of an array out in tiles of 128 and pads them. Images of 3 channels
    it keeps with N as the last axis, and copied all of them in every step, to take a few.
    """
    return images.reshape(len(images), -1)


def _labels(source: FeedData, chosen: jax.Array) -> jax.Array:
    """Return the labels of examples by int32 ``[B]`` positions, which must be in range."""
    return source["labels"].at[chosen].get(mode="promise_in_bounds")
