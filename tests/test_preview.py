"""The contact sheet holds the images of the step, before and after what training does to them."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from PIL import Image

from gnpcli.data.feeds.make import make_train_feed
from gnpcli.data.registry import load_dataset
from gnpcli.devices.mesh import make_mesh
from gnpcli.keys import augment_key, run_keys
from gnpcli.recipes.presets import resolve
from tests.conftest import Gnp, fails

SIDE, GAP, LINE = 128, 8, 14  # 8-pixel digits, enlarged 16 times


def height(lines: int) -> int:
    """Return that of a row of pairs whose lower captions have so many lines."""
    return 2 * SIDE + (1 + lines) * LINE + 2 * GAP


def cell(sheet: np.ndarray, index: int, columns: int, row: int, lines: int) -> np.ndarray:
    """Return the 8x8 grey image of a cell: row 0 is before, row 1 after augmentation."""
    left = GAP + index % columns * (SIDE + GAP)
    top = GAP + index // columns * height(lines) + row * (SIDE + LINE)
    block = sheet[top : top + SIDE, left : left + SIDE]
    assert (block == np.repeat(np.repeat(block[::16, ::16], 16, 0), 16, 1)).all(), (
        "not an enlarged image"
    )
    return block[::16, ::16, 0]


@pytest.mark.parametrize(
    ("assignments", "step", "said"),
    [
        (["data.augment=none"], 0, "no augmentation"),
        pytest.param(
            ["data.augment=randaugment", "data.mix=mixup", "train.seed=3"],
            150,
            "randaugment and mixup",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_preview_shows_what_the_step_sees(gnp: Gnp, tmp_path, assignments, step, said):
    sets = [word for assignment in assignments for word in ("--set", assignment)]
    done = gnp(
        "data", "preview", *sets, "--count", 6, "--columns", 4, "--step", step, "--out", "sheet.png"
    )
    assert done.returncode == 0, done.stderr
    assert f"6 images of digits, before and after {said}" in done.stdout
    lines = 2 if "mixup" in said else 1  # mixed images have two classes
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.size == (4 * (SIDE + GAP) + GAP, 2 * height(lines) + GAP)
        sheet = np.asarray(image)

    config = resolve(None, [*assignments, "data.batch_size=6", "mesh.devices=1"])
    dataset = load_dataset(config.data)
    keys = run_keys(config.train.seed)
    feed = make_train_feed(
        dataset.train, dataset.spec, config.data, make_mesh(config), key=keys.order, dtype="float32"
    )
    source = feed.source(step)
    at = step % feed.steps_per_epoch
    before = dataset.train.images[np.asarray(source["order"])[6 * at : 6 * at + 6]]
    images, _ = jax.jit(feed.batch)(source, np.int32(at), augment_key(keys.steps, step))
    after = np.rint(255 * (np.asarray(images) * dataset.spec.std[0] + dataset.spec.mean[0])).clip(
        0, 255
    )
    for index in range(6):
        np.testing.assert_array_equal(cell(sheet, index, 4, 0, lines), before[index, ..., 0])
        np.testing.assert_array_equal(cell(sheet, index, 4, 1, lines), after[index, ..., 0])
    assert (before == after).all() == (said == "no augmentation")


def test_preview_refuses_a_folder_that_is_not_there(gnp: Gnp):
    done = gnp("data", "preview", "--out", "nowhere/sheet.png")
    assert done.returncode == 2
    assert "no folder" in done.stderr


def test_preview_names_an_unknown_preset(gnp: Gnp):
    fails(gnp("data", "preview", "--preset", "vit-s-cifar01"), "unknown preset", "vit-s-cifar10")
