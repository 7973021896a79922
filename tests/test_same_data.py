"""Data that have changed since a model was trained on them: what is noticed, and what is said."""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gnpcli.config.schema import DataConfig
from gnpcli.data.base import Dataset, DataSpec
from gnpcli.data.changes import data_changes
from gnpcli.data.registry import as_configured, load_dataset
from gnpcli.engine.same_data import accepted_changes
from gnpcli.errors import CheckpointError, DataError
from gnpcli.recipes.presets import resolve
from gnpcli.runs.folder import RunFolder
from gnpcli.tables.cells import Cell, check_folders
from gnpcli.tables.same_data import check_same_data
from gnpcli.terminal.screen import Screen
from tests.conftest import Gnp, fails
from tests.folders import of, put
from tests.test_cli_help import EVERY, options

COUNTS = {"train": 6, "test": 3}
CLASSES = "abc"
TRAIN = (
    *("train", "-q", "--dataset", "folder:data", "--set", "model.name=tests.small:small"),
    *("--set", "data.batch_size=4", "--set", "mesh.devices=1", "--gr", "constant"),
    *("--max-steps", 2, "--run-dir", "run"),
)


def make(root: Path) -> Path:
    """Make a folder of three classes, each image another one."""
    for split, count in COUNTS.items():
        for label, name in enumerate(CLASSES):
            for index in range(count):
                seed = 100 * label + index + 50 * (split == "test")
                put(root / split / name / f"{index}.png", seed, size=16)
    return root


def move(one: Path, other: Path) -> None:
    one.rename(other)


def swap(one: Path, other: Path) -> None:
    aside = one.with_name(".aside")
    move(one, aside)
    move(other, one)
    move(aside, other)


def rename_class(root: Path, name: str, other: str) -> None:
    for split in COUNTS:
        move(root / split / name, root / split / other)


def other_format(root: Path) -> None:
    """Store the same pixels in other files."""
    for path in root.rglob("*.png"):
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "images deleted": (
        lambda root: [(root / "train" / "a" / f"{k}.png").unlink() for k in (1, 3)],
        "train: 16 images instead of 18 (a: 4 instead of 6)",
    ),
    "images added": (
        lambda root: put(root / "test" / "b" / "9.png", 999, size=16),
        "test: 10 images instead of 9 (b: 4 instead of 3)",
    ),
    "image moved to another class": (
        lambda root: move(root / "train" / "a" / "0.png", root / "train" / "b" / "9.png"),
        "train: other numbers of images (a: 5 instead of 6, b: 7 instead of 6)",
    ),
    "training folders swapped": (
        lambda root: swap(root / "train" / "a", root / "train" / "c"),
        "train: the images of classes 'a' and 'c' have changed places",
    ),
    "test folders swapped": (
        lambda root: swap(root / "test" / "a", root / "test" / "b"),
        "test: the images of classes 'a' and 'b' have changed places",
    ),
    "class renamed": (
        lambda root: rename_class(root, "b", "d"),
        "class 'b' has become 'd'; label 1 is 'c' and was 'b' (2 classes moved)",
    ),
    "class renamed in its place": (
        lambda root: rename_class(root, "b", "bb"),
        "class 'b' has become 'bb'",
    ),
    "image replaced": (
        lambda root: put(root / "train" / "c" / "2.png", 999, size=16),
        "train: other pixels, or in another order, in class 'c'",
    ),
    "order changed": (
        lambda root: move(root / "train" / "c" / "2.png", root / "train" / "c" / "7.png"),
        "train: other pixels, or in another order, in class 'c'",
    ),
    "class removed": (
        lambda root: [shutil.rmtree(root / split / "b") for split in COUNTS],
        "class 'b' is gone; label 1 is 'c' and was 'b' (1 class moved)",
    ),
    "class added": (
        lambda root: [put(root / s / "aa" / "0.png", 999, size=16) for s in COUNTS],
        "class 'aa' is new; label 1 is 'aa' and was 'b' (2 classes moved)",
    ),
    "validation added": (
        lambda root: shutil.copytree(root / "test", root / "val"),
        "there is a validation split, and there was none",
    ),
    "other size": (
        lambda root: [put(p, size=8) for p in root.rglob("*.png")],
        "images of 8 pixels a side instead of 16",
    ),
}
"""What is done to a folder, and what is said of it."""

NO_CHANGES: dict[str, Callable[[Path], object]] = {
    "nothing": lambda root: None,
    "times": lambda root: [path.touch() for path in root.rglob("*.png")],
    "names": lambda root: move(root / "train" / "c" / "2.png", root / "train" / "c" / "2a.png"),
    "file format": other_format,
}
"""What is done to a folder and leaves its pixels and their order as they are."""


