"""Data sources: registry, digits, CIFAR-10 as an image folder, and the types that all share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from gnpcli.config.schema import DataConfig
from gnpcli.data.base import Dataset, DataSpec, Split
from gnpcli.data.registry import SOURCES, check_data, describe_data, load_dataset
from gnpcli.data.sources.cifar10 import CLASS_NAMES
from gnpcli.data.statistics import channel_statistics
from gnpcli.data.validation import carve_validation, validation_counts
from gnpcli.errors import ConfigError, DataError
from tests.conftest import SHARED_DATA
from tests.folders import check_described, put

CIFAR = SHARED_DATA / "cifar10-jpeg.tar.xz"

pytestmark = pytest.mark.usefixtures("cache")


# --- registry


def test_importing_the_package_imports_neither_jax_nor_numpy() -> None:
    code = (
        "import sys, gnpcli.data; print([m for m in ('jax', 'numpy', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("name", [name for name in SOURCES if ":" not in name])
def test_registered_names_are_described_without_data(name: str) -> None:
    config = DataConfig(name=name)
    check_data(config)
    info = describe_data(config)
    assert info is not None
    assert info.name == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "cifar01",
            r"unknown data set 'cifar01' - did you mean 'cifar10'\?.*digits, cifar10, "
            r".*folder:DIR, tfds:NAME",
        ),
        ("cifar-100", "did you mean 'cifar100'"),
        ("svhn", "did you mean 'svhn_cropped'"),
        ("fashion-mnist", "did you mean 'fashion_mnist'"),
        ("wordnet", r"unknown data set 'wordnet' \(choices: digits"),
        ("tfds:", "'tfds:' names no data set: write tfds:NAME"),
        ("tfds", "'tfds' names no data set: write tfds:NAME"),
        ("folders:x", "unknown data set 'folders:x'"),
        ("folder:", "'folder:' names no directory: write folder:DIR"),
        ("folder", "'folder' names no directory: write folder:DIR"),
        ("", "unknown data set ''"),
    ],
)
def test_unknown_name(name: str, message: str) -> None:
    for function in (check_data, describe_data, load_dataset):
        with pytest.raises(ConfigError, match=message) as caught:
            function(DataConfig(name=name))
        assert caught.value.key == "data.name"


def test_a_bare_directory_is_suggested_as_what_it_may_be(tmp_path: Path) -> None:
    (tmp_path / "birds").mkdir()
    with pytest.raises(ConfigError, match="did you mean 'folder:birds'"):
        check_data(DataConfig(name="birds"))
    (tmp_path / "d" / "poems").mkdir(parents=True)
    with pytest.raises(ConfigError, match="did you mean 'tfds:poems'"):
        check_data(DataConfig(name="poems", dir="d"))


@pytest.mark.parametrize("name", ["digits", "folder:x"])
def test_a_directory_that_would_be_ignored_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.dir is not used by") as caught:
        check_data(DataConfig(name=name, dir="y"))
    assert caught.value.key == "data.dir"


@pytest.mark.parametrize("name", ["digits", "cifar10", "folder:x", "tfds:x", "imagenet"])
@pytest.mark.parametrize(
    ("key", "value", "takers"),
    [
        ("train_split", "train", {"cifar10", "tfds:x"}),
        ("test_split", "test", {"cifar10", "tfds:x"}),
        ("val_labels", "labels.txt", {"folder:x", "imagenet"}),
        ("stream", True, {"folder:x", "imagenet"}),
        ("stream", False, {"digits", "cifar10", "folder:x", "tfds:x", "imagenet"}),
    ],
)
def test_a_key_that_would_be_ignored_is_refused(
    name: str, key: str, value: object, takers: set[str]
) -> None:
    config = DataConfig(name=name, **{key: value})  # type: ignore[arg-type]
    if name in takers:
        check_data(config)
    else:
        with pytest.raises(
            ConfigError, match=rf"data\.{key} is for .*, not for '{name}': leave it out"
        ) as caught:
            check_data(config)
        assert caught.value.key == f"data.{key}"


# --- types


def test_spec_survives_json() -> None:
    spec = load_dataset(DataConfig(name="digits")).spec
    assert DataSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    for key, wrong in {"mean": 0.5, "class_names": 10, "image_size": "8", "channels": None}.items():
        with pytest.raises(DataError, match=f"not the description of a data set: {key}: "):
            DataSpec.from_dict({**spec.to_dict(), key: wrong})
    values = spec.to_dict()
    values["means"] = values.pop("mean")
    with pytest.raises(DataError, match="missing or unknown mean, means"):
        DataSpec.from_dict(values)


def test_split_refuses_other_types() -> None:
    with pytest.raises(ValueError, match="uint8"):
        Split(np.zeros((2, 4, 4, 1), np.float32), np.zeros(2, np.int32))
    with pytest.raises(ValueError, match=r"int32 \[2\]"):
        Split(np.zeros((2, 4, 4, 1), np.uint8), np.zeros(3, np.int32))


def test_statistics_are_numpys_and_a_constant_channel_can_be_divided_by() -> None:
    images = np.random.default_rng(0).integers(0, 256, (700, 5, 5, 3), dtype=np.uint8)
    images[..., 2] = 7
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, images.mean(axis=(0, 1, 2)) / 255, rtol=1e-12)
    np.testing.assert_allclose(std[:2], images.std(axis=(0, 1, 2))[:2] / 255, rtol=1e-9)
    assert std[2] == 1 / 255
    # The largest sums there can be stay exact.
    mean, _ = channel_statistics(np.full((600, 1, 1, 1), 255, np.uint8))
    assert mean == (1.0,)


def toy(labels: list[int]) -> Dataset:
    train = Split(
        np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1), np.array(labels, np.int32)
    )
    names = tuple(str(label) for label in range(max(labels) + 1))
    return Dataset(
        DataSpec(name="toy", class_names=names, image_size=1, channels=1, mean=(0,), std=(1,)),
        train,
        None,
        None,
    )


def test_validation_is_disjoint_stratified_and_the_same_every_time() -> None:
    labels = np.random.default_rng(0).choice(4, size=200, p=[0.5, 0.3, 0.19, 0.01]).tolist()
    whole = toy(labels)
    a, b = carve_validation(whole, 0.2), carve_validation(whole, 0.2)
    assert a.validation is not None
    assert b.validation is not None
    np.testing.assert_array_equal(a.validation.images, b.validation.images)
    both = np.concatenate([a.train.images, a.validation.images]).ravel()
    np.testing.assert_array_equal(np.sort(both), np.arange(200))
    counts = np.bincount(labels, minlength=4)
    np.testing.assert_array_equal(
        np.bincount(a.validation.labels, minlength=4), validation_counts(counts.tolist(), 0.2)
    )
    for split in (a.train, a.validation):
        np.testing.assert_array_equal(split.labels, np.array(labels)[split.images.ravel()])
        assert (np.diff(split.images.ravel().astype(int)) > 0).all()
    # Spread over the class's images, not a tail of them.
    zeros = a.validation.images.ravel()[a.validation.labels == 0]
    assert zeros.min() < 20
    assert zeros.max() > 180


def test_validation_never_takes_the_last_image_of_a_class() -> None:
    assert validation_counts([1, 2, 3, 10], 0.99) == [0, 1, 2, 9]
    assert validation_counts([10, 10], 0.0) == [0, 0]
    assert validation_counts([0, 4], 0.5) == [0, 2]


def test_validation_fraction_that_takes_nothing_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"validation_fraction 0\.01 of 6 training images in 2 classes"
    ) as caught:
        carve_validation(toy([0, 0, 0, 1, 1, 1]), 0.01)
    assert caught.value.key == "data.validation_fraction"
    with pytest.raises(ValueError, match="already"):
        carve_validation(carve_validation(toy([0, 0, 1, 1]), 0.5), 0.5)


# --- digits


def test_digits_are_complete_and_every_fifth_is_held_out() -> None:
    data = load_dataset(DataConfig(name="digits"))
    assert data.validation is None
    assert data.test is not None
    assert data.train.images.shape == (1437, 8, 8, 1)
    assert data.test.images.shape == (360, 8, 8, 1)
    train = np.bincount(data.train.labels)
    np.testing.assert_array_equal(train, [136, 154, 151, 135, 143, 143, 151, 153, 138, 133])
    np.testing.assert_array_equal(
        np.bincount(data.test.labels), [42, 28, 26, 48, 38, 39, 30, 26, 36, 47]
    )
    # Sixteenths of 255: all 17 values, back to the original ones without loss.
    values = np.unique(data.train.images)
    np.testing.assert_array_equal(np.rint(values / 255 * 16), np.arange(17))
    np.testing.assert_array_equal(values, np.floor(np.arange(17) * 255 / 16 + 0.5))
    # The first image of all, held out, is scikit-learn's first zero.
    np.testing.assert_array_equal(
        np.rint(data.test.images[0, 0, :, 0] / 255 * 16), [0, 0, 5, 13, 9, 1, 0, 0]
    )
    assert data.test.labels[:4].tolist() == [0, 5, 0, 5]
    assert data.train.labels[:8].tolist() == [1, 2, 3, 4, 6, 7, 8, 9]
    (mean,) = data.spec.mean
    np.testing.assert_allclose(mean, data.train.images.mean() / 255)
    assert data.spec.class_names == tuple("0123456789")


@pytest.mark.parametrize("values", [{}, {"validation_fraction": 0.1}, {"image_size": 12}])
def test_digits_are_as_described(values: dict[str, object]) -> None:
    check_described(DataConfig(name="digits", **values))  # type: ignore[arg-type]


# --- CIFAR-10


def test_cifar10_without_images_is_described_from_what_is_published(tmp_path: Path) -> None:
    info = describe_data(DataConfig(name="cifar10", dir=str(tmp_path), validation_fraction=0.1))
    assert info is not None
    assert not info.present
    assert (info.num_train, info.num_validation, info.num_test) == (45_000, 5_000, 10_000)
    assert (info.image_size, info.channels, info.num_classes) == (32, 3, 10)


@pytest.mark.parametrize("place", ["given", "below", "variable", "working directory"])
def test_cifar10_is_found(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / ("data" if place == "working directory" else "x")
    for name in CLASS_NAMES:
        put(base / "cifar10" / "train" / name / "0.png", size=32)
        put(base / "cifar10" / "test" / name / "0.png", size=32)
    given = {"given": str(base / "cifar10"), "below": str(base)}.get(place)
    if place == "variable":
        monkeypatch.setenv("GNP_DATA_DIR", str(base))
    config = DataConfig(name="cifar10", dir=given)
    check_described(config)
    spec = load_dataset(config).spec
    assert spec.name == "cifar10"
    assert spec.class_names == CLASS_NAMES
    assert (spec.mean, spec.std) == ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


def test_cifar10_with_other_classes_is_refused(root: Path) -> None:
    for function in (describe_data, load_dataset):
        with pytest.raises(
            DataError, match=r"is not CIFAR-10: it lacks airplane.*--dataset folder:"
        ):
            function(DataConfig(name="cifar10", dir=str(root)))


@pytest.fixture(scope="module")
def real_cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack 100 training and 20 test images of each class."""
    if not CIFAR.exists():
        pytest.skip(f"{CIFAR} is absent: the real CIFAR-10 images are not part of the project")
    root = tmp_path_factory.mktemp("cifar10")
    taken: dict[str, int] = {}
    with tarfile.open(CIFAR, "r|xz") as archive:
        for member in archive:
            folder = os.path.dirname(member.name)
            limit = 100 if "train" in folder else 20
            if not member.isfile() or taken.get(folder, 0) >= limit:
                continue
            taken[folder] = taken.get(folder, 0) + 1
            archive.extract(member, root, filter="data")
    return root


def test_real_cifar10(real_cifar: Path) -> None:
    config = DataConfig(name="cifar10", dir=str(real_cifar))
    data = load_dataset(config)
    check_described(config)
    assert np.bincount(data.train.labels).tolist() == [100] * 10
    assert data.test is not None
    assert np.bincount(data.test.labels).tolist() == [20] * 10
    # 1,000 images: the mean of a channel has a deviation of about 0.005 (images vary by 0.15 as a
    # whole).
    mean, std = channel_statistics(data.train.images)
    np.testing.assert_allclose(mean, (0.4913, 0.4821, 0.4465), atol=0.025)
    np.testing.assert_allclose(std, (0.2452, 0.2428, 0.2606), atol=0.015)
    # Ships and airplanes stand before blue, frogs and deer do not: the labels are the official
    # ones.
    blue = np.array(
        [data.train.images[data.train.labels == label][..., 2].mean() for label in range(10)]
    )
    assert min(blue[0], blue[8]) > max(blue[4], blue[6])
