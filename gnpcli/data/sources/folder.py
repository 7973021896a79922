"""``folder:DIR``: images in ``DIR/{train,test,val}/<class>/``: small ones in memory, large ones
streamed.

Small images are decoded once and cached, and normalised by the channel statistics of the training
images. Large ones are decoded batch by batch (`gnpcli.data.feeds.streamed`), in colour, and
normalised by ImageNet's statistics. `gnpcli.data.images.layout` says which files count,
`gnpcli.data.images.decode` how they become pixels.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from gnpcli.config.schema import DataConfig
from gnpcli.data.base import (
    DataInfo,
    Dataset,
    DataSpec,
    FileSplit,
    Images,
    Labels,
    Split,
    channel_statistics,
    validation_counts,
)
from gnpcli.data.images.cache import cache_key, read_cache, write_cache
from gnpcli.data.images.decode import ColourFound, decode_files, read_header, short_side
from gnpcli.data.images.layout import Layout, SplitFiles, scan
from gnpcli.data.progress import Progress

STREAMED_SIZE = 224
"""Side in pixels of streamed images without `data.image_size`."""
STREAMED_MEAN, STREAMED_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's training images per channel, of pixel values in [0, 1], as they are usually
rounded.
"""
LARGEST_IN_MEMORY = 96
"""Side in pixels up to which images are kept in memory unless `data.stream` says otherwise."""


def describe(config: DataConfig) -> DataInfo | None:
    """Answer `gnpcli.data.registry.describe` from the names in the folder and the first image's
    header; None without one.
    """
    if not os.path.isdir(_root(config)):
        return None
    layout = scan_for(config, _root(config))
    return describe_layout(layout, config, streamed=is_streamed(layout, config))


def load(config: DataConfig, progress: Progress | None = None) -> Dataset:
    """Return the folder's splits, decoded or, where they are streamed, as names of files."""
    return load_layout(scan_for(config, _root(config)), config, progress)


def load_layout(layout: Layout, config: DataConfig, progress: Progress | None) -> Dataset:
    """Return the splits of a scanned folder; errors as `load_images` and `is_streamed`."""
    if is_streamed(layout, config):
        return assemble_streamed(layout, config)
    images = load_images(layout, config.image_size, progress)
    mean, std = images["statistics"].tolist()
    return assemble(layout, images, name=config.name, mean=mean, std=std)


def is_streamed(layout: Layout, config: DataConfig) -> bool:
    """Return whether a folder is streamed, which the size of its first image says where `config`
    does not.

    Raises:
        DataError: If that image has to be looked at and cannot be read.
    """
    if config.stream is not None:
        return config.stream
    return (config.image_size or short_side(layout.train.paths[0])) > LARGEST_IN_MEMORY


def scan_for(config: DataConfig, root: str) -> Layout:
    """Return the names in an image folder as `config` takes them; errors as
    `gnpcli.data.images.layout.scan`.
    """
    return scan(root, validation_fraction=config.validation_fraction, val_labels=config.val_labels)


def _root(config: DataConfig) -> str:
    return os.path.expanduser(config.name.partition(":")[2])


def describe_layout(layout: Layout, config: DataConfig, *, streamed: bool = False) -> DataInfo:
    """Count the images of a folder, after `validation_fraction`, and look at the size of the first.

    Raises:
        ConfigError: On a `validation_fraction` that sets nothing aside.
        DataError: Of images in memory, if the first cannot be read, or is not square and
            `image_size` is null.
    """
    if streamed:
        image_size, grey = config.image_size or STREAMED_SIZE, False
    else:
        image_size, grey = read_header(layout.train.paths[0], config.image_size)
    carved = sum(validation_counts(layout.train.class_counts, config.validation_fraction))
    own_validation = len(layout.validation.paths) if layout.validation is not None else 0
    return DataInfo(
        name=config.name,
        num_train=len(layout.train.paths) - carved,
        num_validation=own_validation + carved,
        num_test=len(layout.test.paths) if layout.test is not None else 0,
        image_size=image_size,
        channels=1 if grey else 3,
        num_classes=len(layout.class_names),
        present=True,
        is_streamed=streamed,
    )


def assemble_streamed(layout: Layout, config: DataConfig) -> Dataset:
    """Put the names of a layout together with their labels; no image is opened."""
    splits = {name: FileSplit(files.paths, _labels(files)) for name, files in layout.splits.items()}
    spec = DataSpec(
        name=config.name,
        class_names=layout.class_names,
        image_size=config.image_size or STREAMED_SIZE,
        channels=3,
        mean=STREAMED_MEAN,
        std=STREAMED_STD,
    )
    return Dataset(spec, splits["train"], splits.get("validation"), splits.get("test"))


def load_images(
    layout: Layout, image_size: int | None, progress: Progress | None
) -> dict[str, npt.NDArray[Any]]:
    """Read the images of every split from the cache, or decode and cache them.

    Images have one channel if every training image is grey (Pillow's modes 1, L, I;16), else three.

    Args:
        layout: The folder.
        image_size: Side to resize to; None keeps the images' own, one for all of them.
        progress: Called with (done, total) over all splits while images are decoded. Starts over
            where a coloured image turns up among grey ones.

    Returns:
        Images by split name, uint8 ``[N, S, S, C]``, in the order of the layout; and under
        ``statistics`` float64 ``[2, C]``, mean and standard deviation of the training images.

    Raises:
        DataError: As `gnpcli.data.images.decode.decode_files`.
    """
    key = cache_key(layout.root, layout.splits, image_size)
    arrays = read_cache(key, {name: len(files.paths) for name, files in layout.splits.items()})
    if arrays is None:
        _, grey = read_header(layout.train.paths[0], image_size)
        try:
            images = _decode(layout, image_size, grey, progress)
        except ColourFound:
            images = _decode(layout, image_size, False, progress)
        arrays = {**images, "statistics": np.asarray(channel_statistics(images["train"]))}
        write_cache(key, arrays)
    return arrays


def _decode(
    layout: Layout, image_size: int | None, grey: bool, progress: Progress | None
) -> dict[str, Images]:
    images: dict[str, Images] = {}
    total = sum(len(files.paths) for files in layout.splits.values())
    before = 0
    for name, files in layout.splits.items():
        images[name] = decode_files(
            files.paths,
            image_size=image_size,
            channels=1 if grey else 3,
            only_grey=grey and name == "train",
            like=layout.train.paths[0],
            progress=None if progress is None else partial(_tick, progress, before, total),
        )
        before += len(files.paths)
    return images


def _tick(progress: Progress, before: int, total: int, done: int) -> None:
    progress(before + done, total)


def _labels(files: SplitFiles) -> Labels:
    return np.repeat(np.arange(len(files.class_counts), dtype=np.int32), files.class_counts)


def assemble(
    layout: Layout,
    images: Mapping[str, Images],
    *,
    name: str,
    mean: Sequence[float],
    std: Sequence[float],
) -> Dataset:
    """Put the images of a layout (from `load_images`) together with their labels and statistics."""
    splits = {split: Split(images[split], _labels(files)) for split, files in layout.splits.items()}
    _, image_size, _, channels = images["train"].shape
    spec = DataSpec(
        name=name,
        class_names=layout.class_names,
        image_size=image_size,
        channels=channels,
        mean=tuple(mean),
        std=tuple(std),
    )
    return Dataset(spec, splits["train"], splits.get("validation"), splits.get("test"))
