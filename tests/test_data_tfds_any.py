"""``tfds:NAME``: data sets of TFDS that gnp knows nothing of, written with TFDS's own writer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gnpcli.config.schema import DataConfig
from gnpcli.data.images.resize import resize
from gnpcli.data.registry import describe_data, load_dataset
from gnpcli.data.statistics import channel_statistics
from gnpcli.errors import DataError
from tests.archives import check_images, random_images, write_own_tfds, write_tfds
from tests.folders import check_described

pytestmark = pytest.mark.usefixtures("cache")


def own(
    data_dir: Path,
    name: str = "birds",
    config: str | None = None,
    **splits: Sequence[tuple[int, ...]],
) -> DataConfig:
    """Prepare splits, given as (width, height, label) of each image; return what names them."""
    import tensorflow_datasets as tfds

    random = np.random.default_rng(0)
    examples: dict[str, list[dict[str, object]]] = {
        split: [
            {
                "image": Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)),
                "label": label,
            }
            for width, height, label in images
        ]
        for split, images in splits.items()
    }
    sizes = {image[:2] for images in splits.values() for image in images}
    shape = (*next(iter(sizes))[::-1], 3) if len(sizes) == 1 else (None, None, 3)
    features = {
        "image": tfds.features.Image(shape=shape),
        "label": tfds.features.ClassLabel(names=["a tit", "crow"]),
    }
    write_own_tfds(data_dir, name, examples, features, config)
    return DataConfig(name=f"tfds:{name}" + (f"/{config}" if config else ""), dir=str(data_dir))


SQUARE = [(6, 6, label) for label in (0, 1, 0, 1, 1)]


@pytest.mark.parametrize("config", [None, "big"])
def test_any_classification_set_needs_no_code(tmp_path: Path, config: str | None) -> None:
    named = own(tmp_path, config=config, train=SQUARE, test=SQUARE[:2], validation=SQUARE[:3])
    data = check_described(named)
    assert data.spec.class_names == ("a tit", "crow")
    assert (data.spec.mean, data.spec.std) == channel_statistics(data.train.images)
    assert sorted(data.train.labels.tolist()) == [0, 0, 1, 1, 1]
    assert data.validation is not None
    assert data.test is not None
    assert (len(data.validation), len(data.test)) == (3, 2)
    data = check_described(
        named.model_copy(update={"test_split": "validation", "train_split": "test+train"})
    )
    assert data.validation is None
    assert sorted(data.train.labels[:2].tolist()) == [0, 1]


def test_held_out_where_there_is_no_test(tmp_path: Path) -> None:
    data = check_described(own(tmp_path, train=SQUARE, validation=SQUARE[:3]))
    assert data.validation is None
    assert data.test is not None
    assert len(data.test) == 3
    config = own(tmp_path, "crows", train=SQUARE)
    for function in (describe_data, load_dataset):
        with pytest.raises(
            DataError,
            match=r"crows/1\.0\.0 has no held-out split: set data\.test_split, or data\.val",
        ):
            function(config)
    assert check_described(config.model_copy(update={"validation_fraction": 0.4})).test is None


def test_sizes_that_differ_need_image_size(tmp_path: Path) -> None:
    config = own(tmp_path, train=[(6, 6, 0), (9, 8, 1)], test=[(8, 9, 1)])
    with pytest.raises(
        DataError, match=r"(differ in size: .*set|not square; set) data\.image_size"
    ):
        load_dataset(config)
    data = check_described(config.model_copy(update={"image_size": 4}))
    assert data.train.images.shape == (2, 4, 4, 3)


def test_all_of_one_shape_that_is_not_square(tmp_path: Path) -> None:
    config = own(tmp_path, train=[(9, 6, 0), (9, 6, 1)], test=[(9, 6, 1)])
    with pytest.raises(DataError, match=r"images of 9x6 pixels, not square; set data\.image_size"):
        load_dataset(config)
    import tensorflow_datasets

    source = tensorflow_datasets.builder_from_directory(
        tmp_path / "birds" / "1.0.0"
    ).as_data_source("train")
    data = check_described(config.model_copy(update={"image_size": 4}))
    want = np.stack([resize(source[i]["image"][:, 1:7], 4) for i in range(2)])
    np.testing.assert_array_equal(data.train.images, want)


def test_a_registered_set_is_read_by_its_tfds_name(tmp_path: Path) -> None:
    counts = {"train": 150, "test": 50}
    images = {
        split: (x[:, :28, :28, :1], y)
        for split, (x, y) in random_images("cifar10", counts, seed=1).items()
    }
    write_tfds(tmp_path, images, name="mnist")
    data = check_described(DataConfig(name="tfds:mnist", dir=str(tmp_path)))
    check_images(data, images)
    assert data.spec.class_names == tuple("0123456789")
    assert data.spec.channels == 1


def test_other_features_are_named(tmp_path: Path) -> None:
    import tensorflow_datasets as tfds

    features = {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=2)}
    write_own_tfds(tmp_path, "poems", {"train": [{"text": "x", "label": 0}]}, features)
    with pytest.raises(
        DataError,
        match=r"poems/1\.0\.0 is no image classification set: its features are label, text",
    ):
        load_dataset(DataConfig(name="tfds:poems", dir=str(tmp_path), validation_fraction=0.5))


def test_absent_names_say_what_is_there(tmp_path: Path) -> None:
    own(tmp_path, config="big", train=SQUARE)
    own(tmp_path, "crows", train=SQUARE)
    for name, message in (
        (
            "crow",
            r"in .*/crow - did you mean 'crows'\? \(there: birds/big, crows\): give its data_dir "
            r"with --data-dir",
        ),
        ("birds", "tfds:birds has to be one of tfds:birds/big"),
    ):
        assert describe_data(DataConfig(name=f"tfds:{name}", dir=str(tmp_path))) is None
        with pytest.raises(DataError, match=message):
            load_dataset(DataConfig(name=f"tfds:{name}", dir=str(tmp_path)))


def test_unlabelled_splits_are_refused(tmp_path: Path) -> None:
    config = own(tmp_path, train=SQUARE, test=[(6, 6, -1)], validation=SQUARE)
    with pytest.raises(DataError, match=r"labels outside 0 to 1: choose labelled splits"):
        load_dataset(config)
    check_described(config.model_copy(update={"test_split": "validation"}))
