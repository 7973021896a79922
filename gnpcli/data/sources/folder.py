"""``folder:DIR``: images in ``DIR/{train,test,val}/<class>/``.

Small images are decoded once, cached and kept in memory. They are normalised by the channel
statistics of the training images. Large ones are streamed in colour: they are decoded batch by
batch (`gnpcli.data.feeds.streamed`) and normalised by ImageNet's statistics.
`gnpcli.data.images.layout` says which files count, `gnpcli.data.images.pixels` how they become
pixels.
"""

from __future__ import annotations

import os

from gnpcli.config.paths import expanded
from gnpcli.config.schema import DataConfig
from gnpcli.data.base import DataInfo, Dataset, DataSpec, FileSplit, Split
from gnpcli.data.images import assemble
from gnpcli.data.images.layout import Layout, scan, scan_held_out
from gnpcli.data.images.pixels import decoding
from gnpcli.data.progress import ProgressListener


def describe(config: DataConfig) -> DataInfo | None:
    """Answer `gnpcli.data.registry.describe_data` from file names and the first image's header.

    Returns None where the folder does not exist.
    """
    if not os.path.isdir(_root(config)):
        return None
    layout = _scan(config)
    return assemble.describe_layout(
        layout,
        name=config.name,
        image_size=config.image_size,
        is_streamed=_is_streamed(layout, config),
        validation_fraction=config.validation_fraction,
    )


def load(config: DataConfig, progress: ProgressListener | None = None) -> Dataset:
    """Return the folder's splits: decoded, or as file names where they are streamed."""
    layout = _scan(config)
    if _is_streamed(layout, config):
        return assemble.streamed_dataset(layout, name=config.name, image_size=config.image_size)
    return assemble.decoded_dataset(
        layout,
        name=config.name,
        image_size=config.image_size,
        decoding=decoding(config),
        progress=progress,
    )


def load_held_out(
    config: DataConfig, split: str, like: DataSpec, progress: ProgressListener | None
) -> tuple[DataSpec, Split | FileSplit] | None:
    """Answer `gnpcli.data.registry.load_held_out`."""
    root = _root(config)
    found = scan_held_out(root, split, class_names=like.class_names, val_labels=config.val_labels)
    if found is None:
        return None
    is_streamed = config.stream
    if is_streamed is None:
        is_streamed = assemble.is_large(found.files, config.image_size)
    return assemble.held_out_split(
        found,
        like=like,
        image_size=config.image_size,
        is_streamed=is_streamed,
        decoding=decoding(config),
        progress=progress,
    )


def _is_streamed(layout: Layout, config: DataConfig) -> bool:
    if config.stream is not None:
        return config.stream
    return assemble.is_large(layout.train, config.image_size)


def _scan(config: DataConfig) -> Layout:
    return scan(
        _root(config),
        validation_fraction=config.validation_fraction,
        val_labels=config.val_labels,
    )


def _root(config: DataConfig) -> str:
    return expanded(config.name.partition(":")[2], "data.name")
