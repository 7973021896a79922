"""The cache of decoded images: what it notices, and what it survives."""

from __future__ import annotations

import io
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gnpcli.config.schema import DataConfig
from gnpcli.data.images import assemble
from gnpcli.data.registry import load_dataset
from tests.folders import of, pixels, put

pytestmark = pytest.mark.usefixtures("cache")


def test_cache_answers_the_second_time_and_is_the_same(
    root: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    first = load_dataset(of(root))
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(assemble, "decode_files", None)
    second = load_dataset(of(root), lambda done, total, *_: pytest.fail("decoded"))
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
        load_dataset(config, lambda done, total, *_: decoded.append(done))
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


def swap(one: Path, other: Path) -> None:
    """Give two files or folders each other's name, as `mv` does."""
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def equal_sized(root: Path) -> None:
    """Make all images files of one size, written at one time, as an archive unpacks them."""
    for path in root.rglob("*.png"):
        pixels(seed=len(str(path)) + sum(path.read_bytes())).save(path.with_suffix(".bmp"))
        path.unlink()
        os.utime(path.with_suffix(".bmp"), ns=(1, 1))


def replaced(file: Path, content: bytes) -> None:
    facts = file.stat()
    file.write_bytes(content)
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))


HIDDEN = {
    "folders": lambda train: swap(train / "ant", train / "bee"),
    "files of a class": lambda train: swap(train / "ant" / "0.bmp", train / "ant" / "1.bmp"),
    "files of classes": lambda train: swap(train / "ant" / "0.bmp", train / "bee" / "0.bmp"),
    "written over": lambda train: replaced(
        train / "ant" / "0.bmp", (train / "ant" / "1.bmp").read_bytes()
    ),
    "a copy in its place": lambda train: shutil.copy2(
        shutil.copy2(train / "ant" / "1.bmp", train / "ant" / "new"), train / "ant" / "0.bmp"
    ),
}
"""Changes that leave names, sizes and times of change as they are."""


@pytest.mark.parametrize("change", HIDDEN)
def test_cache_notices_what_sizes_and_times_hide(root: Path, change: str) -> None:
    equal_sized(root)
    first = load_dataset(of(root))
    HIDDEN[change](root / "train")
    second = load_dataset(of(root))
    assert not np.array_equal(first.train.images, second.train.images)
    want = load_dataset(of(root, image_size=6))  # an entry of its own, made of the files
    np.testing.assert_array_equal(second.train.images, want.train.images)


def test_a_cache_that_is_switched_off_is_neither_read_nor_written(
    root: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setenv("GNP_NO_CACHE", "1")
    load_dataset(of(root))
    assert not cache.exists()
    monkeypatch.delenv("GNP_NO_CACHE")
    load_dataset(of(root))
    monkeypatch.setenv("GNP_NO_CACHE", "1")
    monkeypatch.setattr(assemble, "decode_files", None)
    with pytest.raises(TypeError):
        load_dataset(of(root))


def test_files_that_change_while_they_are_decoded_are_not_cached(
    root: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = root / "test" / "bee" / "1.png"
    load_dataset(of(root), lambda done, total, *_: os.utime(file, ns=(done, done)))
    assert "changed while they were decoded" in caplog.text
    assert not cache.exists()


def test_damaged_cache_is_noticed_and_rebuilt(
    root: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    want = load_dataset(of(root))
    (entry,) = cache.iterdir()
    whole = entry.read_bytes()
    damages = [whole[:size] for size in (0, 1, 100, len(whole) // 2, len(whole) - 1)]
    for place in range(0, len(whole), 97):
        for flipped in (0x55, 1 << place % 8):
            damages.append(whole[:place] + bytes([whole[place] ^ flipped]) + whole[place + 1 :])
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


def test_entry_of_another_length_is_not_trusted(
    root: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
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


@pytest.mark.parametrize("room", [100, 1500])
def test_a_disk_that_is_full_for_real_fails_no_run(root: Path, cache: Path, room: int) -> None:
    script = (
        "import logging, resource; logging.basicConfig();"
        "from gnpcli.data.registry import load_dataset;"
        "from tests.folders import of;"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, resource.RLIM_INFINITY));"
        f"print(len(load_dataset(of({str(root)!r})).train))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "6\n"
    (note,) = done.stderr.splitlines()
    assert "the cache cannot be written: [Errno 27] File too large" in note
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
