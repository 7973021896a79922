"""``gnp data list`` and the refusals of ``gnp data prepare``, as a user meets them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from gnpcli.data.registry import SOURCES
from gnpcli.errors import ConfigError
from gnpcli.terminal.loading import LoadingDisplay
from tests.archives import random_images, write_own_tfds, write_tfds
from tests.conftest import Gnp, fails, on_a_terminal


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GNP_DATA_DIR", "TFDS_DATA_DIR", "GNP_MIRROR", "GNP_CHECKSUMS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data_dir with prepared sets, an image folder, and what is none of these."""
    import tensorflow_datasets as tfds

    images = random_images("svhn_cropped", {"train": 30, "test": 20})
    write_tfds(tmp_path / "d", images, "svhn_cropped")
    grey = {split: (x[:, :28, :28, :1], y) for split, (x, y) in images.items()}
    write_tfds(tmp_path / "d", grey, "mnist")
    own = {
        "birds": {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(num_classes=2),
        },
        "poems": {"text": tfds.features.Text()},
    }
    write_own_tfds(
        tmp_path / "d",
        "birds",
        {"train": [{"image": Image.new("RGB", (9, 8)), "label": 1}]},
        own["birds"],
        "big",
    )
    write_own_tfds(tmp_path / "d", "poems", {"train": [{"text": "x"}]}, own["poems"])
    (tmp_path / "d" / "cifar100" / "3.0.2").mkdir(parents=True)
    (tmp_path / "d" / "imagenet" / "train" / "n01440764").mkdir(parents=True)
    return tmp_path / "d"


def by_name(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, object]]:
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return {row["name"]: row for row in json.loads(done.stdout)}


def test_list_shows_every_source_and_what_else_is_prepared(gnp: Gnp, data: Path) -> None:
    rows = by_name(gnp("data", "list", "--data-dir", "d", "--json"))
    assert list(rows) == [*SOURCES, "tfds:birds/big", "tfds:mnist"]
    svhn = rows["svhn_cropped"]
    size = sum(path.stat().st_size for path in (data / "svhn_cropped" / "3.1.0").iterdir())
    assert svhn["where"] == "d/svhn_cropped/3.1.0"
    assert (svhn["format"], svhn["num_bytes"], svhn["splits"]) == (
        "array_record",
        size,
        {"train": 30, "test": 20},
    )
    absent = rows["cifar10"]
    assert (absent["where"], absent["format"], absent["num_bytes"]) == (None, None, None)
    assert (absent["splits"], absent["num_classes"]) == ({"train": 50_000, "test": 10_000}, 10)
    assert absent["download_bytes"] == 170_052_171
    assert "cifar100/3.0.2 looks like a TFDS folder but was not prepared" in str(
        rows["cifar100"]["problem"]
    )
    assert (rows["imagenet"]["where"], rows["imagenet"]["format"]) == ("d/imagenet", "image folder")
    assert (rows["digits"]["format"], rows["digits"]["splits"]) == (
        "bundled",
        {"train": 1437, "test": 360},
    )
    mnist = rows["tfds:mnist"]
    assert (mnist["num_classes"], mnist["image_size"], mnist["channels"]) == (10, 28, 1)
    assert (rows["tfds:birds/big"]["image_size"], rows["tfds:birds/big"]["splits"]) == (
        None,
        {"train": 1},
    )

    table = gnp("data", "list", "--data-dir", "d").stdout.splitlines()
    assert table[0].split() == [
        "name",
        "images",
        "classes",
        "pixels",
        "format",
        "on",
        "disk",
        "where",
    ]
    lines = {line.split()[0]: line for line in table[1:]}
    assert list(lines) == list(rows)
    for part in ("30 + 20", "10", "32x32x3", "array_record", "d/svhn_cropped/3.1.0"):
        assert part in lines["svhn_cropped"]
    assert "absent; gnp data prepare cifar10 downloads 170 MB" in lines["cifar10"]


def test_list_fits_a_terminal_with_folders_on_lines_of_their_own(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data.parent)
    status, shown = on_a_terminal("data", "list", "--data-dir", "d")
    assert status == 0, shown
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()  # the header is bold
    assert lines[0].split() == ["name", "images", "classes", "pixels", "format", "on", "disk"]
    at = next(number for number, line in enumerate(lines) if line.startswith("svhn_cropped"))
    assert lines[at + 1] == "    d/svhn_cropped/3.1.0"
    assert all(len(line) <= 80 for line in lines if not line.startswith(" "))


def test_list_finds_image_folders_and_default_places(gnp: Gnp, data: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "cifar10" / "train").mkdir(parents=True)
    rows = by_name(gnp("data", "list", "--json", env={"TFDS_DATA_DIR": str(data)}))
    assert (rows["cifar10"]["where"], rows["cifar10"]["format"]) == ("data/cifar10", "image folder")
    assert rows["cifar10"]["num_bytes"] is None
    assert rows["svhn_cropped"]["where"] == f"{data}/svhn_cropped/3.1.0"
    assert "tfds:mnist" in rows
    assert by_name(gnp("data", "list", "--json"))["imagenet"]["splits"] == {
        "train": 1_281_167,
        "val": 50_000,
    }


