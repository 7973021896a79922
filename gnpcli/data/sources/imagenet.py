"""``imagenet``: ILSVRC 2012, 1,281,167 training and 50,000 validation photographs in 1,000 classes,
or any part of it.

O. Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", arXiv 1409.0575. A
folder as of `gnpcli.data.images.layout`, streamed unless `data.stream` says otherwise; the
validation images are tested on. It is not downloaded: its owners give it to those who register. The
classes sorted by name are the official labels.
"""

from __future__ import annotations

from gnpcli.config.schema import DataConfig
from gnpcli.data.archives import places
from gnpcli.data.base import DataInfo, Dataset
from gnpcli.data.progress import Progress
from gnpcli.data.sources import folder
from gnpcli.errors import DataError

NUM_TRAIN, NUM_VALIDATION, NUM_CLASSES = 1_281_167, 50_000, 1_000


def describe(config: DataConfig) -> DataInfo:
    """Answer `gnpcli.data.registry.describe` from the names in the folder, else from the published
    sizes.

    Of those `num_validation` is right to a few images: classes are not all of one size.
    """
    config = _with_defaults(config)
    if (root := places.image_folder("imagenet", config.dir)) is not None:
        return folder.describe_layout(
            folder.scan_for(config, root), config, streamed=bool(config.stream)
        )
    num_validation = round(NUM_TRAIN * config.validation_fraction)
    return DataInfo(
        name=config.name,
        num_train=NUM_TRAIN - num_validation,
        num_validation=num_validation,
        num_test=NUM_VALIDATION,
        image_size=config.image_size or folder.STREAMED_SIZE,
        channels=3,
        num_classes=NUM_CLASSES,
        present=False,
        is_streamed=bool(config.stream),
    )


def load(config: DataConfig, progress: Progress | None = None) -> Dataset:
    """Return the splits of the folder at `data.dir` or in a default place.

    Raises:
        DataError: If there is none, with where it was looked for and how it has to be laid out.
    """
    config = _with_defaults(config)
    root = places.image_folder("imagenet", config.dir)
    if root is None:
        where = " or ".join(places.candidates("imagenet", config.dir))
        raise DataError(
            f"no ImageNet images in {where}: give the folder that holds train/<class>/*.JPEG and "
            "val/<class>/*.JPEG "
            "(or val/*.JPEG and a file of their classes) with --data-dir (data.dir)"
        )
    return folder.load_layout(folder.scan_for(config, root), config, progress)


def _with_defaults(config: DataConfig) -> DataConfig:
    """Return `config` streamed, at 224 pixels, where it does not say otherwise."""
    return config.model_copy(
        update={
            "stream": config.stream is not False,
            "image_size": config.image_size or folder.STREAMED_SIZE,
        }
    )
