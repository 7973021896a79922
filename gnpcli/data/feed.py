"""Batches from a data set that lives on the devices: a batch is a function of (seed, step), with no iterator state.

The whole split is placed once, as uint8. A training step takes its batch inside the jitted step, by position in the
epoch's order; so resuming in the middle of an epoch is passing the step number. Keys come from the caller: one for the
order of the data, one per step for augmentation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gnpcli.config.schema import DataConfig
from gnpcli.data.augment import normalize, random_flip, random_reflect_crop
from gnpcli.data.base import DataSpec, Split
from gnpcli.errors import ConfigError, DataError

Place = Callable[[Any], jax.Array]
"""Puts a NumPy or JAX array on every device of the mesh, replicated."""

Source = dict[str, jax.Array]
"""What a step reads its batches from; an argument of the jitted step, so that no image becomes a constant of it."""


class InMemoryFeed:
    """Training batches, shuffled anew every epoch. An epoch drops its last, incomplete batch.

    Args:
        split: The training images; the feed keeps no host copy.
        spec: Their mean and std, for normalisation.
        config: `batch_size`, `augment` and `crop_padding` are used.
        place: Puts arrays on the mesh.

    Raises:
        ConfigError: If the batch is larger than the split (``data.batch_size``) or the crop's padding is not below
            the image size (``data.crop_padding``).
        DataError: If the images do not have the size or channels of `spec`.
    """

    def __init__(self, split: Split, spec: DataSpec, config: DataConfig, *, place: Place) -> None:
        _check_shape(split, spec)
        self.steps_per_epoch: int = steps_per_epoch(len(split), config.batch_size)
        """Whole batches in an epoch."""
        self._padding = _crop_padding(config, spec.image_size)
        self._flip = config.augment == "basic"
        self._spec = spec
        self._batch_size = config.batch_size
        self._size = len(split)
        self._place = place
        self._data = {"images": place(split.images), "labels": place(split.labels)}
        self._epoch: tuple[jax.Array, int, jax.Array] | None = None

    def source(self, key: jax.Array, epoch: int) -> Source:
        """Return what `batch` reads in this epoch; cheap but for the first call of an epoch.

        Args:
            key: Key of the run's data order, the same in every epoch.
            epoch: Counted from 0.

        Returns:
            ``images`` uint8 ``[N, H, W, C]``, ``labels`` int32 ``[N]`` and ``order`` int32 ``[N]``: the permutation
            drawn from `key` and `epoch`, computed on the device.
        """
        if self._epoch is None or self._epoch[1] != epoch or not _same_key(self._epoch[0], key):
            self._epoch = (key, epoch, self._place(_permutation(key, epoch, self._size)))
        return {**self._data, "order": self._epoch[2]}

    def batch(self, source: Source, step_in_epoch: jax.Array | int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Take, augment and normalise a batch. Pure; meant to be traced inside the jitted train step.

        Args:
            source: Of this epoch.
            step_in_epoch: 0 to `steps_per_epoch` - 1, an int or an int32 scalar, traced or not.
            key: For augmentation, another one each step.

        Returns:
            Images float32 ``[B, H, W, C]``, normalised, and labels int32 ``[B]``.
        """
        start = jnp.asarray(step_in_epoch, dtype=jnp.int32) * self._batch_size
        chosen = jax.lax.dynamic_slice(source["order"], (start,), (self._batch_size,))
        images, labels = _take(source, chosen)
        crop_key, flip_key = jax.random.split(key)
        if self._padding:
            images = random_reflect_crop(crop_key, images, self._padding)
        if self._flip:
            images = random_flip(flip_key, images)
        return normalize(images, self._spec.mean, self._spec.std), labels


class EvalFeed:
    """Evaluation batches in the order of the split, every example exactly once; the last batch is filled up.

    Args:
        split: The images.
        spec: Of the data the model was trained on: its mean and std normalise.
        config: `eval_batch_size` is used, or `batch_size` where it is null.
        place: Puts arrays on the mesh.

    Raises:
        DataError: If the images do not have the size or channels of `spec`.
    """

    def __init__(self, split: Split, spec: DataSpec, config: DataConfig, *, place: Place) -> None:
        _check_shape(split, spec)
        self._batch_size = config.eval_batch_size or config.batch_size
        self.num_batches: int = -(-len(split) // self._batch_size)
        """Batches that cover the split."""
        self._spec = spec
        self._data = {"images": place(split.images), "labels": place(split.labels)}

    def source(self) -> Source:
        """Return what `batch` reads: ``images`` uint8 ``[N, H, W, C]`` and ``labels`` int32 ``[N]``."""
        return self._data

    def batch(self, source: Source, index: jax.Array | int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Take and normalise a batch. Pure.

        Args:
            source: From `source`.
            index: 0 to `num_batches` - 1, an int or an int32 scalar, traced or not.

        Returns:
            Images float32 ``[B, H, W, C]``, labels int32 ``[B]``, and a mask bool ``[B]``: True for an example, False
            for a place beyond the end of the split, which repeats the last example.
        """
        size = source["labels"].shape[0]
        start = jnp.asarray(index, dtype=jnp.int32) * self._batch_size
        chosen = start + jnp.arange(self._batch_size, dtype=jnp.int32)
        images, labels = _take(source, jnp.minimum(chosen, size - 1))
        return normalize(images, self._spec.mean, self._spec.std), labels, chosen < size


def steps_per_epoch(num_train: int, batch_size: int) -> int:
    """Return how many whole batches an epoch has; the remainder is dropped.

    Raises:
        ConfigError: If not even one batch is (``data.batch_size``).
    """
    if batch_size > num_train:
        raise ConfigError(
            f"data.batch_size {batch_size} is more than the {num_train} training images", key="data.batch_size"
        )
    return num_train // batch_size


def _check_shape(split: Split, spec: DataSpec) -> None:
    expected = (spec.image_size, spec.image_size, spec.channels)
    if split.images.shape[1:] != expected:
        found, wanted = ("x".join(map(str, shape)) for shape in (split.images.shape[1:], expected))
        raise DataError(f"the images are {found} (rows x columns x channels), not {wanted} as the model expects")


def _crop_padding(config: DataConfig, image_size: int) -> int:
    """Return the pixels of reflected border; 0 for no crop."""
    if config.augment == "none":
        return 0
    padding = max(1, image_size // 8) if config.crop_padding is None else config.crop_padding
    if padding >= image_size:
        raise ConfigError(
            f"data.crop_padding {padding} must be below the image size {image_size}: a reflection is no larger",
            key="data.crop_padding",
        )
    return padding


def _same_key(a: jax.Array, b: jax.Array) -> bool:
    return a is b or bool(np.array_equal(jax.random.key_data(a), jax.random.key_data(b)))


@partial(jax.jit, static_argnames="size")
def _permutation(key: jax.Array, epoch: int, size: int) -> jax.Array:
    return jax.random.permutation(jax.random.fold_in(key, epoch), jnp.arange(size, dtype=jnp.int32))


def _take(source: Source, chosen: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gather examples by int32 ``[B]`` positions, which must be in range."""
    images = source["images"].at[chosen].get(mode="promise_in_bounds")
    return images, source["labels"].at[chosen].get(mode="promise_in_bounds")