def changed(before: Dataset, now: Dataset) -> str:
    assert before.spec.fingerprint is not None
    spec = DataSpec.from_dict(json.loads(json.dumps(before.spec.to_dict())))
    assert spec == before.spec
    told = "; ".join(data_changes(spec, now.spec))
    assert (told == "") == (before.spec.digest == now.spec.digest)
    return told


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_of_images_in_memory_is_named(tmp_path: Path, change: str) -> None:
    root = make(tmp_path / "data")
    before = load_dataset(of(root))
    act, words = CHANGES[change]
    act(root)
    assert changed(before, load_dataset(of(root))).startswith(words)


SEEN_AS_FILES = sorted(CHANGES.keys() - {"other size", "image replaced"})
"""Not an image that is replaced by a file of the same size: they are too many to be read."""


@pytest.mark.parametrize("change", SEEN_AS_FILES)
def test_each_change_of_streamed_files_is_named(tmp_path: Path, change: str) -> None:
    """Swaps and renames are told apart by what the first file of a class holds."""
    root = make(tmp_path / "data")
    before = load_dataset(of(root, stream=True))
    act, words = CHANGES[change]
    act(root)
    told = changed(before, load_dataset(of(root, stream=True)))
    assert told.startswith(words.replace("pixels, or", "files, or"))


@pytest.mark.parametrize("change", NO_CHANGES)
def test_the_same_pixels_are_the_same_data(tmp_path: Path, change: str) -> None:
    root = make(tmp_path / "data")
    before = load_dataset(of(root))
    NO_CHANGES[change](root)
    assert changed(before, load_dataset(of(root))) == ""


@pytest.mark.parametrize("stream", [False, True])
def test_where_and_how_data_are_fed_is_no_change(tmp_path: Path, stream: bool) -> None:
    root = make(tmp_path / "data")
    before = load_dataset(of(root, stream=stream))
    moved = root.rename(tmp_path / "moved")
    copied = shutil.copytree(moved, tmp_path / "copied")
    for other in (
        of(moved, stream=stream),
        of(copied, stream=stream),
        of(moved, stream=stream, validation_fraction=0.3, batch_size=7),
        of(moved, stream=stream, mean=[0.5] * 3, std=[0.25] * 3),
    ):
        assert changed(before, load_dataset(other)) == ""


def test_the_bundled_digits_are_what_they_were() -> None:
    """The same digest on every machine and version: a run goes on elsewhere."""
    assert load_dataset(DataConfig(name="digits")).spec.digest == "8ec96a821d6ab6a1f215991fe0a224af"


def arrays(seed: int = 0, count: int = 12) -> Dataset:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = rng.integers(0, 256, (count, 4, 4, 1), dtype=np.uint8)
    return Dataset.from_arrays(train=(images, labels), test=(images[:3], labels[:3]))


def taken(data: Dataset, order: np.ndarray) -> Dataset:
    train = replace(data.train, images=data.train.images[order], labels=data.train.labels[order])
    return replace(data, train=train)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda data: data, ""),
        (lambda data: taken(data, np.arange(12)), ""),
        (lambda data: taken(data, np.argsort(data.train.labels, kind="stable")), "train: the im"),
        (lambda data: taken(data, np.arange(12)[::-1]), "train: other pixels, or in another order"),
        (lambda data: arrays(seed=1), "train: other pixels, or in another order, in classes '0'"),
        (lambda data: arrays(count=13), "train: 13 images instead of 12"),
    ],
)
def test_arrays_are_compared_as_they_are(act: Callable[[Dataset], Dataset], words: str) -> None:
    config = DataConfig(name="arrays:mine")
    before, now = as_configured(arrays(), config), as_configured(act(arrays()), config)
    told = changed(before, now)
    assert told.startswith(words)
    assert bool(told) == bool(words)


def test_a_fingerprint_that_does_not_fit_its_classes_is_damage() -> None:
    values = as_configured(arrays(), DataConfig(name="arrays:mine")).spec.to_dict()
    values["class_names"] = ["0", "1"]
    with pytest.raises(DataError, match="fingerprint: of other classes"):
        DataSpec.from_dict(values)


def older(spec: DataSpec) -> DataSpec:
    """Return what a checkpoint of before there were fingerprints knows of its data."""
    values = spec.to_dict()
    del values["fingerprint"]
    return DataSpec.from_dict(values)


def test_an_older_checkpoint_is_compared_by_what_it_knows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make(tmp_path / "data")
    now = load_dataset(of(root)).spec
    check = partial(
        accepted_changes, older(now), what="it", accept=False, screen=Screen(quiet=True)
    )
    assert check(now) == []
    assert "warning: it has no fingerprint of its images" in capsys.readouterr().err
    for change in ("class renamed", "images deleted"):
        act, _ = CHANGES[change]
        act(root)
        with pytest.raises(CheckpointError, match="it is of other images than folder:"):
            check(load_dataset(of(root)).spec)
        shutil.rmtree(root)
        make(root)


# --- the commands


@pytest.fixture
def trained(gnp: Gnp, tmp_path: Path) -> Path:
    """A run of two steps, and its data beside it."""
    make(tmp_path / "data")
    done = gnp(*TRAIN)
    assert done.returncode == 0, done.stderr
    return tmp_path / "run"


