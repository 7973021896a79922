"""Data sets of NumPy arrays: what is taken, and what is refused in which words."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gnpcli.data.base import Dataset, FileSplit, Split
from gnpcli.data.statistics import channel_statistics
from gnpcli.errors import ConfigError, DataError


def images(count: int, size: int = 8, channels: int = 3) -> npt.NDArray[np.uint8]:
    values = np.random.default_rng(count).integers(256, size=(count, size, size, channels))
    return values.astype(np.uint8)


def labels(*values: int, dtype: npt.DTypeLike = np.int64) -> npt.NDArray[Any]:
    return np.array(values, dtype)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
def test_arrays_become_splits(dtype: npt.DTypeLike) -> None:
    data = Dataset.from_arrays(
        train=(images(4), labels(0, 1, 2, 1, dtype=dtype)),
        validation=(images(2), labels(2, 2, dtype=dtype)),
        test=(images(3), labels(0, 0, 1, dtype=dtype)),
        class_names=("ant", "bee", "cat"),
        name="insects",
    )
    assert isinstance(data.train, Split)
    assert isinstance(data.validation, Split)
    np.testing.assert_array_equal(data.train.images, images(4))
    np.testing.assert_array_equal(data.train.labels, [0, 1, 2, 1])
    np.testing.assert_array_equal(data.validation.labels, [2, 2])
    assert data.train.labels.dtype == np.int32
    assert data.spec.class_names == ("ant", "bee", "cat")
    assert (data.spec.image_size, data.spec.channels, data.spec.num_classes) == (8, 3, 3)
    assert (data.spec.mean, data.spec.std) == channel_statistics(images(4))
    info = data.info
    assert (info.name, info.num_train, info.num_validation, info.num_test) == (
        "arrays:insects",
        4,
        2,
        3,
    )
    assert (info.image_size, info.channels, info.num_classes) == (8, 3, 3)
    assert info.present
    assert not info.is_streamed


def test_images_are_not_copied_and_classes_are_numbered() -> None:
    train = images(4, channels=1)
    data = Dataset.from_arrays(
        train=(train, labels(0, 1, 2, 1)), test=(images(1, channels=1), labels(2))
    )
    assert isinstance(data.train, Split)
    assert np.shares_memory(data.train.images, train)
    assert data.spec.class_names == ("0", "1", "2")
    assert data.validation is None
    assert data.info.num_validation == 0


def test_files_are_counted_too() -> None:
    data = Dataset.from_arrays(train=(images(2), labels(0, 1)), test=(images(1), labels(0)))
    files = FileSplit(["a", "b"], labels(0, 1, dtype=np.int32))
    streamed = Dataset(data.spec, files, None, None).info
    assert (streamed.num_train, streamed.num_test, streamed.is_streamed) == (2, 0, True)


GOOD = (images(3), labels(0, 1, 1))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"test": (images(3).astype(np.float32) / 255, labels(0, 1, 1))},
            "the test images are float32: give uint8 pixel values from 0 to 255",
        ),
        ({"test": (images(3)[0], labels(0, 1, 1))}, "the test images have the shape (8, 8, 3)"),
        ({"test": (images(3)[:, :4], labels(0, 1, 1))}, "the shape (3, 4, 8, 3): give square ones"),
        ({"train": (images(3, channels=4), labels(0, 1, 1))}, "with 1 or 3 channels"),
        ({"validation": (images(0), labels())}, "the validation split is empty"),
        ({"test": (images(3), np.zeros(3, np.float32))}, "the test labels are float32"),
        ({"test": (images(3), np.zeros(3, np.bool_))}, "the test labels are bool"),
        (
            {"train": (images(3), labels(0, 1))},
            "the train labels have the shape (2,): give one for each of the 3 images, (3,)",
        ),
        (
            {"train": (images(3), np.eye(3, dtype=np.int64))},
            "the train labels have the shape (3, 3)",
        ),
        (
            {"test": (images(3), labels(0, 1, 2)), "class_names": ("ant", "bee")},
            "the test labels go from 0 to 2: 2 classes have the labels 0 to 1",
        ),
        ({"test": (images(3), labels(0, 2, 1))}, "the test labels go from 0 to 2"),
        ({"train": (images(3), labels(-1, 1, 0))}, "the train labels go from -1 to 1"),
        (
            {"test": (images(3, size=6), labels(0, 1, 1))},
            "the test images are 6x6x3 (rows x columns x channels), those of train 8x8x3",
        ),
        (
            {"validation": (images(3, channels=1), labels(0, 1, 1))},
            "the validation images are 8x8x1",
        ),
        ({"test": None}, "there are no held-out images: give `validation` or `test`"),
        ({"train": (images(3), labels(0, 0, 0))}, "there are 1 classes"),
        ({"class_names": ("ant", "ant")}, "class_names has 'ant' twice"),
        ({"class_names": "ab"}, "class_names is the text 'ab'"),
    ],
)
def test_arrays_that_are_no_data_set_are_refused(wrong: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"train": GOOD, "test": GOOD, **wrong}
    with pytest.raises(DataError) as error:
        Dataset.from_arrays(**given)
    assert message in str(error.value)


def test_other_statistics_are_for_the_same_channels() -> None:
    data = Dataset.from_arrays(train=GOOD, test=GOOD)
    changed = data.with_statistics([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert changed.spec.mean == (0.1, 0.2, 0.3)
    assert changed.spec.std == (0.4, 0.5, 0.6)
    assert changed.train is data.train
    with pytest.raises(ConfigError, match="1 channel"):
        data.with_statistics([0.1], [0.4])
