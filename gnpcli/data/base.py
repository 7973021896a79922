"""What a data set is in memory: images, labels, and the facts that evaluation needs again.

Arrays are written ``[N, H, W, C]``: images, rows, columns, channels. NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gnpcli.errors import ConfigError, DataError

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class DataInfo:
    """What is known of a data set before its images are read. Counts are of images."""

    name: str
    num_train: int
    num_validation: int
    num_test: int
    image_size: int
    """Side in pixels; of an image folder without `data.image_size` that of the first training
    image.
    """
    channels: int
    """1 or 3. For an image folder that of the first training image: one coloured image among grey
    ones makes it 3.
    """
    num_classes: int
    present: bool
    """Whether the images are there to be read."""
    is_streamed: bool = False
    """Whether they are decoded batch by batch (`FileSplit`)."""


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """What a model trained on a data set has to know of it; stored with checkpoints.

    Evaluation normalises with the statistics of the training data, so they travel with the
    parameters.
    """

    name: str
    """As in `data.name`."""
    class_names: tuple[str, ...]
    """Name of label 0, 1, ..."""
    image_size: int
    """Side in pixels; images are square."""
    channels: int
    """1 (grey) or 3 (RGB)."""
    mean: tuple[float, ...]
    """Per channel, of pixel values scaled to [0, 1]."""
    std: tuple[float, ...]
    """Per channel, of pixel values scaled to [0, 1]; above 0."""

    @property
    def num_classes(self) -> int:
        """Number of labels."""
        return len(self.class_names)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataSpec:
        """Return the spec that `to_dict` wrote, also after a round trip through JSON.

        Raises:
            DataError: If a field is missing or unknown.
        """
        names = {field.name for field in fields(cls)}
        if wrong := sorted(names ^ set(values)):
            raise DataError(
                f"not the description of a data set: missing or unknown {', '.join(wrong)}"
            )
        arguments: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in values.items()
        }
        return cls(**arguments)


@dataclass(frozen=True, eq=False)
class Split:
    """Images with their labels.

    Args:
        images: uint8 ``[N, H, W, C]``, 0 to 255.
        labels: int32 ``[N]``, 0 to num_classes - 1.
    """

    images: Images
    labels: Labels

    def __post_init__(self) -> None:
        """Refuse other types and shapes: a source that delivers them is at fault, not its user."""
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise ValueError(
                f"images must be uint8 [N, H, W, C], got {self.images.dtype} {self.images.shape}"
            )
        if self.labels.dtype != np.int32 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels must be int32 [{len(self.images)}], got {self.labels.dtype} "
                f"{self.labels.shape}"
            )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def take(self, chosen: npt.NDArray[np.bool_]) -> Split:
        """Return the images where `chosen`, bool ``[N]``, is True, in their order."""
        return Split(self.images[chosen], self.labels[chosen])


@dataclass(frozen=True, eq=False)
class FileSplit:
    """Image files with their labels, decoded batch by batch (`gnpcli.data.feeds.streamed`).

    Args:
        paths: One a file, in an order that depends on names only.
        labels: int32 ``[N]``, 0 to num_classes - 1.
    """

    paths: Sequence[str]
    labels: Labels

    def __post_init__(self) -> None:
        """Refuse labels of another type or number."""
        if self.labels.dtype != np.int32 or self.labels.shape != (len(self.paths),):
            raise ValueError(
                f"labels must be int32 [{len(self.paths)}], got {self.labels.dtype} "
                f"{self.labels.shape}"
            )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def take(self, chosen: npt.NDArray[np.bool_]) -> FileSplit:
        """Return the files where `chosen`, bool ``[N]``, is True, in their order."""
        return FileSplit(
            [self.paths[index] for index in np.flatnonzero(chosen).tolist()], self.labels[chosen]
        )


@dataclass(frozen=True, eq=False)
class Dataset:
    """The splits of a data set, all in memory or all streamed. One of `validation` and `test` at
    least is there.
    """

    spec: DataSpec
    train: Split | FileSplit
    validation: Split | FileSplit | None
    test: Split | FileSplit | None


def validation_counts(class_counts: Sequence[int], fraction: float) -> list[int]:
    """Return how many of each class's training images `fraction` sets aside for validation.

    Each is ``fraction * count`` rounded half up, and at most ``count - 1``: every class keeps an
    image to train on.

    >>> validation_counts([100, 5, 1], 0.3)
    [30, 2, 0]

    Args:
        class_counts: Training images per class.
        fraction: At least 0, below 1. 0 sets nothing aside.

    Raises:
        ConfigError: If `fraction` is above 0 and too small to set any image aside.
    """
    counts = [max(0, min(int(fraction * count + 0.5), count - 1)) for count in class_counts]
    if fraction > 0 and not any(counts):
        raise ConfigError(
            f"data.validation_fraction {fraction:g} of {sum(class_counts)} training images in "
            f"{len(class_counts)} "
            "classes leaves the validation split empty: raise it, or set it to 0",
            key="data.validation_fraction",
        )
    return counts


def carve_validation(dataset: Dataset, fraction: float) -> Dataset:
    """Move `fraction` of every training class to a validation split, in equal strides through the
    class's images.

    Which images go depends on nothing but their order and number: no seed. Strides rather than a
    tail, because files are often sorted by something that matters (a date, a subject), and
    validation should look like all of training. Both splits keep the order of the images.
    `DataSpec.mean` and `std` stay those of the whole training split.

    Raises:
        ConfigError: As `validation_counts`.
        ValueError: If there is a validation split already.
    """
    if dataset.validation is not None:
        raise ValueError("the data set has a validation split already")
    labels = dataset.train.labels
    counts = validation_counts(
        np.bincount(labels, minlength=dataset.spec.num_classes).tolist(), fraction
    )
    chosen = np.zeros(len(labels), dtype=bool)
    for label, count in enumerate(counts):
        members = np.flatnonzero(labels == label)
        # The middle of each of `count` equal parts, in integers: the same on every machine.
        chosen[members[(2 * np.arange(count) + 1) * len(members) // (2 * max(count, 1))]] = True
    return replace(
        dataset,
        train=dataset.train.take(~chosen),
        validation=dataset.train.take(chosen),
    )


def numbered(num_classes: int) -> tuple[str, ...]:
    """Return the class names of weights that name none: ``0``, ``1``, ..."""
    return tuple(map(str, range(num_classes)))


def with_statistics(dataset: Dataset, mean: Sequence[float], std: Sequence[float]) -> Dataset:
    """Replace the statistics of the training images by `data.mean` and `data.std`.

    Raises:
        ConfigError: They are of another number of channels.
    """
    spec = dataset.spec
    if len(mean) != spec.channels:
        raise ConfigError(
            f"images are normalised for {len(mean)} channel(s), by data.mean or as those of "
            "train.init_from, but those "
            f"of {spec.name} have {spec.channels}",
            key="data.mean",
        )
    return replace(dataset, spec=replace(spec, mean=tuple(mean), std=tuple(std)))


def channel_statistics(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel, in units of [0, 1] pixel values.

    The sums are exact integers, so the result does not depend on the order of the images. A
    deviation is at least 1/255: a channel that never changes normalises to 0 instead of dividing by
    0.

    Args:
        images: uint8 ``[N, H, W, C]``, N > 0.
    """
    channels = images.shape[-1]
    rows = images.reshape(len(images), -1)
    # At most 256 images at a time: their squares sum to less than 2^24, below which float32 counts
    # exactly.
    step = max(1, min(256, (1 << 22) // rows.shape[1]))
    total = np.zeros(rows.shape[1])
    squares = np.zeros(rows.shape[1])
    for start in range(0, len(rows), step):
        block = rows[start : start + step].astype(np.float32)
        total += block.sum(axis=0)
        block *= block
        squares += block.sum(axis=0)
    pixels = rows.size // channels
    mean = total.reshape(-1, channels).sum(axis=0) / pixels
    variance = np.maximum(squares.reshape(-1, channels).sum(axis=0) / pixels - mean**2, 1.0)
    return tuple((mean / 255).tolist()), tuple((np.sqrt(variance) / 255).tolist())
