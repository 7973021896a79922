"""Image folders by their names: ImageNet's and Tiny-ImageNet's layouts, files of classes, and what
is refused.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gnpcli.config.schema import DataConfig
from gnpcli.data.base import FileSplit
from gnpcli.data.images.cache import cache_key
from gnpcli.data.images.layout import Layout, SplitFiles, scan
from gnpcli.data.registry import describe_data, load_dataset
from gnpcli.data.sources import imagenet
from gnpcli.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def _nothing_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("GNP_DATA_DIR", "TFDS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def touch(*paths: Path) -> None:
    """Make empty files: a layout is names alone."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder of two classes: 2 training images each, and three flat validation images."""
    folder = tmp_path / "im net"
    touch(
        *(folder / "train" / wnid / f"{wnid}_{i}.JPEG" for wnid in ("n01", "n02") for i in range(2))
    )
    touch(*(folder / "val" / f"val_{i}.JPEG" for i in range(3)))
    return folder


def found(layout: Layout, files: SplitFiles | None) -> list[tuple[str, str]]:
    """Return (name of the file, its class) in the order of a split."""
    assert files is not None
    labels = np.repeat(np.arange(len(files.class_counts)), files.class_counts)
    return [
        (os.path.basename(path), layout.class_names[at])
        for path, at in zip(files.paths, labels, strict=True)
    ]


WANTED = [("val_1.JPEG", "n01"), ("val_0.JPEG", "n02"), ("val_2.JPEG", "n02")]
"""By class, and within a class by name."""

MAPPINGS = {
    "val/LABEL": "val_0.JPEG n02\nval_1.JPEG n01\nval_2.JPEG n02\n",
    "val/LABELS": "\ufeffval_2.JPEG  n02\n\nval_1.JPEG\tn01\nval_0.JPEG n02",
    "val/labels.txt": "val/val_0.JPEG,n02\r\nval/val_1.JPEG, n01\r\nval/val_2.JPEG,n02\r\n",
    "val/val_annotations.txt": "".join(
        f"val_{i}.JPEG\tn0{k}\t0\t32\t44\t62\n" for i, k in enumerate((2, 1, 2))
    ),
    "LOC_val_solution.csv": "ImageId,PredictionString\n"
    "val_2,n02 1 2 3 4 n02 5 6 7 8 \nval_0,n02 1 2 3 4\nval_1,n01 1 2 3 4\n",
    "imagenet_2012_validation_synset_labels.txt": "n02\nn01\nn02\n",
    "val/imagenet_2012_validation_synset_labels.txt": "n02\nn01\nn02\n",
}


@pytest.mark.parametrize("name", MAPPINGS)
def test_a_flat_validation_folder_with_the_file_of_its_classes(root: Path, name: str) -> None:
    (root / name).write_text(MAPPINGS[name], encoding="utf-8")
    layout = scan(str(root), validation_fraction=0)
    assert found(layout, layout.test) == WANTED
    assert layout.validation is None
    assert layout.train.class_counts == (2, 2)


@pytest.mark.parametrize("text", MAPPINGS.values())
def test_the_file_of_classes_can_lie_anywhere(root: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "my classes").write_text(text, encoding="utf-8")
    (root / "val" / "LABEL").write_text("not looked at")
    info = describe_data(DataConfig(name=f"folder:{root}", stream=True, val_labels="~/my classes"))
    assert info is not None
    assert (info.num_train, info.num_test, info.num_classes) == (4, 3, 2)
    data = load_dataset(DataConfig(name=f"folder:{root}", stream=True, val_labels="my classes"))
    assert isinstance(data.test, FileSplit)
    assert data.test.labels.tolist() == [0, 1, 1]