def sessions(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run / "environment.json").read_text())["sessions"]
    return found


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_commands_refuse_changed_data_and_leave_the_run_as_it_is(gnp: Gnp, trained: Path) -> None:
    data, kept = trained.parent / "data", contents(trained)
    for change in ("images deleted", "test folders swapped"):
        act, words = CHANGES[change]
        act(data)
        fails(gnp("resume", "run"), "the checkpoint of step 2 in", "is of other images", words)
        fails(gnp("eval", "run"), "the checkpoint of step 2 is of other images", words)
        shutil.rmtree(data)
        make(data)
    act, words = CHANGES["training folders swapped"]
    act(data)
    for command in ("inspect", "check"):
        fails(gnp(command, "run"), words)
    assert contents(trained) == kept


@pytest.mark.slow
def test_a_run_goes_on_with_changed_data_when_told(gnp: Gnp, trained: Path) -> None:
    act, words = CHANGES["class renamed"]
    act(trained.parent / "data")
    assert "--accept-changed-data" in fails(gnp("resume", "run"), words)
    done = gnp("eval", "run", "--accept-changed-data", "--json")
    assert json.loads(done.stdout)["num_examples"] == 9, done.stderr
    assert words in done.stderr
    done = gnp("resume", "run", "-q", "--accept-changed-data", "--max-steps", 3)
    assert done.returncode == 0, done.stderr
    assert words in done.stderr
    first, second = sessions(trained)
    assert "accepted_data_changes" not in first
    assert "; ".join(second["accepted_data_changes"]) == words
    assert first["data"] != second["data"]
    assert gnp("report", "run").returncode == 0
    page = html.unescape((trained / "report.html").read_text())
    assert f"From step 2 on with changed data: {words}." in page
    # What was accepted is what the run has now.
    done = gnp("eval", "run")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_model_does_not_go_on_with_other_classes(gnp: Gnp, trained: Path) -> None:
    act, words = CHANGES["class added"]
    act(trained.parent / "data")
    fails(gnp("resume", "run", "--accept-changed-data"), words, "its model does not fit these")
    assert not list(trained.rglob("*.damaged"))


@pytest.mark.slow
def test_another_data_set_is_refused_where_its_classes_are_others(gnp: Gnp, trained: Path) -> None:
    other = make(trained.parent / "other")
    evaluate = ("eval", "run", "--dataset", "folder:other")
    done = gnp(*evaluate)
    assert done.returncode == 0, done.stderr
    rename_class(other, "b", "d")
    fails(gnp(*evaluate), "folder:other has classes that are not the model's: d")
    check = ("check", "run", "--set", "data.name=folder:other")
    fails(gnp(*check), "folder:other has other labels than in training: label 1 is 'c'")


def test_the_cache_is_left_alone_when_told(gnp: Gnp, tmp_path: Path) -> None:
    make(tmp_path / "data")
    own = {"GNP_CACHE_DIR": str(tmp_path / "cache")}
    preview = ("data", "preview", "--dataset", "folder:data")
    assert gnp(*preview, "--no-cache", env=own).returncode == 0
    assert not list((tmp_path / "cache").glob("images-*"))
    assert gnp(*preview, env=own).returncode == 0
    assert len(list((tmp_path / "cache").glob("images-*"))) == 1


READ_IMAGES = ("train", "resume", "eval", "inspect", "check", "reproduce-table", "data preview")
OF_A_RUN = ("resume", "eval", "inspect", "check", "reproduce-table")


@pytest.mark.parametrize("name", READ_IMAGES)
def test_what_reads_images_can_do_without_the_cache_and_take_changed_data(name: str) -> None:
    flags = {flag for option in options(EVERY[name]) for flag in option.opts}
    assert "--no-cache" in flags
    assert ("--accept-changed-data" in flags) == (name in OF_A_RUN)


def test_a_table_does_not_keep_cells_that_were_trained_on_other_data(
    tmp_path: Path, cache: Path
) -> None:
    root = make(tmp_path / "data")
    config = resolve(None, [f"data.name=folder:{root}"])
    before = load_dataset(config.data).spec.digest
    cells = [Cell("a", "b", seed, config, tmp_path / f"seed{seed}") for seed in range(3)]
    for cell, recorded in zip(cells, [{"data": before}, {}], strict=False):
        RunFolder(cell.run_dir).create(config)
        RunFolder(cell.run_dir).note_session(recorded, 0)
    states = check_folders(cells)
    assert list(states.values()) == ["begun", "begun", "absent"]
    check = partial(check_same_data, cells, states, screen=Screen(quiet=True))
    check(accept=False)
    act, _ = CHANGES["test folders swapped"]
    act(root)
    with pytest.raises(CheckpointError, match="a b seed 0 was trained on other images"):
        check(accept=False)
    check(accept=True)
    shutil.rmtree(root)
    check(accept=False)  # there is nothing to train on, or to compare with
