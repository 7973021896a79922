"""The bundled data set: 1,797 real handwritten digits, 8x8 pixels, grey, 10 classes.

"Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, 1998, UCI Machine Learning
Repository, https://archive.ics.uci.edu/dataset/80, licensed CC BY 4.0 (``digits.LICENSE.txt``), in
the copy that scikit-learn distributes, which is the test part of the UCI data: 13 writers who are
not among the 30 of its training part.

``digits.npz`` holds scikit-learn's ``load_digits()`` unchanged and in its order. `values`, uint8
``[1797, 8, 8]``, is its ``images``: whole numbers from 0 to 16, how many of a cell's 4x4 pixels
were ink. `labels`, uint8 ``[1797]``, is its ``target``. The file was written with
``numpy.savez_compressed``. `load` maps a value v to ``(255 v + 8) // 16``, which is 255 v / 16
rounded half up: 0 stays 0, 16 becomes 255, and no two values meet.

Every fifth image, from the first on, is held out for the test: 360 images. The file goes writer by
writer, so this split holds out images, not writers. It is the easier of the two: the
1-nearest-neighbour error on the pixels is 2.2 %, against 4.4 % with the last 360 images held out.
A demonstration of a minute can hope to solve it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gnpcli.config.schema import DataConfig
from gnpcli.data.base import (
    DataInfo,
    Dataset,
    DataSpec,
    Images,
    Split,
)
from gnpcli.data.images.resize import resize
from gnpcli.data.progress import ProgressListener
from gnpcli.data.statistics import channel_statistics
from gnpcli.data.validation import validation_counts

IMAGE_SIZE = 8
NUM_TEST = 360
TRAIN_COUNTS = (136, 154, 151, 135, 143, 143, 151, 153, 138, 133)
"""Training images of each class before any are set aside for validation: 1,437 in all."""


def describe(config: DataConfig) -> DataInfo:
    """Answer `gnpcli.data.registry.describe_data` from constants."""
    num_validation = sum(validation_counts(TRAIN_COUNTS, config.validation_fraction))
    return DataInfo(
        name="digits",
        num_train=sum(TRAIN_COUNTS) - num_validation,
        num_validation=num_validation,
        num_test=NUM_TEST,
        image_size=config.image_size or IMAGE_SIZE,
        channels=1,
        num_classes=len(TRAIN_COUNTS),
        present=True,
    )


def load(config: DataConfig, progress: ProgressListener | None = None) -> Dataset:
    """Return 1,437 training and 360 test images.

    Nothing is downloaded, and `progress` is not called.
    """
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as file:
        values, labels = file["values"], file["labels"].astype(np.int32)
    images: Images = ((values.astype(np.uint16) * 255 + 8) // 16).astype(np.uint8)[..., None]
    if config.image_size is not None:
        images = np.stack([resize(image, config.image_size) for image in images])
    is_test = np.arange(len(images)) % 5 == 0
    train, test = (Split(images[chosen], labels[chosen]) for chosen in (~is_test, is_test))
    mean, std = channel_statistics(train.images)
    spec = DataSpec(
        name="digits",
        class_names=tuple(str(digit) for digit in range(len(TRAIN_COUNTS))),
        image_size=images.shape[1],
        channels=1,
        mean=mean,
        std=std,
    )
    return Dataset(spec, train, validation=None, test=test)