def test_names_with_spaces_and_outside_ascii_in_a_file_of_classes(root: Path) -> None:
    (root / "train" / "n01").rename(root / "train" / "Ämeise 蟻")
    (root / "val" / "val_0.JPEG").rename(root / "val" / "fourmi é 1.JPEG")
    (root / "val" / "LABEL").write_text(
        "fourmi é 1\tÄmeise 蟻\nval_1\tn02\nval_2\tn02 or so\n", encoding="utf-8"
    )
    layout = scan(str(root), validation_fraction=0)
    assert found(layout, layout.test) == [
        ("val_1.JPEG", "n02"),
        ("val_2.JPEG", "n02"),
        ("fourmi é 1.JPEG", "Ämeise 蟻"),
    ]
    (root / "val" / "LABEL").write_text("Ämeise 蟻\nÄmeise 蟻\nn02\n", encoding="utf-8")
    layout = scan(str(root), validation_fraction=0)
    assert [name for _, name in found(layout, layout.test)] == ["n02", "Ämeise 蟻", "Ämeise 蟻"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("val_0.JPEG n02\nval_2.JPEG n02\n", r"LABEL gives no class for .*val/val_1\.JPEG$"),
        ("val_0.JPEG n02\n", r"LABEL gives no class for .*val/val_1\.JPEG and 1 more$"),
        (
            "val_0 n02\nval_1 n01\nval_2 n02\n\nval_3 n01",
            r"LABEL line 5: there is no image 'val_3' in .*val$",
        ),
        (
            "val_0 n02\nval_1 n03\nval_2 n02\n",
            r"LABEL line 2: the class 'n03' has no folder in train",
        ),
        (
            "val_0 n02\nval_1 n01\nval_2 n02\nval_1.JPEG n02",
            r"LABEL line 4: 'val_1\.JPEG' has a line already",
        ),
        ("n02\nn01\n", r"LABEL gives 2 classes for the 3 images in .*val$"),
        ("", r"LABEL gives 0 classes for the 3 images"),
        (
            "n02\nn01\nn03\n",
            r"LABEL line 3: 'n03' is neither a class of train nor an image and its class",
        ),
        (
            "65\n970\n230\n",
            r"LABEL line 1: '65' is neither a class of train nor an image and its class",
        ),
    ],
)
def test_a_file_of_classes_that_does_not_fit(root: Path, text: str, message: str) -> None:
    (root / "val" / "LABEL").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        scan(str(root), validation_fraction=0)
    assert "\n" not in str(caught.value)


def test_a_flat_validation_folder_without_classes_names_the_files_that_would_do(root: Path) -> None:
    with pytest.raises(
        DataError, match=r"im net/val holds images without classes: .*data\.val_labels"
    ) as caught:
        scan(str(root), validation_fraction=0)
    for name in MAPPINGS:
        assert str(root / name) in str(caught.value)
    with pytest.raises(DataError, match=r"nowhere\.txt cannot be read: No such file"):
        scan(str(root), validation_fraction=0, val_labels="nowhere.txt")
    with pytest.raises(DataError, match=r"train cannot be read: Is a directory"):
        scan(str(root), validation_fraction=0, val_labels=str(root / "train"))


def test_a_file_of_classes_beside_class_folders_is_refused(root: Path, tmp_path: Path) -> None:
    for path in (root / "val").iterdir():
        path.unlink()
    touch(root / "val" / "n01" / "x.png")
    touch(tmp_path / "labels")
    with pytest.raises(
        ConfigError, match=r"no val folder without class folders: leave out data\.val_labels"
    ) as caught:
        scan(str(root), validation_fraction=0, val_labels="labels")
    assert caught.value.key == "data.val_labels"


