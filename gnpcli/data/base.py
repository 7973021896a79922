"""What a data set is in memory: images, labels, and the facts that evaluation needs again.

Arrays are written ``[N, H, W, C]``: images, rows, columns, channels. NumPy only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from gnpcli.data.fingerprint import (
    Fingerprint,
    SplitFingerprint,
    fingerprint_files,
    fingerprint_pixels,
)
from gnpcli.data.statistics import channel_statistics
from gnpcli.errors import ConfigError, DataError

Images = npt.NDArray[np.uint8]
"""uint8, 0 to 255."""
Labels = npt.NDArray[np.int32]
"""int32, 0 to num_classes - 1."""
Arrays = tuple[npt.NDArray[np.uint8], npt.NDArray[np.integer[Any]]]
"""Images uint8 ``[N, H, W, C]`` and labels ``[N]`` of any integer type."""


@dataclass(frozen=True, kw_only=True)
class DataInfo:
    """What is known of a data set before its images are read. Counts are of images."""

    name: str
    """As in `data.name`."""
    num_train: int
    num_validation: int
    num_test: int
    image_size: int
    """Side in pixels. Without `data.image_size`, an image folder has that of its first image."""
    channels: int
    """1 or 3. An image folder has those of its first training image.

    One coloured image among grey ones makes them 3 when the folder is read.
    """
    num_classes: int
    present: bool
    """Whether the images are there to be read."""
    is_streamed: bool = False
    """Whether they are decoded batch by batch (`FileSplit`)."""
    remarks: tuple[str, ...] = ()
    """What a person should know of the folder, a line each: such as what of it is not read."""


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """What a model has to know of the data it was trained on; stored with checkpoints.

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
    fingerprint: Fingerprint | None = field(default=None, repr=False)
    """Of the images. None of weights from elsewhere, and in checkpoints of older versions."""

    @property
    def num_classes(self) -> int:
        """Number of labels."""
        return len(self.class_names)

    @property
    def digest(self) -> str | None:
        """Class names and images in 32 characters; None where the images are not known."""
        if self.fingerprint is None:
            return None
        text = json.dumps([self.class_names, asdict(self.fingerprint)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataSpec:
        """Return the spec that `to_dict` wrote, also after a round trip through JSON.

        Raises:
            DataError: If a field is missing, unknown or of another type.
        """
        names = {each.name for each in fields(cls)}
        wrong = sorted(names ^ {"fingerprint", *values})
        if wrong:
            raise DataError(
                f"not the description of a data set: missing or unknown {', '.join(wrong)}"
            )
        try:
            spec = TypeAdapter(cls).validate_json(json.dumps(dict(values)), strict=True)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            where = ".".join(map(str, problem["loc"]))
            raise DataError(
                f"not the description of a data set: {where}: {problem['msg']}"
            ) from error
        if spec.fingerprint is not None and not spec.fingerprint.covers(spec.num_classes):
            raise DataError("not the description of a data set: fingerprint: of other classes")
        return spec


@dataclass(frozen=True, eq=False)
class Split:
    """Images with their labels.

    Args:
        images: uint8 ``[N, H, W, C]``, 0 to 255.
        labels: int32 ``[N]``, 0 to num_classes - 1.

    Raises:
        ValueError: On another type or shape. The source that delivers it is at fault, not its user.
    """

    images: Images
    labels: Labels

    def __post_init__(self) -> None:
        """Check types and shapes."""
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise ValueError(
                f"images must be uint8 [N, H, W, C], got {self.images.dtype} {self.images.shape}"
            )
        _check_int32(self.labels, len(self.images))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def take(self, chosen: npt.NDArray[np.bool_]) -> Split:
        """Return the images where `chosen`, bool ``[N]``, is True, in their order."""
        return Split(self.images[chosen], self.labels[chosen])

    def fingerprint(self, num_classes: int) -> SplitFingerprint:
        """Return what tells whether pixels and labels are still the same."""
        return fingerprint_pixels(self.images, self.labels, num_classes)


@dataclass(frozen=True, eq=False)
class FileSplit:
    """Image files with their labels, decoded batch by batch (`gnpcli.data.feeds.streamed`).

    Args:
        paths: One a file, in an order that depends on names only.
        labels: int32 ``[N]``, 0 to num_classes - 1.

    Raises:
        ValueError: On labels of another type or number.
    """

    paths: Sequence[str]
    labels: Labels

    def __post_init__(self) -> None:
        """Check type and number of the labels."""
        _check_int32(self.labels, len(self.paths))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def take(self, chosen: npt.NDArray[np.bool_]) -> FileSplit:
        """Return the files where `chosen`, bool ``[N]``, is True, in their order."""
        paths = [self.paths[index] for index in np.flatnonzero(chosen).tolist()]
        return FileSplit(paths, self.labels[chosen])

    def fingerprint(self, num_classes: int) -> SplitFingerprint:
        """Return what tells whether files and labels are still the same."""
        return fingerprint_files(self.paths, self.labels, num_classes)


@dataclass(frozen=True, eq=False)
class Dataset:
    """The splits of a data set, all in memory or all streamed.

    At least one of `validation` and `test` is there.
    """

    spec: DataSpec
    train: Split | FileSplit
    validation: Split | FileSplit | None
    test: Split | FileSplit | None

    @classmethod
    def from_arrays(
        cls,
        *,
        train: Arrays,
        validation: Arrays | None = None,
        test: Arrays | None = None,
        class_names: Sequence[str] | None = None,
        name: str = "mine",
    ) -> Dataset:
        """Return a data set of NumPy arrays; they are not copied.

        `DataSpec.mean` and `std` are those of the training images.

        >>> images, labels = np.zeros((6, 8, 8, 3), np.uint8), np.arange(6) % 2
        >>> data = Dataset.from_arrays(train=(images, labels), test=(images[:2], labels[:2]))
        >>> data.spec.class_names, data.spec.image_size, data.spec.channels
        (('0', '1'), 8, 3)

        Args:
            train: Images uint8 ``[N, S, S, C]``, 0 to 255, C = 1 (grey) or 3 (RGB), and labels
                ``[N]`` of any integer type, 0 to the number of classes - 1.
            validation: As `train`, with the same S and C; None where there are none.
            test: As `validation`. One of the two must be there.
            class_names: Name of label 0, 1, ...; None numbers the labels up to the largest one of
                `train`.
            name: What messages and checkpoints call the data, behind ``arrays:``. A run trained on
                it has the name as `data.name`.

        Raises:
            DataError: If an array has another type or shape, a split is empty, a label is out of
                range, splits differ in size or channels, there are fewer than two classes, names
                repeat, or there is neither a validation nor a test split. The message names the
                split.
        """
        given = {"train": train, "validation": validation, "test": test}
        arrays = {split: pair for split, pair in given.items() if pair is not None}
        if len(arrays) == 1:
            raise DataError("there are no held-out images: give `validation` or `test`")
        for split, (images, labels) in arrays.items():
            _check_arrays(split, images, labels)
            _check_same_shape(split, images, train[0])
        if class_names is None:
            class_names = numbered(int(train[1].max()) + 1)
        _check_class_names(class_names)
        for split, (_, labels) in arrays.items():
            _check_range(split, labels, len(class_names))
        mean, std = channel_statistics(train[0])
        spec = DataSpec(
            name=f"arrays:{name}",
            class_names=tuple(class_names),
            image_size=train[0].shape[1],
            channels=train[0].shape[3],
            mean=mean,
            std=std,
        )
        splits = {
            split: Split(images, labels.astype(np.int32, copy=False))
            for split, (images, labels) in arrays.items()
        }
        return cls(spec, splits["train"], splits.get("validation"), splits.get("test"))

    @property
    def info(self) -> DataInfo:
        """The sizes of the splits, as of data that is present."""
        return DataInfo(
            name=self.spec.name,
            num_train=len(self.train),
            num_validation=0 if self.validation is None else len(self.validation),
            num_test=0 if self.test is None else len(self.test),
            image_size=self.spec.image_size,
            channels=self.spec.channels,
            num_classes=self.spec.num_classes,
            present=True,
            is_streamed=isinstance(self.train, FileSplit),
        )

    def identified(self) -> Dataset:
        """Return the data set with the fingerprint of its images. It looks at every one.

        Raises:
            DataError: On a file that has gone, or may not be read.
        """
        count = self.spec.num_classes
        fingerprint = Fingerprint(
            train=self.train.fingerprint(count),
            validation=None if self.validation is None else self.validation.fingerprint(count),
            test=None if self.test is None else self.test.fingerprint(count),
        )
        return replace(self, spec=replace(self.spec, fingerprint=fingerprint))

    def with_statistics(self, mean: Sequence[float], std: Sequence[float]) -> Dataset:
        """Return the data set with other statistics than those of the training images.

        Args:
            mean: As `DataSpec.mean`.
            std: As `DataSpec.std`.

        Raises:
            ConfigError: If they are of another number of channels (``data.mean``).
        """
        spec = self.spec
        if len(mean) != spec.channels:
            raise ConfigError(
                f"images are normalised for {len(mean)} channel(s), by data.mean or as those of "
                f"train.init_from, but those of {spec.name} have {spec.channels}",
                key="data.mean",
            )
        return replace(self, spec=replace(spec, mean=tuple(mean), std=tuple(std)))


def numbered(num_classes: int) -> tuple[str, ...]:
    """Return the class names ``0``, ``1``, ... of labels that have no other names."""
    return tuple(str(label) for label in range(num_classes))


def _check_int32(labels: Labels, count: int) -> None:
    if labels.dtype != np.int32 or labels.shape != (count,):
        raise ValueError(f"labels must be int32 [{count}], got {labels.dtype} {labels.shape}")


def _check_arrays(
    split: str, images: npt.NDArray[np.generic], labels: npt.NDArray[np.generic]
) -> None:
    """Check the types and shapes of one split."""
    if images.dtype != np.uint8:
        raise DataError(
            f"the {split} images are {images.dtype}: give uint8 pixel values from 0 to 255"
        )
    if images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] not in (1, 3):
        raise DataError(
            f"the {split} images have the shape {images.shape}: give square ones as "
            "[N, size, size, channels] with 1 or 3 channels"
        )
    if 0 in images.shape:
        raise DataError(f"the {split} split is empty: its images have the shape {images.shape}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"the {split} labels are {labels.dtype}: give integers")
    if labels.shape != (len(images),):
        raise DataError(
            f"the {split} labels have the shape {labels.shape}: give one for each of the "
            f"{len(images)} images, ({len(images)},)"
        )


def _check_same_shape(split: str, images: Images, train: Images) -> None:
    if images.shape[1:] != train.shape[1:]:
        raise DataError(
            f"the {split} images are {_shape(images)} (rows x columns x channels), "
            f"those of train {_shape(train)}: give images of one shape"
        )


def _check_class_names(class_names: Sequence[str]) -> None:
    if isinstance(class_names, str):
        raise DataError(f"class_names is the text {class_names!r}: give a list of names")
    if len(class_names) < 2:
        raise DataError(f"there are {len(class_names)} classes: at least two can be told apart")
    if len(set(class_names)) < len(class_names):
        repeated = next(name for name in class_names if list(class_names).count(name) > 1)
        raise DataError(f"class_names has {repeated!r} twice: name every class once")


def _check_range(split: str, labels: npt.NDArray[np.integer[Any]], num_classes: int) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise DataError(
            f"the {split} labels go from {low} to {high}: {num_classes} classes have the labels 0 "
            f"to {num_classes - 1}"
        )


def _shape(images: Images) -> str:
    return "x".join(str(side) for side in images.shape[1:])
