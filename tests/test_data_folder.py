"""Image folders of small images, and everything that can be wrong with them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gnpcli.config.schema import DataConfig
from gnpcli.data.base import DataSpec
from gnpcli.data.images import opening
from gnpcli.data.images.resize import resize
from gnpcli.data.registry import describe_data, load_dataset
from gnpcli.errors import ConfigError, DataError
from tests.folders import check_described, of, pixels, put

pytestmark = pytest.mark.usefixtures("cache")


def test_folder_in_the_order_of_its_names(root: Path) -> None:
    calls: list[tuple[int, int]] = []
    data = load_dataset(of(root), lambda done, total, *_: calls.append((done, total)))
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
    with pytest.raises(
        DataError, match=r"no held-out images: add a test folder, or set data\.validation_fraction"
    ):
        load_dataset(of(root))
    data = load_dataset(of(root, validation_fraction=0.3))
    assert data.test is None
    assert data.validation is not None
    assert data.validation.labels.tolist() == [0, 1]
    assert data.train.labels.tolist() == [0, 0, 1, 1]
    check_described(of(root, validation_fraction=0.3))
    with pytest.raises(ConfigError, match="leaves the validation split empty"):
        describe_data(of(root, validation_fraction=0.1))


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


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "jpg"), ("CMYK", "jpg"), ("RGB", "jpg"), ("RGBA", "png")]
)
def test_every_colour_model_becomes_rgb(root: Path, mode: str, suffix: str) -> None:
    path = put(root / "train" / "ant" / f"0.{suffix}", mode=mode)
    data = load_dataset(of(root))
    with Image.open(path) as image:
        assert image.mode == mode
        seen: Image.Image = image
        if mode == "RGBA":
            seen = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        want = np.asarray(seen.convert("RGB"))
    np.testing.assert_array_equal(data.train.images[0], want)


def test_palette_with_transparency_and_sixteen_bits(root: Path) -> None:
    image = pixels(3).quantize(8)
    image.save(root / "train" / "ant" / "0.png", transparency=bytes(range(8)))
    deep = np.arange(36, dtype=np.uint16).reshape(6, 6) * 1800
    Image.fromarray(deep).save(root / "train" / "ant" / "1.png")
    data = load_dataset(of(root))
    opaque = np.asarray(image.convert("RGB")).astype(float)
    alpha = np.asarray(image).astype(float)[..., None] / 255
    seen = alpha * opaque + (1 - alpha) * 255
    assert np.abs(data.train.images[0] - seen).max() <= 1
    np.testing.assert_array_equal(
        data.train.images[1], np.repeat((deep >> 8)[..., None], 3, axis=2)
    )


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
    with pytest.raises(
        DataError, match=r"ant/0\.png is 6x6, .*test/bee/1\.png is 9x9; set data\.image_size"
    ):
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
    for function in (describe_data, load_dataset):
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
        (
            lambda r: drop(r),
            r"data set does not exist: give a folder that holds train/<class>/\*\.png and test/",
        ),
        (lambda r: (drop(r), r.write_text("")), "data set is not a directory"),
        (lambda r: drop(r / "train"), "data set has no train folder"),
        (lambda r: drop(r / "test"), "has no held-out images"),
        (lambda r: (drop(r / "train"), (r / "train").mkdir()), "train has no class folders"),
        (lambda r: (drop(r / "test"), (r / "test").mkdir()), "test has no class folders"),
        (lambda r: (r / "train" / "wasp").mkdir(), r"train/wasp holds no images \(\.png"),
        (
            lambda r: (drop(r / "test" / "ant"), (r / "test" / "ant").mkdir()),
            "test/ant holds no images",
        ),
        (
            lambda r: put(r / "test" / "wasp" / "0.png"),
            "test/wasp: the class 'wasp' has no folder in train",
        ),
        (lambda r: [drop(r / s / "bee") for s in ("train", "test")], "holds one class, 'ant'"),
        (
            lambda r: (r / "train/bee/1.png").write_bytes(b""),
            r"train/bee/1\.png is not a JPEG, PNG",
        ),
        (
            lambda r: (r / "train/bee/1.png").write_text("hello"),
            r"train/bee/1\.png is not a JPEG, PNG",
        ),
        (
            lambda r: truncate(r / "test/bee/1.png"),
            r"test/bee/1\.png is damaged \(.*truncated.*delete or replace it",
        ),
        (
            lambda r: truncate(put(r / "test/bee/1.jpg")),
            r"test/bee/1\.jpg is damaged \(.*truncated",
        ),
        (
            lambda r: (r / "train/bee/9.png").symlink_to("gone"),
            r"train/bee/9\.png is a broken link",
        ),
        (
            lambda r: (r / "train/bee/9.png").symlink_to("9.png"),
            r"train/bee/9\.png (is a broken link|cannot be read)",
        ),
        (
            lambda r: (r / "train/loop").symlink_to("loop"),
            r"train/loop (is a broken link|cannot be read)",
        ),
    ],
)
def test_bad_folder_ends_in_one_line_with_the_path(
    root: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(root)
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(of(root))
    assert "\n" not in str(caught.value)
    assert str(root) in str(caught.value)


def test_unreadable_file_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tests may run as root, whom no permission stops.
    def refuse(path: str, mode: str) -> object:
        if path.endswith("bee/1.png"):
            raise PermissionError(13, "Permission denied", path)
        return open(path, mode)

    monkeypatch.setattr(opening, "open", refuse, raising=False)
    with pytest.raises(DataError, match=r"train/bee/1\.png cannot be read: Permission denied"):
        load_dataset(of(root))


def test_of_several_bad_images_the_first_is_named(root: Path) -> None:
    for name in ("train/ant/1.png", "train/ant/2.png", "train/bee/0.png", "test/ant/0.png"):
        (root / name).write_text("")
    for _ in range(3):
        with pytest.raises(DataError, match=r"train/ant/1\.png"):
            load_dataset(of(root))


def test_images_beyond_memory_are_an_error_not_a_crash(root: Path) -> None:
    with pytest.raises(
        DataError, match=r"GB of memory, more than there is: set data\.stream to true, or a smaller"
    ):
        load_dataset(of(root).model_copy(update={"image_size": 30_000_000, "stream": False}))


def test_absent_folder_is_described_as_unknown(tmp_path: Path) -> None:
    assert describe_data(of(tmp_path / "nowhere")) is None