def test_list_reads_no_image_folder_and_imports_nothing_heavy(data: Path, tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom gnpcli.cli import main\n"
        "seen, scan = [], os.scandir\n"
        "os.scandir = lambda path='.': (seen.append(str(path)), scan(path))[1]\n"
        "sys.argv = ['gnp', 'data', 'list', '--data-dir', 'd']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('jax', 'tensorflow_datasets', 'array_record', 'scipy', 'requests') if "
        "m in sys.modules])\n"
        "print([path for path in seen if 'n01440764' in path])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.splitlines()[-2:] == ["[]", "[]"], done.stderr


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["digits"], ["digits cannot be prepared for you: it is bundled with gnp"]),
        (
            ["folder:x"],
            ["folder:x cannot be prepared for you: it is read as it is", "DIR/train/<class>/"],
        ),
        (
            ["imagenet"],
            [
                "imagenet cannot be prepared",
                "ILSVRC2012_img_train.tar",
                "DIR/train/<wnid>/",
                "--data-dir",
            ],
        ),
        (
            ["tfds:mnist"],
            ["tfds:mnist cannot be prepared for you", "tfds build NAME --file_format=array_record"],
        ),
        (["cifar"], ["unknown data set 'cifar'", "did you mean 'cifar10'"]),
        (
            ["cifar10", "--split", "extra"],
            ["cifar10 has no split 'extra' (its splits: train, test)"],
        ),
        (["svhn_cropped", "--split", "train+"], ["'train+' should name splits once each"]),
        (["cifar10", "--checksums", "none"], ["none cannot be read: No such file"]),
        (
            ["cifar10", "--mirror", "nowhere"],
            ["nowhere/cifar-10-binary.tar.gz", "No scheme supplied"],
        ),
    ],
)
def test_what_cannot_be_prepared_says_what_to_do(
    gnp: Gnp, tmp_path: Path, arguments: list[str], parts: list[str]
) -> None:
    fails(gnp("data", "prepare", *arguments), *parts)
    assert list(tmp_path.iterdir()) == []


def test_help_names_the_commands(gnp: Gnp) -> None:
    done = gnp("data")
    assert all(word in done.stdout for word in ("list", "prepare", "preview"))


@pytest.mark.parametrize("quiet", [False, True])
def test_plain_lines_where_there_is_no_terminal(
    quiet: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    with open(os.devnull, "w") as sink:
        console = Console(file=sink)
        with LoadingDisplay("birds", console, lines.append, quiet=quiet) as display:
            for done in np.linspace(0, 3e6, 50):
                display(int(done), 3_000_000, "downloading a.bin", "bytes")
            display(0, 0, "downloading b.bin", "bytes")
            display(7, 9)
            later = time.monotonic() + LoadingDisplay.PLAIN_EVERY_S
            monkeypatch.setattr(time, "monotonic", lambda: later)
            display(8, 9)
    want = ["downloading a.bin: 0 B/3.0 MB", "downloading b.bin: 0 B"]
    assert lines == (
        [] if quiet else [*want, "reading birds: 7/9 images", "reading birds: 8/9 images"]
    )


def test_a_bar_on_a_terminal_shows_amount_and_leaves_nothing_behind() -> None:
    with open(os.devnull, "w") as sink:
        console = Console(file=sink, force_terminal=True, width=80, record=True)
        with LoadingDisplay("birds", console, lambda text: pytest.fail(text)) as display:
            display(500_000, 2_000_000, "downloading a.bin", "bytes")
            display(5, 9)
        shown = console.export_text()
    assert "reading birds" in shown
    assert "5/9 images" in shown


WRONG = {
    "model.patch_size=5": ["patch", "32"],
    "data.crop_padding=32": ["data.crop_padding 32 must be below the image size 32"],
    "data.batch_size=60000": ["data.batch_size 60000 is more than the 50000 training images"],
}


@pytest.mark.parametrize("assignment", WRONG)
def test_a_configuration_that_does_not_fit_is_refused_before_anything_is_fetched(
    assignment: str, tmp_path: Path
) -> None:
    from gnpcli.engine.train import train
    from gnpcli.recipes.presets import resolve

    # Nobody answers at the mirror of the tests: had it been asked, the error would be another one.
    with pytest.raises(ConfigError) as caught:
        train(resolve("vit-ti-cifar10", [assignment]), tmp_path / "run", quiet=True)
    for part in WRONG[assignment]:
        assert part in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_wrong_option_of_the_model_is_one_line_where_the_data_is_absent(gnp: Gnp) -> None:
    fails(
        gnp("train", "--preset", "vit-ti-cifar10", "--set", "model.patch_size=5"),
        "patches of 5 pixels",
    )
