"""``cifar10``: CIFAR-10 as an image folder, ``{train,test}/<class>/``, or as prepared by TFDS, ``3.0.2/``.

Both are normalised by the published channel statistics.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. 50,000 training and 10,000 test images,
32x32, RGB; the class folders sorted by name are the official labels.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

from gnpcli.config.schema import DataConfig
from gnpcli.data import tfds
from gnpcli.data.base import DataInfo, Dataset, DataSpec, Split, validation_counts
from gnpcli.data.folder import assemble, describe_layout, load_images
from gnpcli.data.layout import TREE, Layout, scan
from gnpcli.errors import DataError

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN = (0.4914, 0.4822, 0.4465)
"""Per channel over the 50,000 training images, of pixel values in [0, 1]."""
STD = (0.2470, 0.2435, 0.2616)
"""Per channel over the 50,000 training images, of pixel values in [0, 1]."""
IMAGE_SIZE = 32
TRAIN_COUNTS = (5_000,) * 10
NUM_TEST = 10_000


def describe(config: DataConfig) -> DataInfo:
    """Answer `gnpcli.data.describe` from the images where they are present, else from the published sizes."""
    root = _find(config.dir)
    if root is not None:
        return describe_layout(_scan(root, config), config)
    prepared = _find_prepared(config.dir)
    num_train, num_test, class_counts = sum(TRAIN_COUNTS), NUM_TEST, list(TRAIN_COUNTS)
    if prepared is not None:
        num_train, num_test = prepared.counts["train"], prepared.counts["test"]
        # Only a part of CIFAR-10 has classes of unknown sizes, and only validation has to know them.
        if num_train != sum(TRAIN_COUNTS) and config.validation_fraction > 0:
            class_counts = np.bincount(tfds.read_labels(prepared, "train"), minlength=len(CLASS_NAMES)).tolist()
    num_validation = sum(validation_counts(class_counts, config.validation_fraction))
    return DataInfo(
        name="cifar10",
        num_train=num_train - num_validation,
        num_validation=num_validation,
        num_test=num_test,
        image_size=config.image_size or IMAGE_SIZE,
        channels=len(MEAN),
        num_classes=len(CLASS_NAMES),
        present=prepared is not None,
    )


def load(config: DataConfig, progress: Callable[[int, int], None] | None = None) -> Dataset:
    """Return the splits of the folder found at `data.dir` or in a default place.

    An image folder goes before a prepared TFDS folder where both are there.

    Raises:
        DataError: If no CIFAR-10 folder is there, or one whose classes are not CIFAR-10's, or on a bad image or record.
    """
    root = _find(config.dir)
    if root is None:
        prepared = _find_prepared(config.dir)
        if prepared is None:
            places = " or ".join(_places(config.dir))
            raise DataError(
                f"no CIFAR-10 images in {places}: give the folder that holds {TREE}, or cifar10/{tfds.TREE} as "
                "prepared by TFDS, with --data-dir (data.dir)"
            )
        return _load_prepared(prepared, config, progress)
    layout = _scan(root, config)
    images = load_images(layout, config.image_size, progress)
    if images["train"].shape[-1] != len(MEAN):
        raise DataError(f"{root} holds grey images only: CIFAR-10 is in colour")
    return assemble(layout, images, name="cifar10", mean=MEAN, std=STD)


def _load_prepared(prepared: tfds.Prepared, config: DataConfig, progress: Callable[[int, int], None] | None) -> Dataset:
    arrays = tfds.load_arrays(
        prepared,
        splits=("train", "test"),
        class_names=CLASS_NAMES,
        shape=(IMAGE_SIZE, IMAGE_SIZE, len(MEAN)),
        image_size=config.image_size,
        progress=progress,
    )
    spec = DataSpec(
        name="cifar10",
        class_names=CLASS_NAMES,
        image_size=config.image_size or IMAGE_SIZE,
        channels=len(MEAN),
        mean=MEAN,
        std=STD,
    )
    train, test = (Split(arrays[name], arrays[f"{name}_labels"]) for name in ("train", "test"))
    return Dataset(spec, train, None, test)


def _places(directory: str | None) -> list[str]:
    if directory is not None:
        own = os.path.expanduser(directory)
        return [own, os.path.join(own, "cifar10")]
    shared = os.environ.get("GNP_DATA_DIR")
    return [os.path.join(place, "cifar10") for place in ([os.path.expanduser(shared)] if shared else []) + ["data"]]


def _find(directory: str | None) -> str | None:
    for place in _places(directory):
        if os.path.isdir(os.path.join(place, "train")):
            return place
    return None


def _find_prepared(directory: str | None) -> tfds.Prepared | None:
    for place in _places(directory):
        root = tfds.find(place)
        if root is not None:
            return tfds.examine(root, name="cifar10", splits=("train", "test"))
    return None


def _scan(root: str, config: DataConfig) -> Layout:
    layout = scan(root, validation_fraction=config.validation_fraction)
    if layout.class_names != CLASS_NAMES:
        missing = sorted(set(CLASS_NAMES) - set(layout.class_names))
        strange = sorted(set(layout.class_names) - set(CLASS_NAMES))
        what = f"it lacks {', '.join(missing)}" if missing else f"it also holds {', '.join(strange)}"
        raise DataError(f"{root}/train is not CIFAR-10: {what}; for other images use --dataset folder:{root}")
    return layout
