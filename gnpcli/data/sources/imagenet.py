"""``imagenet``: ILSVRC 2012, or any part of it.

1,281,167 training and 50,000 validation photographs in 1,000 classes (O. Russakovsky et al.,
"ImageNet Large Scale Visual Recognition Challenge", arXiv 1409.0575). It is a folder as of
`gnpcli.data.images.layout`, streamed unless `data.stream` is false. The validation images are
tested on. It is not downloaded: its owners give it to those who register. The classes sorted by
name are the official labels.
"""

from __future__ import annotations

from gnpcli.config.schema import DataConfig
from gnpcli.data.archives import places
from gnpcli.data.base import DataInfo, Dataset, DataSpec, FileSplit, Split
from gnpcli.data.images import assemble
from gnpcli.data.images.layout import Layout, scan, scan_held_out
from gnpcli.data.images.pixels import decoding
from gnpcli.data.progress import ProgressListener
from gnpcli.errors import DataError

NUM_TRAIN, NUM_VALIDATION, NUM_CLASSES = 1_281_167, 50_000, 1_000


def describe(config: DataConfig) -> DataInfo:
    """Answer `gnpcli.data.registry.describe_data` from the file names, or the published sizes.

    With the published sizes `num_validation` is right to a few images: classes differ in size.
    """
    root = places.image_folder("imagenet", config.dir)
    if root is not None:
        return assemble.describe_layout(
            _scan(config, root),
            name=config.name,
            image_size=_image_size(config),
            is_streamed=_is_streamed(config),
            validation_fraction=config.validation_fraction,
        )
    num_validation = round(NUM_TRAIN * config.validation_fraction)
    return DataInfo(
        name=config.name,
        num_train=NUM_TRAIN - num_validation,
        num_validation=num_validation,
        num_test=NUM_VALIDATION,
        image_size=_image_size(config),
        channels=3,
        num_classes=NUM_CLASSES,
        present=False,
        is_streamed=_is_streamed(config),
    )


def load(config: DataConfig, progress: ProgressListener | None = None) -> Dataset:
    """Return the splits of the folder at `data.dir` or in a default place.

    Raises:
        DataError: If there is no such folder. The message says where it was looked for, and how
            it has to be laid out.
    """
    root = places.image_folder("imagenet", config.dir)
    if root is None:
        where = " or ".join(places.candidates("imagenet", config.dir))
        raise DataError(
            f"no ImageNet images in {where}: give the folder that holds train/<class>/*.JPEG and "
            "val/<class>/*.JPEG (or val/*.JPEG and a file of their classes) with --data-dir "
            "(data.dir)"
        )
    layout, size = _scan(config, root), _image_size(config)
    if _is_streamed(config):
        return assemble.streamed_dataset(layout, name=config.name, image_size=size)
    return assemble.decoded_dataset(
        layout,
        name=config.name,
        image_size=size,
        decoding=decoding(config),
        progress=progress,
    )


def load_held_out(
    config: DataConfig, split: str, like: DataSpec, progress: ProgressListener | None
) -> tuple[DataSpec, Split | FileSplit] | None:
    """Answer `gnpcli.data.registry.load_held_out`: the validation images alone."""
    root = places.image_folder("imagenet", config.dir, "val")
    if root is None or places.image_folder("imagenet", config.dir) is not None:
        return None
    found = scan_held_out(root, split, class_names=like.class_names, val_labels=config.val_labels)
    if found is None:
        return None
    return assemble.held_out_split(
        found,
        like=like,
        image_size=config.image_size or like.image_size,
        is_streamed=_is_streamed(config),
        decoding=decoding(config),
        progress=progress,
    )


def _scan(config: DataConfig, root: str) -> Layout:
    return scan(root, validation_fraction=config.validation_fraction, val_labels=config.val_labels)


def _is_streamed(config: DataConfig) -> bool:
    return config.stream is not False


def _image_size(config: DataConfig) -> int:
    return config.image_size or assemble.STREAMED_SIZE
