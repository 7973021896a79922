"""Decoding and resizing against Pillow: the same bits of a JPEG, the same filter to one level."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from gnpcli.data.images import resize
from gnpcli.data.images.opening import opened
from gnpcli.data.images.pixels import read_pixels, read_square
from tests.conftest import SHARED_DATA

SAMPLES = SHARED_DATA / "imagenet-samples-120.tar"


def noise(width: int, height: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(width * height).integers(
        0, 256, (height, width, channels), dtype=np.uint8
    )


def pillow(path: Path, scale: int = 1) -> np.ndarray:
    """Decode with Pillow alone."""
    with Image.open(path) as image:
        if scale > 1:
            image.draft(None, (image.width // scale, image.height // scale))
        pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


JPEGS: dict[str, dict[str, object]] = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "4:1:1": {"subsampling": "4:1:1"},
    "progressive": {"progressive": True},
    "stored as RGB": {"keep_rgb": True},
    "restart markers": {"restart_marker_blocks": 3},
    "grey": {},
}


@pytest.fixture
def scaled_by_turbo(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note the scales at which simplejpeg succeeds."""
    noted: list[int] = []
    original = simplejpeg.decode_jpeg

    def decode_jpeg(*arguments: object, **options: Any) -> np.ndarray:
        pixels = original(*arguments, **options)
        noted.append(options["min_factor"])
        return pixels

    monkeypatch.setattr(simplejpeg, "decode_jpeg", decode_jpeg)
    return noted


@pytest.mark.parametrize("what", JPEGS)
@pytest.mark.parametrize("shape", [(320, 200), (321, 203), (16, 9)])
def test_jpegs_have_pillows_bits_at_every_scale(
    what: str, shape: tuple[int, int], scaled_by_turbo: list[int], tmp_path: Path
) -> None:
    path = tmp_path / "x.jpg"
    image = Image.fromarray(noise(*shape))
    (image.convert("L") if what == "grey" else image).save(
        path, format="JPEG", quality=90, **JPEGS[what]
    )
    for scale in (1, 2, 4, 8):
        with opened(str(path)) as file:
            pixels, used = read_pixels(file, scale)
        assert used == scale
        np.testing.assert_array_equal(pixels, pillow(path, scale))
    assert scaled_by_turbo == [1, 2, 4, 8]


def test_real_photographs_have_pillows_bits(scaled_by_turbo: list[int], tmp_path: Path) -> None:
    if not SAMPLES.exists():
        pytest.skip(f"{SAMPLES} is absent: real photographs are not part of the project")
    with tarfile.open(SAMPLES) as archive:
        archive.extractall(
            tmp_path, [member for member in archive if member.isfile()][::8], filter="data"
        )
    paths = sorted(tmp_path.rglob("*.JPEG"))
    for path in paths:
        for scale in (1, 2):
            with opened(str(path)) as file:
                np.testing.assert_array_equal(read_pixels(file, scale)[0], pillow(path, scale))
    assert len(paths) == 15
    assert len(scaled_by_turbo) == 30


@pytest.mark.parametrize("what", ["junk before the end", "a changed bit", "CMYK", "PNG"])
def test_what_is_not_a_sound_jpeg_is_decoded_by_pillow_in_full(
    what: str, scaled_by_turbo: list[int], tmp_path: Path
) -> None:
    file = io.BytesIO()
    image = Image.fromarray(noise(80, 60))
    (image.convert("CMYK") if what == "CMYK" else image).save(
        file, format="PNG" if what == "PNG" else "JPEG"
    )
    content = bytearray(file.getvalue())
    if what == "junk before the end":
        content[-2:-2] = b"junk" * 5
    elif what == "a changed bit":
        content[len(content) // 2] ^= 0x5A
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    with opened(str(path)) as opened_image:
        pixels, used = read_pixels(opened_image, 4)
    assert used == 1
    with Image.open(path) as image:
        np.testing.assert_array_equal(pixels, np.asarray(image.convert("RGB")))
    assert scaled_by_turbo == []


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("colour", ["L", "RGB"])
def test_squares_are_the_middle_resized(channels: int, colour: str, tmp_path: Path) -> None:
    Image.fromarray(noise(90, 60)).convert(colour).save(tmp_path / "x.png")
    with opened(str(tmp_path / "x.png")) as image:
        got = read_square(image, 24, channels)
    with Image.open(tmp_path / "x.png") as file:
        middle = file.convert("L" if channels == 1 else "RGB").crop((15, 0, 75, 60))
        want = np.asarray(middle.resize((24, 24), Image.Resampling.BILINEAR)).reshape(
            24, 24, channels
        )
    assert got.shape == (24, 24, channels)
    assert np.abs(got.astype(int) - want).max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(60, 60), (300, 101), (19, 40), (500, 7), (1, 1)])
def test_resizing_is_pillows_to_one_level(
    shape: tuple[int, int], channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    resizer = vars(resize)["Resizer"]
    assert resizer is not None, "cykooz-resizer is part of the development environment"
    rng = np.random.default_rng(0)
    pixels = noise(*shape, channels)
    results = []
    for implementation in (resizer, None):
        monkeypatch.setattr(resize, "Resizer", implementation)
        rng = np.random.default_rng(0)
        for size in (1, 8, 33, 224):
            x, y = (np.sort(rng.uniform(0, side, 2)) for side in shape)
            for box in (None, (0, 0, *shape), (x[0], y[0], x[1], y[1])):
                results.append(resize.resize(pixels, size, box).astype(int))
    half = len(results) // 2
    for one, other in zip(results[:half], results[half:], strict=True):
        assert one.shape == other.shape
        assert np.abs(one - other).max() <= 1
    same = noise(16, 16, channels)
    np.testing.assert_array_equal(resize.resize(same, 16), same)


def test_without_its_fast_implementation_resizing_is_pillows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resize, "Resizer", None)
    pixels = noise(61, 47)
    want = Image.fromarray(pixels).resize(
        (20, 20), Image.Resampling.BILINEAR, box=(3.5, 2, 40, 41.25)
    )
    np.testing.assert_array_equal(resize.resize(pixels, 20, (3.5, 2, 40, 41.25)), np.asarray(want))
