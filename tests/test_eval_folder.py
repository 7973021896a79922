"""``gnp eval`` on another folder of images: without train, and with the labels of the run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.commands import FINDS_SMALL, CommandServer
from tests.conftest import Gnp, fails

CLASSES = ("ant", "bee", "wasp")


def draw(folder: Path, count: int, seed: int) -> None:
    """Write images of a class, which differ in their brightness, with much noise."""
    rng = np.random.default_rng(seed)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.normal(60 * (label + 1), 60, (8, 8, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, command_server: CommandServer) -> Path:
    """Return a folder with images in ``data`` and a run on them in ``run``."""
    place = tmp_path_factory.mktemp("trained")
    draw(place / "data" / "train", 16, seed=0)
    draw(place / "data" / "test", 10, seed=1)
    words = [
        "train",
        "-q",
        "--dataset",
        "folder:data",
        "--run-dir",
        "run",
        "--epochs",
        "2",
        "--gr",
        "none",
    ]
    for assignment in ("model.name=tests.small:small", "data.batch_size=16"):
        words += ["--set", assignment]
    environment = {**os.environ, **FINDS_SMALL}
    done = command_server.run(words, cwd=place, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture(scope="session")
def whole(trained: Path, command_server: CommandServer) -> dict[str, Any]:
    """Return how the run evaluates its own test images."""
    words, environment = ["eval", "run", "--json"], {**os.environ, **FINDS_SMALL}
    done = command_server.run(words, cwd=trained, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert 0 < errors(result) < result["num_examples"] == 30
    return result


@pytest.fixture
def place(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of `trained` in which `gnp` runs."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path


def evaluated(gnp: Gnp, *words: str) -> tuple[dict[str, Any], str]:
    done = gnp("eval", "run", "--json", *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def errors(result: dict[str, Any]) -> int:
    return round(result["error_rate"] * result["num_examples"])


@pytest.mark.slow
def test_the_split_alone_is_enough(gnp: Gnp, place: Path, whole: dict[str, Any]) -> None:
    (place / "other").mkdir()
    shutil.copytree(place / "data" / "test", place / "other" / "test")
    for name in ("test", "Valid"):
        result, said = evaluated(gnp, "--dataset", "folder:other")
        assert (result["error_rate"], result["loss"]) == (whole["error_rate"], whole["loss"])
        assert said == ""
        fails(gnp("eval", "run", "--dataset", "folder:other", "--split", "train"), "no train split")
        if name == "test":
            (place / "other" / "test").rename(place / "other" / "Valid")


def test_classes_have_the_labels_of_the_run(gnp: Gnp, place: Path, whole: dict[str, Any]) -> None:
    found = 0
    for name in CLASSES:  # alone, its label would be 0
        other = place / name / "test" / name
        shutil.copytree(place / "data" / "test" / name, other)
        result, said = evaluated(gnp, "--dataset", f"folder:{name}")
        assert result["num_examples"] == 10
        found += errors(result)
        rest = ", ".join(other for other in CLASSES if other != name)
        assert said == (f"warning: folder:{name} has no images of 2 classes of the model: {rest}\n")
    assert found == errors(whole)


@pytest.mark.slow
def test_a_folder_with_train_has_them_too(gnp: Gnp, place: Path, whole: dict[str, Any]) -> None:
    shutil.copytree(place / "data", place / "two")
    for split in ("train", "test"):
        shutil.rmtree(place / "two" / split / "ant")
    two, said = evaluated(gnp, "--dataset", "folder:two")
    assert "has no images of 1 class of the model: ant" in said
    (place / "one").mkdir()
    shutil.copytree(place / "data" / "test" / "ant", place / "one" / "test" / "ant")
    one, _ = evaluated(gnp, "--dataset", "folder:one")
    assert errors(one) + errors(two) == errors(whole)


def test_classes_that_the_run_does_not_know_are_refused(gnp: Gnp, place: Path) -> None:
    shutil.copytree(place / "data" / "test", place / "other" / "test")
    (place / "other" / "test" / "wasp").rename(place / "other" / "test" / "hornet")
    done = gnp("eval", "run", "--dataset", "folder:other")
    fails(done, "has classes that are not the model's: hornet; the model knows ant, bee, wasp")
    for name, new in (("ant", "mier"), ("bee", "bij"), ("hornet", "wesp")):
        (place / "other" / "test" / name).rename(place / "other" / "test" / new)
    _, said = evaluated(gnp, "--dataset", "folder:other")
    assert said == ("warning: the classes of folder:other have other names than in training\n")


def test_a_folder_of_classes_without_splits_says_what_it_holds(gnp: Gnp, place: Path) -> None:
    done = gnp("eval", "run", "--dataset", "folder:data/test")
    fails(done, "has no train folder, it is one itself: give the folder that holds it")
    shutil.copytree(place / "data" / "test", place / "photos")
    fails(gnp("eval", "run", "--dataset", "folder:photos"), "no train folder, but ant, bee, wasp")
