"""``gnp bench data``: what it measures, on small inputs; nothing is asserted of times."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gnpcli.bench import streamed
from tests.conftest import Gnp, fails


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five JPEG files, one of them grey, below a folder with a space and another alphabet in its
    name.
    """
    folder = tmp_path / "bild er é" / "deeper"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(5):
        image = Image.fromarray(rng.integers(0, 256, (50 + number, 60, 3), dtype=np.uint8))
        (image.convert("L") if number == 2 else image).save(folder / f"{number}.JPEG")
    (folder / "notes.txt").write_text("no image")
    return folder.parent


def test_streaming_is_measured_beside_a_loop_over_pillow_and_with_its_memory(
    gnp: Gnp, folder: Path
) -> None:
    settings = ["data.batch_size=4", "data.workers=0", "data.image_size=32"]
    arguments = [word for setting in settings for word in ("--set", setting)]
    done = gnp(
        "bench", "data", "--images", folder, "--rounds", 2, "--count", 30, "--json", *arguments
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["images"], result["image_size"], result["rounds"]) == (5, 32, 2)
    rows = {row["name"]: row for row in result["measurements"]}
    has_torch = all(importlib.util.find_spec(name) for name in ("torch", "torchvision"))
    assert list(rows) == ["pillow", "gnp", *(["torchvision"] if has_torch else [])]
    assert rows["pillow"]["over_pillow"] == 1
    assert all(row["images_per_s"] > 0 and row["over_pillow"] > 0 for row in rows.values())
    # Of 8 batches of 4 at ten points: as many as there are, the last one after all.
    counts, megabytes = zip(*result["feed"]["memory"], strict=True)
    assert list(counts) == [4, 8, 12, 16, 20, 24, 28, 32]
    assert all(held is None or held > 50 for held in megabytes)


def test_the_usual_transforms_of_torchvision_are_what_they_are_measured_as(folder: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("torchvision")
    threads = torch.get_num_threads()
    loop = streamed._torchvision_loop(32, 0.08)
    try:
        assert loop is not None
        loop([str(path) for path in sorted(folder.rglob("*.JPEG"))], np.random.default_rng(0))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_feeds_in_memory_are_measured_alone_and_inside_a_step(gnp: Gnp) -> None:
    arguments = ["--variants", "none,cutmix", "--rounds", 1, "--steps", 1, "--json"]
    done = gnp("bench", "data", *arguments, "--set", "model.patch_size=4", timeout=900)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    rows = {row["name"]: row for row in result["measurements"]}
    assert list(rows) == ["none", "cutmix"]
    assert rows["none"]["relative_rate"] == 1
    for row in rows.values():
        assert row["feed_images_per_s"] > row["images_per_s"] > 0
        assert 0 < row["feed_share"] < 1


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (
            ["--variants", "basic,mixup2"],
            ["unknown variant 'mixup2'", "choices: none, crop, basic"],
        ),
        (["--images", "nowhere"], ["no images below nowhere", ".jpg"]),
    ],
)
def test_what_cannot_be_measured_is_refused(
    gnp: Gnp, arguments: list[str], parts: list[str]
) -> None:
    fails(gnp("bench", "data", *arguments), *parts)
