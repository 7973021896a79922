"""From the layout of an image folder to a data set: counted, decoded into memory, or streamed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from gnpcli.data.base import (
    DataInfo,
    Dataset,
    DataSpec,
    FileSplit,
    Images,
    Labels,
    Split,
)
from gnpcli.data.images.cache import cache_key, cached
from gnpcli.data.images.decode import decode_files, read_header, short_side
from gnpcli.data.images.layout import HeldOut, Layout, SplitFiles, remarks
from gnpcli.data.images.opening import ColourFound
from gnpcli.data.images.pixels import Decoding
from gnpcli.data.progress import ProgressListener
from gnpcli.data.statistics import channel_statistics
from gnpcli.data.validation import validation_counts
from gnpcli.errors import DataError
from gnpcli.terminal.words import few, readable

_BLOCK = 1024
"""Images that are compared at once: all of them would take their memory again."""
_log = logging.getLogger("gnpcli")

STREAMED_SIZE = 224
"""Side in pixels of streamed images without `data.image_size`."""
STREAMED_MEAN, STREAMED_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's training statistics per channel, of pixel values in [0, 1], as usually rounded."""
LARGEST_IN_MEMORY = 96
"""Side in pixels up to which images are kept in memory unless `data.stream` says otherwise."""


def is_large(files: SplitFiles, image_size: int | None) -> bool:
    """Return whether images are too large to be kept in memory.

    Args:
        files: The images.
        image_size: Side that images are resized to; None takes the short side of the first image.

    Raises:
        DataError: If that image has to be looked at and cannot be read.
    """
    side = image_size or short_side(files.paths[0])
    return side > LARGEST_IN_MEMORY


def describe_layout(
    layout: Layout,
    *,
    name: str,
    image_size: int | None,
    is_streamed: bool,
    validation_fraction: float,
) -> DataInfo:
    """Count the images of a folder and look at the size of the first.

    Args:
        layout: The folder.
        name: As in `data.name`.
        image_size: Side that images are resized to; None keeps their own, or takes
            `STREAMED_SIZE` where they are streamed.
        is_streamed: Whether they are decoded batch by batch.
        validation_fraction: Share of every training class that is set aside for validation.

    Raises:
        ConfigError: If `validation_fraction` sets nothing aside.
        DataError: If images are kept in memory and the first cannot be read, or is not square
            while `image_size` is None.
    """
    if is_streamed:
        side, is_grey = image_size or STREAMED_SIZE, False
    else:
        side, is_grey = read_header(layout.train.paths[0], image_size)
    carved = sum(validation_counts(layout.train.class_counts, validation_fraction))
    return DataInfo(
        name=name,
        num_train=_count(layout.train) - carved,
        num_validation=_count(layout.validation) + carved,
        num_test=_count(layout.test),
        image_size=side,
        channels=1 if is_grey else 3,
        num_classes=len(layout.class_names),
        present=True,
        is_streamed=is_streamed,
        remarks=tuple(remarks(layout)),
    )


def streamed_dataset(layout: Layout, *, name: str, image_size: int | None) -> Dataset:
    """Return the file names of a layout with their labels. No image is opened.

    What of the folder is not read leaves a note in the log.

    Args:
        layout: The folder.
        name: As in `data.name`.
        image_size: Side that images are resized to; None takes `STREAMED_SIZE`.
    """
    _tell(remarks(layout))
    splits = {
        split: FileSplit(files.paths, _labels(files)) for split, files in layout.splits.items()
    }
    spec = DataSpec(
        name=name,
        class_names=layout.class_names,
        image_size=image_size or STREAMED_SIZE,
        channels=3,
        mean=STREAMED_MEAN,
        std=STREAMED_STD,
    )
    return Dataset(spec, splits["train"], splits.get("validation"), splits.get("test"))


def decoded_dataset(
    layout: Layout,
    *,
    name: str,
    image_size: int | None,
    decoding: Decoding,
    progress: ProgressListener | None,
) -> Dataset:
    """Return the images of every split with their labels, from the cache or decoded and cached.

    Images have one channel if every training image is grey (Pillow's modes 1, L, I;16), else three.
    `DataSpec.mean` and `std` are those of the training images. What of the folder is not read, and
    images of a single colour, leave notes in the log.

    Args:
        layout: The folder.
        name: As in `data.name`.
        image_size: Side to resize to; None keeps the images' own, one for all of them.
        decoding: What transparency and orientation mean.
        progress: Called with (done, total) over all splits while images are decoded. It starts over
            where a coloured image turns up among grey ones.

    Raises:
        DataError: As `gnpcli.data.images.decode.decode_files`.
    """
    _tell(remarks(layout))
    arrays = _arrays(layout, image_size, decoding, progress)
    for split, files in layout.splits.items():
        _tell(constant_images(arrays[split], files.paths))
    mean, std = arrays["statistics"].tolist()
    splits = {split: Split(arrays[split], _labels(files)) for split, files in layout.splits.items()}
    _, side, _, channels = arrays["train"].shape
    spec = DataSpec(
        name=name,
        class_names=layout.class_names,
        image_size=side,
        channels=channels,
        mean=tuple(mean),
        std=tuple(std),
    )
    return Dataset(spec, splits["train"], splits.get("validation"), splits.get("test"))