def test_tiny_imagenet_as_it_is_unpacked(tmp_path: Path) -> None:
    root = tmp_path / "tiny-imagenet-200"
    for wnid in ("n01443537", "n01629819"):
        touch(*(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG" for i in range(3)))
        touch(root / "train" / wnid / f"{wnid}_boxes.txt")
    touch(
        *(root / "val" / "images" / f"val_{i}.JPEG" for i in range(2)),
        root / "wnids.txt",
        root / "words.txt",
    )
    touch(*(root / "test" / "images" / f"test_{i}.JPEG" for i in range(2)))
    (root / "val" / "val_annotations.txt").write_text(
        "val_0.JPEG\tn01629819\t0\t32\t44\t62\nval_1.JPEG\tn01443537\t52\t55\t57\t59\n"
    )
    layout = scan(str(root), validation_fraction=0.3)
    assert layout.class_names == ("n01443537", "n01629819")
    assert layout.train.class_counts == (3, 3)
    assert layout.train.paths[0] == str(
        root / "train" / "n01443537" / "images" / "n01443537_0.JPEG"
    )
    assert found(layout, layout.test) == [("val_1.JPEG", "n01443537"), ("val_0.JPEG", "n01629819")]
    assert layout.validation is None


def test_a_test_folder_without_classes_holds_nothing_out(root: Path) -> None:
    for path in (root / "val").iterdir():
        path.rename(path.parents[1] / path.name)
    (root / "val").rename(root / "test")
    touch(root / "test" / "x.JPEG")
    with pytest.raises(
        DataError,
        match=r"im net/test holds images without classes: sort them into class folders, or",
    ):
        scan(str(root), validation_fraction=0)
    layout = scan(str(root), validation_fraction=0.5)
    assert list(layout.splits) == ["train"]


def test_images_beside_a_folder_images_are_the_class(root: Path) -> None:
    touch(root / "train" / "n01" / "images" / "deeper.png", root / "train" / "images" / "x.png")
    (root / "val" / "LABEL").write_text(MAPPINGS["val/LABEL"])
    layout = scan(str(root), validation_fraction=0)
    assert layout.class_names == ("images", "n01", "n02")
    assert layout.train.class_counts == (1, 2, 2)


# --- refused


def class_folders(root: Path) -> None:
    for path in (root / "val").iterdir():
        path.unlink()
    touch(*(root / "val" / wnid / "0.JPEG" for wnid in ("n01", "n02")))


def empty(path: Path) -> None:
    for inner in path.iterdir():
        inner.unlink()


def loop(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda r: (
                empty(r / "train/n02"),
                (r / "train/n02").rmdir(),
                empty(r / "val/n02"),
                (r / "val/n02").rmdir(),
            ),
            "train holds one class, 'n01'",
        ),
        (lambda r: empty(r / "train/n02"), "train/n02 holds no images"),
        (lambda r: empty(r / "val/n02"), "val/n02 holds no images"),
        (
            lambda r: [(empty(path), path.rmdir()) for path in (r / "val").iterdir()],
            ("val has no class folders"),
        ),
        (lambda r: touch(r / "val/n03/0.JPEG"), "val/n03: the class 'n03' has no folder in train"),
        (
            lambda r: touch(r / "val/images/0.JPEG"),
            ("val/images: the class 'images' has no folder in train"),
        ),
        (
            lambda r: loop(r / "train/n03"),
            r"train/n03 (is a broken link|cannot be read: Too many levels)",
        ),
        (lambda r: (r / "train/n03").symlink_to(".."), "train/n03 holds no images"),
        (lambda r: (r / "train/n03").symlink_to("gone"), None),
        (
            lambda r: loop(r / "train/n02/x.png"),
            r"train/n02/x\.png (is a broken link|cannot be read: Too many levels)",
        ),
        (
            lambda r: (r / "val/n02/x.png").symlink_to("gone.png"),
            r"val/n02/x\.png is a broken link",
        ),
    ],
)
def test_bad_names_end_in_one_line_with_the_path(
    root: Path, spoil: Callable[[Path], object], message: str | None
) -> None:
    class_folders(root)
    scan(str(root), validation_fraction=0)
    spoil(root)
    if message is None:  # a link to nowhere is no folder, like any other file beside the classes
        assert scan(str(root), validation_fraction=0).class_names == ("n01", "n02")
        return
    for call in (describe_data, load_dataset):
        with pytest.raises(DataError, match=message) as caught:
            call(DataConfig(name=f"folder:{root}", stream=True))
        assert "\n" not in str(caught.value)
        assert str(root) in str(caught.value)


UNPRIVILEGED = """
import os, sys
from gnpcli.data.images.layout import scan
from gnpcli.errors import DataError
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    scan(sys.argv[1], validation_fraction=0)
except DataError as error:
    print(error)
"""


@pytest.mark.parametrize("closed", ["train", "train/n02", "val/LABEL", "val"])
def test_names_that_may_not_be_read(closed: str) -> None:
    # Root reads everything: the scan drops to a user who does not, in a folder that such a user can
    # reach.
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        root = Path(place) / "data"
        touch(
            *(root / "train" / wnid / "0.JPEG" for wnid in ("n01", "n02")), root / "val" / "0.JPEG"
        )
        (root / "val" / "LABEL").write_text("0 n01")
        os.chmod(root / closed, 0)
        done = subprocess.run(
            [sys.executable, "-c", UNPRIVILEGED, str(root)],
            capture_output=True,
            text=True,
            check=False,
        )
        os.chmod(root / closed, 0o755)
    assert done.stderr == ""
    assert done.stdout == f"{root / closed} cannot be read: Permission denied\n"


def test_a_file_that_goes_after_the_scan_is_named_by_the_cache(root: Path) -> None:
    (root / "val" / "LABEL").write_text(MAPPINGS["val/LABEL"])
    layout = scan(str(root), validation_fraction=0)
    (root / "train" / "n02" / "n02_0.JPEG").unlink()
    with pytest.raises(DataError, match=r"n02_0\.JPEG cannot be read: No such file"):
        cache_key(layout.root, {"train": layout.train.paths}, None, "")


