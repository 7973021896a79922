"""A folder of images is read whole, or says what is not: names, links, suffixes, splits."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gnpcli.data.base import Split
from gnpcli.data.images import entries
from gnpcli.data.images.entries import SUFFIXES
from gnpcli.data.images.splits import SPLITS
from gnpcli.data.registry import describe_data, load_dataset, load_held_out
from gnpcli.errors import DataError
from tests.conftest import Gnp
from tests.folders import of, pixels, put

pytestmark = pytest.mark.usefixtures("cache")

Spoil = Callable[[Path], object]


def not_utf8(folder: Path, name: bytes) -> None:
    """Make a file whose name is no text, where the file system allows it."""
    try:
        open(os.fsencode(folder) + b"/" + name, "wb").close()
    except OSError:
        pytest.skip("this file system has no names but UTF-8")


def told(root: Path, caplog: pytest.LogCaptureFixture, **values: object) -> list[str]:
    """Load a folder; return the warnings."""
    caplog.clear()
    load_dataset(of(root, **values))
    return [record.getMessage() for record in caplog.records]


def test_a_folder_that_is_read_whole_has_no_warning(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (".DS_Store", "Thumbs.db", "._0.png", ".hidden.png", "desktop.ini", "notes.txt"):
        for folder in ("train/ant", "train", "."):
            (root / folder / name).write_bytes(b"")
    (root / "train" / "__MACOSX").mkdir()
    (root / "train" / ".cache").mkdir()
    (root / "train" / "ant" / "empty").mkdir()
    assert told(root, caplog) == []


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda r: (r / "train/wasp").symlink_to("gone"), "1 broken link (train/wasp)"),
        (
            lambda r: put(r / "train/ant/images/0.png"),
            "1 folder inside a class (train/ant/images with 1 image)",
        ),
        (
            lambda r: [put(r / f"train/ant/more/{i}/x.JPG") for i in range(3)],
            "1 folder inside a class (train/ant/more with 3 images)",
        ),
        (
            lambda r: (r / "train/ant/up").symlink_to(".."),
            None,  # it leads round in a circle, and holds no image itself
        ),
        (
            lambda r: put(r / "train/ant/x.png/0.png"),
            "1 folder inside a class (train/ant/x.png with 1 image)",
        ),
        (
            lambda r: [(r / f"train/ant/{i}.heic").write_bytes(b"") for i in range(5)],
            "5 files with suffixes that are not read (train/ant/0.heic, train/ant/1.heic, "
            "train/ant/2.heic and 2 more)",
        ),
        (
            lambda r: (r / "test/bee/no suffix").write_bytes(b""),
            "1 file with a suffix that is not read (test/bee/no suffix)",
        ),
        (
            lambda r: put(r / "train/0.png"),
            "1 file beside the class folders (train/0.png)",
        ),
        (lambda r: put(r / "0.png"), "1 file beside the class folders (0.png)"),
        (
            lambda r: put(r / "extra/ant/0.png"),
            "1 folder that is no split (extra with 1 image)",
        ),
        (lambda r: os.mkfifo(r / "train/ant/9.png"), "1 entry that is no file (train/ant/9.png)"),
        (
            lambda r: (r / "train/ant/two\nlines\x1b[2J.heic").write_bytes(b""),
            "1 file with a suffix that is not read (train/ant/two\\nlines\\x1b[2J.heic)",
        ),
        (
            lambda r: not_utf8(r / "train/ant", b"\xff.heic"),
            "1 file with a suffix that is not read (train/ant/\\udcff.heic)",
        ),
    ],
)
def test_what_is_passed_over_is_told_with_counts_and_names(
    spoil: Spoil, said: str | None, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(root)
    wanted = [] if said is None else [f"passed over in {root}: {said}"]
    assert told(root, caplog) == wanted
    assert told(root, caplog, stream=True) == wanted  # with the cache, and without an image opened


def test_there_is_one_warning_of_all_that_is_passed_over(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "train" / "wasp").symlink_to("gone")
    put(root / "train" / "ant" / "more" / "0.png")
    (root / "test" / "bee" / "0.heic").write_bytes(b"")
    (line,) = told(root, caplog)
    assert line == (
        f"passed over in {root}: 1 broken link (train/wasp), 1 folder inside a class "
        "(train/ant/more with 1 image) and 1 file with a suffix that is not read (test/bee/0.heic)"
    )


def test_a_command_says_it_once_also_where_it_only_plans(
    gnp: Gnp, root: Path, tmp_path: Path
) -> None:
    (root / "train" / "wasp").symlink_to("gone")
    wanted = f"warning: passed over in {root}: 1 broken link (train/wasp)"
    sets = ("--dataset", f"folder:{root}", "--set", "data.batch_size=2", "--gr", "none")
    for words in (("train", "--dry-run"), ("data", "preview", "-q", "--out", tmp_path / "x.png")):
        done = gnp(*words, *(sets if words[0] == "train" else sets[:4]))
        assert done.returncode == 0, done.stderr
        assert done.stderr.splitlines().count(wanted) == 1


def test_images_are_counted_up_to_a_bound(
    root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries, "_MOST_COUNTED", 2)
    for number in range(3):
        put(root / "train" / "ant" / "more" / f"{number}.png")
    (line,) = told(root, caplog)
    assert line.endswith("1 folder inside a class (train/ant/more with 2 images or more)")


def test_a_flat_split_without_labels_is_told(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for path in sorted((root / "test").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    put(root / "test" / "0.png")
    (line,) = told(root, caplog, validation_fraction=0.3)
    assert line == f"passed over in {root}: 1 split without class folders (test with 1 image)"


@pytest.mark.parametrize("change", [str.lower, str.upper])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_is_read_in_either_case(
    suffix: str, change: Callable[[str], str], root: Path
) -> None:
    path = root / "train" / "ant" / f"x{change(suffix)}"
    Image.new("RGB", (6, 6), (200, 200, 200)).save(
        path, format={".jpe": "JPEG", ".jfif": "JPEG", ".gif": "GIF"}.get(suffix)
    )
    data = load_dataset(of(root))
    assert isinstance(data.train, Split)
    assert np.bincount(data.train.labels).tolist() == [4, 3]
    np.testing.assert_allclose(data.train.images[3], 200, atol=2)


def test_classes_that_differ_in_case_alone_are_told(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if (root / "train" / "Ant").exists():
        pytest.skip("this file system knows no case")
    put(root / "train" / "Ant" / "0.png")
    (line,) = told(root, caplog)
    assert line == "the classes Ant and ant differ in nothing but case or accents"


def test_a_class_of_another_case_in_a_split_is_refused_with_the_one_that_is_meant(
    root: Path,
) -> None:
    (root / "test" / "ant").rename(root / "test" / "Ant")
    with pytest.raises(DataError, match=r"'Ant' has no folder in train - did you mean 'ant'\?"):
        load_dataset(of(root))


def test_a_class_whose_name_is_no_text_is_refused(root: Path) -> None:
    not_utf8(root, b"\xff")
    os.rename(root / "train" / "ant", os.fsencode(root / "train") + b"/\xff")
    with pytest.raises(DataError, match=r"the name of this class is not UTF-8: rename it"):
        load_dataset(of(root))


def test_images_of_a_single_colour_are_told(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(4):
        Image.new("RGB", (6, 6), (number, 5, 6)).save(root / "train" / "ant" / f"c{number}.png")
    for _ in range(2):  # decoded, and from the cache
        (line,) = told(root, caplog)
        names = ", ".join(str(root / "train" / "ant" / f"c{i}.png") for i in range(3))
        assert line == f"4 images are of a single colour: {names} and 1 more"


# --- splits


@pytest.mark.parametrize("change", [str.lower, str.upper, str.capitalize])
@pytest.mark.parametrize("name", SPLITS["train"])
def test_train_by_each_of_its_names(name: str, change: Callable[[str], str], root: Path) -> None:
    (root / "train").rename(root / change(name))
    assert len(load_dataset(of(root)).train) == 6


@pytest.mark.parametrize("change", [str.lower, str.capitalize])
@pytest.mark.parametrize("name", SPLITS["val"])
def test_validation_by_each_of_its_names(
    name: str, change: Callable[[str], str], root: Path
) -> None:
    put(root / change(name) / "bee" / "0.png", seed=5)
    data = load_dataset(of(root))
    assert isinstance(data.validation, Split)
    assert data.validation.labels.tolist() == [1]
    np.testing.assert_array_equal(data.validation.images[0], np.asarray(pixels(5)))
    for path in sorted((root / "test").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (root / "test").rmdir()
    alone = load_dataset(of(root))
    assert alone.validation is None
    assert isinstance(alone.test, Split)
    assert alone.test.labels.tolist() == [1]


def test_two_folders_of_one_split_are_refused_unless_they_are_one(root: Path) -> None:
    put(root / "valid" / "ant" / "0.png")
    (root / "val").symlink_to("valid")
    assert len(load_dataset(of(root)).validation or ()) == 1
    put(root / "Validation" / "ant" / "0.png")
    for call in (describe_data, load_dataset):
        with pytest.raises(
            DataError,
            match=r"holds val, Validation and valid, and each may be the val split: rename or",
        ):
            call(of(root))


def test_a_split_that_is_a_broken_link_is_refused(root: Path) -> None:
    (root / "val").symlink_to("gone")
    with pytest.raises(DataError, match=r"/val is a broken link$"):
        load_dataset(of(root))


def without_splits(root: Path) -> None:
    for path in (root / "train").iterdir():
        path.rename(root / path.name)
    (root / "train").rmdir()
    (root / "test").rename(root.parent / "elsewhere")


@pytest.mark.parametrize(
    ("spoil", "folder", "said"),
    [
        (
            without_splits,
            ".",
            "has no train folder, but ant, bee: if these are classes, move them into",
        ),
        (
            lambda r: [(r / "inner").mkdir(), (r / "train").rename(r / "inner" / "Train")],
            ".",
            "has no train folder, but .*/inner has: give folder:.*/inner",
        ),
        (lambda r: None, "train", "has no train folder, it is one itself: .*folder:.*data set$"),
        (
            lambda r: (r / "train").rename(r.parent / "t"),
            ".",
            "has no train folder, but test: it should hold train/<class>",
        ),
    ],
)
def test_a_folder_without_train_says_what_was_found(
    spoil: Spoil, folder: str, said: str, root: Path
) -> None:
    spoil(root)
    with pytest.raises(DataError, match=said) as caught:
        load_dataset(of(root / folder if folder != "." else root))
    assert "\n" not in str(caught.value)


def test_a_class_without_images_says_what_it_holds(root: Path) -> None:
    put(root / "train" / "wasp" / "2024" / "0.png")
    (root / "train" / "wasp" / "0.heic").write_bytes(b"")
    with pytest.raises(DataError, match=r"wasp holds no images \(.*\), but 2024, 0\.heic: add"):
        load_dataset(of(root))


# --- one split without train


def test_a_split_is_loaded_without_training_images(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    like = load_dataset(of(root)).spec
    whole = load_dataset(of(root)).test
    assert load_held_out(of(root), "test", like) is None  # there is a train folder
    (root / "train").rename(root.parent / "elsewhere")
    (root / "test" / "bee" / "x.heic").write_bytes(b"")
    for name in ("test", "val"):
        caplog.clear()
        found = load_held_out(of(root), "test", like)
        assert found is not None
        spec, split = found
        assert isinstance(split, Split)
        assert isinstance(whole, Split)
        assert (spec.class_names, spec.mean, spec.name) == (
            like.class_names,
            like.mean,
            f"folder:{root}",
        )
        np.testing.assert_array_equal(split.images, whole.images)
        np.testing.assert_array_equal(split.labels, whole.labels)
        assert f"passed over in {root}: 1 file with a suffix" in caplog.text
        with pytest.raises(DataError, match=rf"has no train split: it holds {name}"):
            load_held_out(of(root), "train", like)
        if name == "test":
            (root / "test").rename(root / "val")


def test_coloured_images_do_not_fit_a_model_of_grey_ones(root: Path) -> None:
    for path in root.glob("*/*/*.png"):
        put(path, mode="L")
    like = load_dataset(of(root)).spec
    (root / "train").rename(root.parent / "elsewhere")
    assert load_held_out(of(root), "test", like) is not None
    put(root / "test" / "ant" / "1.png")
    with pytest.raises(DataError, match="holds images in colour, and the model was trained on"):
        load_held_out(of(root), "test", like)