def held_out_split(
    found: HeldOut,
    *,
    like: DataSpec,
    image_size: int | None,
    is_streamed: bool,
    decoding: Decoding,
    progress: ProgressListener | None,
) -> tuple[DataSpec, Split | FileSplit]:
    """Return a split without training images, for a model that was trained on others.

    Args:
        found: The split.
        like: What the model was trained on: its channels, mean and std, and its size if images are
            streamed.
        image_size: Side that decoded images are resized to; None keeps their own.
        is_streamed: Whether images are decoded batch by batch.
        decoding: What transparency and orientation mean.
        progress: As of `decoded_dataset`.

    Returns:
        `like` with the classes and the size of the split, and its images.

    Raises:
        DataError: As `decoded_dataset`, or if the model takes grey images and one has colours.
    """
    _tell(remarks(found))
    spec, paths = replace(like, class_names=found.class_names), found.files.paths
    if is_streamed:
        return spec, FileSplit(paths, _labels(found.files))
    try:
        images = decode_files(
            paths,
            image_size=image_size,
            channels=like.channels,
            only_grey=like.channels == 1,
            like=paths[0],
            decoding=decoding,
            progress=None if progress is None else partial(_tick, progress, 0, len(paths)),
        )
    except ColourFound:
        raise DataError(
            f"{found.root} holds images in colour, and the model was trained on grey ones"
        ) from None
    _tell(constant_images(images, paths))
    return replace(spec, image_size=images.shape[1]), Split(images, _labels(found.files))


def constant_images(images: Images, paths: Sequence[str]) -> list[str]:
    """Return which images are of a single colour, in a line; nothing where none is.

    Args:
        images: uint8 ``[N, S, S, C]``.
        paths: Their N files.
    """
    found: list[str] = []
    for start in range(0, len(images), _BLOCK):
        block = images[start : start + _BLOCK]
        is_constant = (block == block[:, :1, :1]).all(axis=(1, 2, 3))
        found += [paths[start + index] for index in np.flatnonzero(is_constant).tolist()]
    if not found:
        return []
    are = "image is" if len(found) == 1 else "images are"
    return [f"{len(found):,} {are} of a single colour: {few(found)}"]


def _tell(lines: Sequence[str]) -> None:
    for line in lines:
        _log.warning("%s", readable(line))


def _arrays(
    layout: Layout, image_size: int | None, decoding: Decoding, progress: ProgressListener | None
) -> dict[str, npt.NDArray[Any]]:
    """Return images uint8 ``[N, S, S, C]`` by split, and ``statistics`` float64 ``[2, C]``.

    The statistics are mean and standard deviation of the training images.
    """
    paths = {split: files.paths for split, files in layout.splits.items()}
    make_key = partial(cache_key, layout.root, paths, image_size, decoding.name)
    lengths = {split: len(own) for split, own in paths.items()}

    def decode() -> dict[str, npt.NDArray[Any]]:
        images = _decode(layout, image_size, decoding, progress)
        return {**images, "statistics": np.asarray(channel_statistics(images["train"]))}

    return cached(make_key, lengths, decode)


def _decode(
    layout: Layout, image_size: int | None, decoding: Decoding, progress: ProgressListener | None
) -> dict[str, Images]:
    """Decode all splits in grey if the training images are, else in colour."""
    _, is_grey = read_header(layout.train.paths[0], image_size)
    if is_grey:
        try:
            return _decode_splits(layout, image_size, 1, decoding, progress)
        except ColourFound:
            pass
    return _decode_splits(layout, image_size, 3, decoding, progress)


def _decode_splits(
    layout: Layout,
    image_size: int | None,
    channels: int,
    decoding: Decoding,
    progress: ProgressListener | None,
) -> dict[str, Images]:
    images: dict[str, Images] = {}
    total = sum(len(files.paths) for files in layout.splits.values())
    before = 0
    for split, files in layout.splits.items():
        images[split] = decode_files(
            files.paths,
            image_size=image_size,
            channels=channels,
            only_grey=channels == 1 and split == "train",
            like=layout.train.paths[0],
            decoding=decoding,
            progress=None if progress is None else partial(_tick, progress, before, total),
        )
        before += len(files.paths)
    return images


def _tick(progress: ProgressListener, before: int, total: int, done: int) -> None:
    progress(before + done, total)


def _labels(files: SplitFiles) -> Labels:
    return np.repeat(np.arange(len(files.class_counts), dtype=np.int32), files.class_counts)


def _count(files: SplitFiles | None) -> int:
    return 0 if files is None else len(files.paths)
