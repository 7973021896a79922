"""Data sources: registry, digits, image folders and everything that can be wrong with them, the cache."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gnpcli.config.schema import DataConfig
from gnpcli.data import SOURCES, check_data, describe, load_dataset
from gnpcli.data import folder as folder_source
from gnpcli.data.base import (
    Dataset,
    DataSpec,
    Split,
    carve_validation,
    channel_statistics,
    validation_counts,
)
from gnpcli.data.cifar10 import CLASS_NAMES
from gnpcli.data.resize import resize
from gnpcli.errors import ConfigError, DataError

CIFAR = Path(__file__).parents[2] / "shared/data/cifar10-jpeg.tar.xz"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test a cache of its own and no data from outside."""
    monkeypatch.setenv("GNP_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("GNP_DATA_DIR", "TFDS_DATA_DIR", "GNP_CHECKSUMS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GNP_MIRROR", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def pixels(seed: int, size: int = 6, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, size * size * len(mode), dtype=np.uint8)
    return Image.frombytes(mode, (size, size), values.tobytes())


def put(path: Path, seed: int = 0, size: int = 6, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels(seed, size, mode).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder of two classes with 3 training and 2 test images each."""
    for split, count in (("train", 3), ("test", 2)):
        for label, name in enumerate(("ant", "bee")):
            for index in range(count):
                put(tmp_path / "data set" / split / name / f"{index}.png", seed=100 * label + index)
    return tmp_path / "data set"


def of(root: Path, **values: object) -> DataConfig:
    return DataConfig(name=f"folder:{root}", **values)  # type: ignore[arg-type]


# --- registry


def test_importing_the_package_imports_neither_jax_nor_numpy() -> None:
    code = "import sys, gnpcli.data; print([m for m in ('jax', 'numpy', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("name", [name for name in SOURCES if ":" not in name])
def test_registered_names_are_described_without_data(name: str) -> None:
    config = DataConfig(name=name)
    check_data(config)
    info = describe(config)
    assert info is not None
    assert info.name == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar01", r"unknown data set 'cifar01' - did you mean 'cifar10'\?.*digits, cifar10, .*folder:DIR, tfds:NAME"),
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
    for function in (check_data, describe, load_dataset):
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
def test_a_key_that_would_be_ignored_is_refused(name: str, key: str, value: object, takers: set[str]) -> None:
    config = DataConfig(name=name, **{key: value})  # type: ignore[arg-type]
    if name in takers:
        check_data(config)
    else:
        with pytest.raises(ConfigError, match=rf"data\.{key} is for .*, not for '{name}': leave it out") as caught:
            check_data(config)
        assert caught.value.key == f"data.{key}"


# --- types


def test_spec_survives_json() -> None:
    spec = load_dataset(DataConfig(name="digits")).spec
    assert DataSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
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
    train = Split(np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1), np.array(labels, np.int32))
    names = tuple(str(label) for label in range(max(labels) + 1))
    return Dataset(
        DataSpec(name="toy", class_names=names, image_size=1, channels=1, mean=(0,), std=(1,)), train, None, None
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
    with pytest.raises(ConfigError, match=r"validation_fraction 0\.01 of 6 training images in 2 classes") as caught:
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
    np.testing.assert_array_equal(np.bincount(data.test.labels), [42, 28, 26, 48, 38, 39, 30, 26, 36, 47])
    # Sixteenths of 255: all 17 values, back to the original ones without loss.
    values = np.unique(data.train.images)
    np.testing.assert_array_equal(np.rint(values / 255 * 16), np.arange(17))
    np.testing.assert_array_equal(values, np.floor(np.arange(17) * 255 / 16 + 0.5))
    # The first image of all, held out, is scikit-learn's first zero.
    np.testing.assert_array_equal(np.rint(data.test.images[0, 0, :, 0] / 255 * 16), [0, 0, 5, 13, 9, 1, 0, 0])
    assert data.test.labels[:4].tolist() == [0, 5, 0, 5]
    assert data.train.labels[:8].tolist() == [1, 2, 3, 4, 6, 7, 8, 9]
    np.testing.assert_allclose(data.spec.mean, data.train.images.mean() / 255)
    assert data.spec.class_names == tuple("0123456789")


@pytest.mark.parametrize("values", [{}, {"validation_fraction": 0.1}, {"image_size": 12}])
def test_digits_are_as_described(values: dict[str, object]) -> None:
    check_described(DataConfig(name="digits", **values))  # type: ignore[arg-type]


def check_described(config: DataConfig) -> None:
    info, data = describe(config), load_dataset(config)
    assert info is not None
    assert info.present
    assert info.num_train == len(data.train)
    assert info.num_validation == (0 if data.validation is None else len(data.validation))
    assert info.num_test == (0 if data.test is None else len(data.test))
    assert (info.image_size, info.channels) == (data.spec.image_size, data.spec.channels)
    assert info.num_classes == data.spec.num_classes
    for split in (data.train, data.validation, data.test):
        assert split is None or split.images.shape[1:] == (info.image_size, info.image_size, info.channels)


# --- folders


def test_folder_in_the_order_of_its_names(root: Path) -> None:
    calls: list[tuple[int, int]] = []
    data = load_dataset(of(root), lambda done, total: calls.append((done, total)))
    assert data.spec.class_names == ("ant", "bee")
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    want = np.stack([np.asarray(pixels(seed)) for seed in (0, 1, 2, 100, 101, 102)])
    np.testing.assert_array_equal(data.train.images, want)
    assert data.test is not None
    np.testing.assert_array_equal(data.test.images, want[[0, 1, 3, 4]])
    assert data.validation is None
    assert calls[-1] == (10, 10)
    np.testing.assert_allclose(data.spec.mean, want.mean(axis=(0, 1, 2)) / 255)
    check_described(of(root))


def test_val_is_validation_beside_test_and_the_held_out_split_alone(root: Path) -> None:
    (root / "test").rename(root / "val")
    alone = load_dataset(of(root))
    assert alone.validation is None
    assert alone.test is not None
    assert len(alone.test) == 4
    assert load_dataset(of(root, validation_fraction=0.4)).validation is not None
    put(root / "test" / "ant" / "0.png", seed=9)
    both = load_dataset(of(root))
    assert both.validation is not None
    assert both.test is not None
    assert (len(both.validation), len(both.test)) == (4, 1)
    check_described(of(root))
    with pytest.raises(ConfigError, match="has both val and test") as caught:
        load_dataset(of(root, validation_fraction=0.4))
    assert caught.value.key == "data.validation_fraction"


def test_validation_can_stand_in_for_a_missing_test_split(root: Path) -> None:
    (root / "test").rename(root / "elsewhere")
    with pytest.raises(DataError, match=r"no held-out images: add a test folder, or set data\.validation_fraction"):
        load_dataset(of(root))
    data = load_dataset(of(root, validation_fraction=0.3))
    assert data.test is None
    assert data.validation is not None
    assert data.validation.labels.tolist() == [0, 1]
    assert data.train.labels.tolist() == [0, 0, 1, 1]
    check_described(of(root, validation_fraction=0.3))
    with pytest.raises(ConfigError, match="leaves the validation split empty"):
        describe(of(root, validation_fraction=0.1))


def test_other_files_are_passed_over_and_suffixes_read_in_either_case(root: Path) -> None:
    for name in ("notes.txt", ".hidden.png", "Thumbs.db", "list.csv"):
        (root / "train" / "ant" / name).write_text("not an image")
    (root / "train" / ".cache").mkdir()
    (root / "train" / "LABELS.md").write_text("not a class")
    (root / "train" / "ant" / "deeper.png").mkdir()
    put(root / "train" / "ant" / "x.BMP")
    put(root / "train" / "ant" / "y.WebP")
    put(root / "train" / "ant" / "z.gif")
    put(root / "train" / "ant" / "JPEG.JPEG")
    data = load_dataset(of(root))
    assert np.bincount(data.train.labels).tolist() == [7, 3]
    # The content decides how a file is read, not its suffix.
    os.replace(root / "train" / "ant" / "0.png", root / "train" / "ant" / "0.jpg")
    np.testing.assert_array_equal(load_dataset(of(root)).train.images[0], np.asarray(pixels(0)))


def test_names_outside_ascii_and_directory_links(root: Path, tmp_path: Path) -> None:
    (root / "train" / "ant").rename(root / "train" / "Ämeise 蟻")
    (root / "test" / "ant").rename(tmp_path / "ants elsewhere")
    (root / "test" / "Ämeise 蟻").symlink_to(tmp_path / "ants elsewhere", target_is_directory=True)
    put(root / "train" / "Ämeise 蟻" / "fourmi é 1.png", seed=5)
    (root / "train" / "Ämeise 蟻" / "up").symlink_to("..", target_is_directory=True)
    link = tmp_path / "lïnk"
    link.symlink_to(root, target_is_directory=True)
    data = load_dataset(of(link))
    assert data.spec.class_names == ("bee", "Ämeise 蟻")
    assert np.bincount(data.train.labels).tolist() == [3, 4]
    assert DataSpec.from_dict(json.loads(json.dumps(data.spec.to_dict()))) == data.spec
    load_dataset(of(link))


def test_home_is_expanded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(root.parent))
    assert len(load_dataset(DataConfig(name="folder:~/data set")).train) == 6


@pytest.mark.parametrize(("mode", "suffix"), [("L", "jpg"), ("CMYK", "jpg"), ("RGB", "jpg"), ("RGBA", "png")])
def test_every_colour_model_becomes_rgb(root: Path, mode: str, suffix: str) -> None:
    path = put(root / "train" / "ant" / f"0.{suffix}", mode=mode)
    data = load_dataset(of(root))
    with Image.open(path) as image:
        assert image.mode == mode
        want = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(data.train.images[0], want)


def test_palette_with_transparency_and_sixteen_bits(root: Path) -> None:
    image = pixels(3).quantize(8)
    image.save(root / "train" / "ant" / "0.png", transparency=bytes(range(8)))
    deep = np.arange(36, dtype=np.uint16).reshape(6, 6) * 1800
    Image.fromarray(deep).save(root / "train" / "ant" / "1.png")
    data = load_dataset(of(root))
    np.testing.assert_array_equal(data.train.images[0], np.asarray(image.convert("RGB")))
    np.testing.assert_array_equal(data.train.images[1], np.repeat((deep >> 8)[..., None], 3, axis=2))


def grey_folder(root: Path) -> None:
    for path in root.glob("*/*/*.png"):
        put(path, seed=len(str(path)), mode="L")


def test_one_channel_where_all_training_images_are_grey(root: Path) -> None:
    grey_folder(root)
    Image.fromarray(np.eye(6, dtype=bool)).save(root / "train" / "ant" / "2.png")
    put(root / "test" / "ant" / "0.png", mode="RGB")
    data = load_dataset(of(root))
    assert data.train.images.shape == (6, 6, 6, 1)
    assert data.test is not None
    assert data.test.images.shape == (4, 6, 6, 1)
    np.testing.assert_array_equal(data.train.images[2, ..., 0], np.eye(6) * 255)
    check_described(of(root))


def test_one_coloured_training_image_makes_three_channels(root: Path) -> None:
    grey_folder(root)
    put(root / "train" / "bee" / "2.png", seed=4, mode="RGB")
    data = load_dataset(of(root))
    assert data.train.images.shape == (6, 6, 6, 3)
    np.testing.assert_array_equal(data.train.images[5], np.asarray(pixels(4)))
    assert (data.train.images[0, ..., 0] == data.train.images[0, ..., 1]).all()


def test_different_sizes_need_image_size(root: Path) -> None:
    put(root / "test" / "bee" / "1.png", size=9)
    with pytest.raises(DataError, match=r"ant/0\.png is 6x6, .*test/bee/1\.png is 9x9; set data\.image_size"):
        load_dataset(of(root))
    data = load_dataset(of(root, image_size=4))
    assert data.spec.image_size == 4
    assert data.test is not None
    np.testing.assert_array_equal(data.test.images[3], resize(np.asarray(pixels(0, size=9)), 4))
    check_described(of(root, image_size=4))


def test_images_that_are_not_square_are_cropped_to_their_centre(root: Path) -> None:
    wide = np.zeros((6, 16, 3), np.uint8)
    wide[:, 5:11] = 200
    for path in root.glob("*/*/*.png"):
        Image.fromarray(wide).save(path)
    for function in (describe, load_dataset):
        with pytest.raises(DataError, match=r"0\.png is 16x6, not square; set data\.image_size"):
            function(of(root))
    np.testing.assert_array_equal(load_dataset(of(root, image_size=3)).train.images, 200)
    np.testing.assert_array_equal(load_dataset(of(root, image_size=6)).train.images, 200)


def drop(path: Path) -> Path:
    for child in sorted(path.rglob("*"), reverse=True):
        child.rmdir() if child.is_dir() and not child.is_symlink() else child.unlink()
    path.rmdir()
    return path


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: drop(r), r"data set does not exist: give a folder that holds train/<class>/\*\.png and test/"),
        (lambda r: (drop(r), r.write_text("")), "data set is not a directory"),
        (lambda r: drop(r / "train"), "data set has no train folder"),
        (lambda r: drop(r / "test"), "has no held-out images"),
        (lambda r: (drop(r / "train"), (r / "train").mkdir()), "train has no class folders"),
        (lambda r: (drop(r / "test"), (r / "test").mkdir()), "test has no class folders"),
        (lambda r: (r / "train" / "wasp").mkdir(), r"train/wasp holds no images \(\.png"),
        (lambda r: (drop(r / "test" / "ant"), (r / "test" / "ant").mkdir()), "test/ant holds no images"),
        (lambda r: put(r / "test" / "wasp" / "0.png"), "test/wasp: the class 'wasp' has no folder in train"),
        (lambda r: [drop(r / s / "bee") for s in ("train", "test")], "holds one class, 'ant'"),
        (lambda r: (r / "train/bee/1.png").write_bytes(b""), r"train/bee/1\.png is not a JPEG, PNG"),
        (lambda r: (r / "train/bee/1.png").write_text("hello"), r"train/bee/1\.png is not a JPEG, PNG"),
        (lambda r: truncate(r / "test/bee/1.png"), r"test/bee/1\.png is damaged \(.*truncated.*delete or replace it"),
        (lambda r: truncate(put(r / "test/bee/1.jpg")), r"test/bee/1\.jpg is damaged \(.*truncated"),
        (lambda r: (r / "train/bee/9.png").symlink_to("gone"), r"train/bee/9\.png is a broken link"),
        (lambda r: (r / "train/bee/9.png").symlink_to("9.png"), r"train/bee/9\.png (is a broken link|cannot be read)"),
        (lambda r: (r / "train/loop").symlink_to("loop"), r"train/loop (is a broken link|cannot be read)"),
    ],
)
def test_bad_folder_ends_in_one_line_with_the_path(root: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(root)
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(of(root))
    assert "\n" not in str(caught.value)
    assert str(root) in str(caught.value)


def test_unreadable_file_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tests may run as root, whom no permission stops.
    real = Image.open

    def refuse(path: str, *args: object, **kwargs: object) -> object:
        if str(path).endswith("bee/1.png"):
            raise PermissionError(13, "Permission denied", path)
        return real(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(DataError, match=r"train/bee/1\.png cannot be read: Permission denied"):
        load_dataset(of(root))


def test_of_several_bad_images_the_first_is_named(root: Path) -> None:
    for name in ("train/ant/1.png", "train/ant/2.png", "train/bee/0.png", "test/ant/0.png"):
        (root / name).write_text("")
    for _ in range(3):
        with pytest.raises(DataError, match=r"train/ant/1\.png"):
            load_dataset(of(root))


def test_images_beyond_memory_are_an_error_not_a_crash(root: Path) -> None:
    with pytest.raises(DataError, match=r"GB of memory, more than there is: set data\.stream to true, or a smaller"):
        load_dataset(of(root, image_size=30_000_000, stream=False))


def test_absent_folder_is_described_as_unknown(tmp_path: Path) -> None:
    assert describe(of(tmp_path / "nowhere")) is None


# --- cache


def test_cache_answers_the_second_time_and_is_the_same(
    root: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    first = load_dataset(of(root))
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(folder_source, "decode_files", None)
    second = load_dataset(of(root), lambda done, total: pytest.fail("decoded"))
    assert second.spec == first.spec
    for a, b in ((first.train, second.train), (first.test, second.test)):
        assert a is not None
        assert b is not None
        np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(a.labels, b.labels)


def test_cache_notices_every_change_of_the_folder(root: Path, tmp_path: Path, cache: Path) -> None:
    decoded: list[int] = []

    def decodes(config: DataConfig) -> bool:
        decoded.clear()
        load_dataset(config, lambda done, total: decoded.append(done))
        return bool(decoded)

    file = root / "train" / "ant" / "0.png"
    assert decodes(of(root))
    assert not decodes(of(root))
    assert not decodes(of(root, validation_fraction=0.4))
    assert decodes(of(root, image_size=5))
    os.utime(file, ns=(1, 1))
    assert decodes(of(root))
    put(file, seed=77)
    assert decodes(of(root))
    np.testing.assert_array_equal(load_dataset(of(root)).train.images[0], np.asarray(pixels(77)))
    file.rename(file.with_name("7.png"))
    assert decodes(of(root))
    (root / "test").rename(root / "val")
    load_dataset(of(root))
    # One entry for each image size: older ones of the same folder are gone.
    assert len(list(cache.iterdir())) == 2
    root.rename(tmp_path / "moved")
    assert decodes(of(tmp_path / "moved"))


def test_damaged_cache_is_noticed_and_rebuilt(root: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    want = load_dataset(of(root))
    (entry,) = cache.iterdir()
    whole = entry.read_bytes()
    damages = [whole[:size] for size in (0, 1, 100, len(whole) // 2, len(whole) - 1)]
    for place in range(0, len(whole), 97):
        damages.append(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
    noticed = 0
    for damaged in damages:
        entry.write_bytes(damaged)
        caplog.clear()
        data = load_dataset(of(root))
        np.testing.assert_array_equal(data.train.images, want.train.images)
        assert data.spec == want.spec
        assert len(caplog.records) <= 1
        if caplog.records:
            noticed += 1
            assert "is damaged" in caplog.text
            assert entry.read_bytes() == whole
    assert noticed > 0.7 * len(damages)  # the rest hit zip's dates and paddings, which mean nothing


def test_entry_of_another_length_is_not_trusted(root: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_dataset(of(root))
    (entry,) = cache.iterdir()
    np.savez(entry, train=np.zeros((1, 6, 6, 3), np.uint8))
    assert len(load_dataset(of(root)).train) == 6
    assert "wrong number of images" in caplog.text


def test_unwritable_cache_is_a_note_and_training_goes_on(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GNP_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert len(load_dataset(of(root)).train) == 6
    (record,) = caplog.records
    assert record.name == "gnpcli"
    assert record.levelno == logging.WARNING
    assert "the cache cannot be written" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_full_disk_leaves_no_half_entry(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(file: io.BufferedWriter, **_: object) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert len(load_dataset(of(root)).train) == 6
    assert "No space left on device" in caplog.text
    assert list(cache.iterdir()) == []


def test_place_of_the_cache(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GNP_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load_dataset(of(root))
    assert len(list((tmp_path / "xdg" / "gnp").iterdir())) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    load_dataset(of(root))
    assert len(list((tmp_path / "home" / ".cache" / "gnp").iterdir())) == 1


# --- CIFAR-10


def test_cifar10_without_images_is_described_from_what_is_published(tmp_path: Path) -> None:
    info = describe(DataConfig(name="cifar10", dir=str(tmp_path), validation_fraction=0.1))
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
    for function in (describe, load_dataset):
        with pytest.raises(DataError, match=r"is not CIFAR-10: it lacks airplane.*--dataset folder:"):
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
    # 1,000 images: the mean of a channel has a deviation of about 0.005 (images vary by 0.15 as a whole).
    mean, std = channel_statistics(data.train.images)
    np.testing.assert_allclose(mean, (0.4913, 0.4821, 0.4465), atol=0.025)
    np.testing.assert_allclose(std, (0.2452, 0.2428, 0.2606), atol=0.015)
    # Ships and airplanes stand before blue, frogs and deer do not: the labels are the official ones.
    blue = np.array([data.train.images[data.train.labels == label][..., 2].mean() for label in range(10)])
    assert min(blue[0], blue[8]) > max(blue[4], blue[6])
