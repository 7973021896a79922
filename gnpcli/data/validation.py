"""Training images set aside for validation: how many of each class, and which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from gnpcli.data.base import Dataset, Labels
from gnpcli.errors import ConfigError


def validation_counts(class_counts: Sequence[int], fraction: float) -> list[int]:
    """Return how many of each class's training images `fraction` sets aside for validation.

    Each count is ``fraction * count`` rounded half up, and at most ``count - 1``: every class keeps
    an image to train on.

    >>> validation_counts([100, 5, 1], 0.3)
    [30, 2, 0]

    Args:
        class_counts: Training images of each class.
        fraction: At least 0, below 1. 0 sets nothing aside.

    Raises:
        ConfigError: If `fraction` is above 0 and too small to set any image aside.
    """
    counts = [max(0, min(int(fraction * count + 0.5), count - 1)) for count in class_counts]
    if fraction > 0 and not any(counts):
        raise ConfigError(
            f"data.validation_fraction {fraction:g} of {sum(class_counts)} training images in "
            f"{len(class_counts)} classes leaves the validation split empty: raise it, or set it "
            "to 0",
            key="data.validation_fraction",
        )
    return counts


def carve_validation(dataset: Dataset, fraction: float) -> Dataset:
    """Move `fraction` of every training class to a validation split.

    The images are taken in equal strides through those of the class. Which ones go depends on
    their order and number alone: there is no seed. Strides rather than a tail, because files are
    often sorted by something that matters (a date, a subject), and validation should look like
    all of training. Both splits keep the order of the images. `DataSpec.mean` and `std` stay those
    of the whole training split.

    Raises:
        ConfigError: As `validation_counts`.
        ValueError: If there is a validation split already.
    """
    if dataset.validation is not None:
        raise ValueError("the data set has a validation split already")
    labels = dataset.train.labels
    class_counts = np.bincount(labels, minlength=dataset.spec.num_classes).tolist()
    chosen = _in_strides(labels, validation_counts(class_counts, fraction))
    return replace(
        dataset,
        train=dataset.train.take(~chosen),
        validation=dataset.train.take(chosen),
    )


def _in_strides(labels: Labels, counts: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Return bool ``[N]``: True at ``counts[label]`` images of each label.

    An image is the middle of each of `count` equal parts of its class, computed in integers, so
    that it is the same on every machine.
    """
    chosen = np.zeros(len(labels), dtype=bool)
    for label, count in enumerate(counts):
        if count == 0:
            continue
        members = np.flatnonzero(labels == label)
        middles = (2 * np.arange(count) + 1) * len(members) // (2 * count)
        chosen[members[middles]] = True
    return chosen
