"""``folder:DIR``: small images in ``DIR/{train,test,val}/<class>/``, decoded once and cached.

`gnpcli.data.layout` says which files count, `gnpcli.data.decode` how they become pixels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from gnpcli.config.schema import DataConfig
from gnpcli.data.base import DataInfo, Dataset, DataSpec, Images, Split, channel_statistics, validation_counts
from gnpcli.data.cache import cache_key, read_cache, write_cache
from gnpcli.data.decode import ColourFound, decode_files, read_header
from gnpcli.data.layout import Layout, scan

Progress = Callable[[int, int], None]


def describe(config: DataConfig) -> DataInfo | None:
    """Answer `gnpcli.data.describe` from the names in the folder and the first image's header; None without one."""
    return describe_layout(_scan(config), config) if os.path.isdir(_root(config)) else None


def load(config: DataConfig, progress: Progress | None = None) -> Dataset:
    """Return the folder's splits, normalised by the channel statistics of its training images."""
    layout = _scan(config)
    images = load_images(layout, config.image_size, progress)
    mean, std = images["statistics"].tolist()
    return assemble(layout, images, name=config.name, mean=mean, std=std)


def _root(config: DataConfig) -> str:
    return os.path.expanduser(config.name.partition(":")[2])


def _scan(config: DataConfig) -> Layout:
    return scan(_root(config), validation_fraction=config.validation_fraction)


def describe_layout(layout: Layout, config: DataConfig) -> DataInfo:
    """Count the images of a folder, after `validation_fraction`, and look at the size of the first.

    Raises:
        ConfigError: On a `validation_fraction` that sets nothing aside.
        DataError: If the first image cannot be read, or is not square and `image_size` is null.
    """
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
    )


def load_images(layout: Layout, image_size: int | None, progress: Progress | None) -> dict[str, npt.NDArray[Any]]:
    """Read the images of every split from the cache, or decode and cache them.

    Images have one channel if every training image is grey (Pillow's modes 1, L, I;16), else three.

    Args:
        layout: The folder.
        image_size: Side to resize to; None keeps the images' own, one for all of them.
        progress: Called with (done, total) over all splits while images are decoded. Starts over where a coloured
            image turns up among grey ones.

    Returns:
        Images by split name, uint8 ``[N, S, S, C]``, in the order of the layout; and under ``statistics`` float64
        ``[2, C]``, mean and standard deviation of the training images.

    Raises:
        DataError: As `gnpcli.data.decode.decode_files`.
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


def _decode(layout: Layout, image_size: int | None, grey: bool, progress: Progress | None) -> dict[str, Images]:
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


def assemble(
    layout: Layout, images: Mapping[str, Images], *, name: str, mean: Sequence[float], std: Sequence[float]
) -> Dataset:
    """Put the images of a layout (from `load_images`) together with their labels and statistics."""
    splits = {
        split: Split(images[split], np.repeat(np.arange(len(files.class_counts), dtype=np.int32), files.class_counts))
        for split, files in layout.splits.items()
    }
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