# --- sources


def photograph(path: Path, size: tuple[int, int], seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Return a folder of two classes of images, 97 by 120 pixels, 4 to train on and 1 to test on
    each.
    """
    folder = tmp_path / "photographs"
    for wnid in ("n01", "n02"):
        for split, count in (("train", 4), ("val", 1)):
            for i in range(count):
                photograph(folder / split / wnid / f"{i}.png", (97, 120), i)
    return folder


@pytest.mark.parametrize(
    ("values", "streamed", "size"),
    [
        ({}, True, 224),
        ({"image_size": 96}, False, 96),
        ({"image_size": 97}, True, 97),
        ({"image_size": 8, "stream": True}, True, 8),
        ({"image_size": 128, "stream": False}, False, 128),
    ],
)
def test_large_images_are_streamed(
    photographs: Path, values: dict[str, object], streamed: bool, size: int
) -> None:
    config = DataConfig(name=f"folder:{photographs}", validation_fraction=0.25, **values)  # type: ignore[arg-type]
    info, data = describe_data(config), load_dataset(config)
    assert info is not None
    assert (info.is_streamed, info.image_size, info.channels) == (streamed, size, 3)
    assert (info.num_train, info.num_validation, info.num_test, info.num_classes) == (6, 2, 2, 2)
    assert (data.spec.image_size, data.spec.num_classes) == (size, 2)
    for split, count in ((data.train, 6), (data.validation, 2), (data.test, 2)):
        assert isinstance(split, FileSplit) == streamed
        assert split is not None
        assert len(split) == count
    if streamed:
        assert data.spec.mean == (0.485, 0.456, 0.406)
        assert data.spec.std == (0.229, 0.224, 0.225)
        assert isinstance(data.train, FileSplit)
        both = {*data.train.paths, *data.validation.paths}
        assert both == {str(path) for path in (photographs / "train").rglob("*.png")}


def test_the_first_image_decides_where_nothing_is_said(photographs: Path) -> None:
    config = DataConfig(name=f"folder:{photographs}")
    photograph(photographs / "train" / "n01" / "0.png", (400, 96))
    for call in (describe_data, load_dataset):  # in memory images have to be squares, or resized
        with pytest.raises(DataError, match=r"0\.png is 400x96, not square; set data\.image_size"):
            call(config)
    (photographs / "train" / "n01" / "0.png").write_text("no image")
    with pytest.raises(DataError, match=r"n01/0\.png is not a JPEG"):
        describe_data(config)
    info = describe_data(config.model_copy(update={"stream": True}))
    assert info is not None
    assert info.is_streamed


def test_imagenet_without_images_is_described_and_says_how_to_give_them(tmp_path: Path) -> None:
    config = DataConfig(name="imagenet", dir=str(tmp_path), validation_fraction=0.1)
    info = imagenet.describe(config)
    assert not info.present
    assert info.is_streamed
    assert info.num_train + info.num_validation == 1_281_167
    assert info.num_validation == pytest.approx(128_117, abs=50)
    assert (info.num_test, info.num_classes, info.image_size, info.channels) == (
        50_000,
        1000,
        224,
        3,
    )
    with pytest.raises(
        DataError,
        match=rf"no ImageNet images in {tmp_path} or .*imagenet: .*train/<class>.*--data-dir",
    ):
        imagenet.load(config)


@pytest.mark.parametrize("place", ["given", "below", "variable", "working directory"])
def test_imagenet_is_found_and_any_part_of_it_works(
    place: str, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # B28: the numbers come from the folder, not from the name.
    base = tmp_path / ("data" if place == "working directory" else "x")
    base.mkdir()
    photographs.rename(base / "imagenet")
    given = {"given": str(base / "imagenet"), "below": str(base)}.get(place)
    if place == "variable":
        monkeypatch.setenv("GNP_DATA_DIR", str(base))
    config = DataConfig(name="imagenet", dir=given)
    info, data = imagenet.describe(config), load_dataset(config)
    assert info.present
    assert (info.num_train, info.num_test, info.num_classes, info.is_streamed) == (8, 2, 2, True)
    assert (data.spec.name, data.spec.class_names, data.spec.image_size) == (
        "imagenet",
        ("n01", "n02"),
        224,
    )
    assert data.validation is None
    in_memory = load_dataset(DataConfig(name="imagenet", dir=given, stream=False, image_size=16))
    assert not isinstance(in_memory.train, FileSplit)
    assert in_memory.train.images.shape == (8, 16, 16, 3)
