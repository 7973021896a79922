"""What the pixels of an image mean: orientation, transparency, depth, metadata, and its limits."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gnpcli.config.schema import DataConfig
from gnpcli.data.images.crops import Transform
from gnpcli.data.images.opening import opened, silence_pillow
from gnpcli.data.images.pixels import AS_STORED, WHITE, Decoding, decoding, read_pixels, read_square
from gnpcli.data.registry import load_dataset
from gnpcli.errors import ConfigError, DataError
from gnpcli.recipes.presets import resolve
from tests.folders import of, put

pytestmark = pytest.mark.usefixtures("cache")

ORIENTATION = 0x0112
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}
"""What is to be seen of stored pixels, by the number in EXIF."""


def smooth(width: int, height: int) -> np.ndarray:
    """Return an image without a symmetry that survives JPEG: uint8 ``[height, width, 3]``."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = 255 * x / width, 255 * y / height
    return np.stack([red, green, (red + 2 * green) / 3], axis=-1).astype(np.uint8)


def save(pixels: np.ndarray, path: Path, exif: bytes) -> None:
    """Write an image with EXIF, as well as its format can."""
    Image.fromarray(pixels).save(path, exif=exif, quality=100, lossless=True)


def with_orientation(number: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = number
    return exif.tobytes()


# --- orientation


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("number", UPRIGHT)
def test_each_orientation_is_undone_in_folders(number: int, suffix: str, root: Path) -> None:
    path = root / "train" / "ant" / f"0.{suffix}"
    (root / "train" / "ant" / "0.png").unlink()
    save(smooth(9, 6), path, with_orientation(number))
    with opened(str(path)) as image:
        stored, _ = read_pixels(image)
    seen = UPRIGHT[number](stored)
    height, width, _ = seen.shape
    left, top = (width - 6) // 2, (height - 6) // 2
    want = seen[top : top + 6, left : left + 6]
    got = load_dataset(of(root, image_size=6)).train.images[0]
    np.testing.assert_array_equal(got, want)
    as_stored = load_dataset(of(root, image_size=6, exif_orientation=False)).train.images[0]
    np.testing.assert_array_equal(as_stored, stored[:, 1:7])


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("number", UPRIGHT)
def test_each_orientation_is_undone_in_streamed_images(
    number: int, suffix: str, tmp_path: Path
) -> None:
    turned, plain = tmp_path / f"turned.{suffix}", tmp_path / "plain.png"
    image = Image.fromarray(smooth(321, 203))
    image.save(turned, exif=with_orientation(number), quality=95)
    with Image.open(turned) as file:
        Image.fromarray(UPRIGHT[number](np.asarray(file))).save(plain)
    for min_area in (None, 0.2):
        transform = Transform(24, min_area, decoding=Decoding(upright=True))
        for seed in range(3):
            got = transform(str(turned), np.random.default_rng(seed)).astype(int)
            want = transform(str(plain), np.random.default_rng(seed)).astype(int)
            # A JPEG is decoded at a part of its size where the box keeps enough pixels.
            assert np.abs(got - want).max() <= (4 if suffix == "jpg" else 1)


def test_a_tiff_is_upright_whatever_is_asked_for(tmp_path: Path) -> None:
    stored = smooth(9, 6)
    for number, upright in UPRIGHT.items():
        path = tmp_path / f"{number}.tif"
        Image.fromarray(stored).save(path, tiffinfo={ORIENTATION: number})
        for asked in (False, True):
            with opened(str(path)) as image:
                assert image.size == upright(stored).shape[1::-1]
                got = read_square(image, 6, 3, Decoding(upright=asked))
            seen = upright(stored)
            left, top = ((side - 6) // 2 for side in (seen.shape[1], seen.shape[0]))
            np.testing.assert_array_equal(got, seen[top : top + 6, left : left + 6])


BROKEN_EXIF = {
    "no TIFF": b"Exif\0\0garbage",
    "empty": b"Exif\0\0",
    "cut off": with_orientation(6)[:20],
    "far away": b"Exif\0\0II*\0\xff\xff\xff\x7f",
    "too many entries": b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(20),
    "number 0": with_orientation(0),
    "number 9": with_orientation(9),
    "a text": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x02\0\0\0" + b"6\0\0\0" + bytes(4),
}


@pytest.mark.parametrize("what", BROKEN_EXIF)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_damaged_exif_is_no_damage_of_the_image(what: str, suffix: str, root: Path) -> None:
    (root / "train" / "ant" / "0.png").unlink()
    path = root / "train" / "ant" / f"0.{suffix}"
    save(smooth(6, 6), path, BROKEN_EXIF[what])
    # A warning of Pillow would be an error here, and the image damaged.
    got = load_dataset(of(root)).train.images[0]
    save(smooth(6, 6), path, b"")
    np.testing.assert_array_equal(got, load_dataset(of(root)).train.images[0])


def test_who_turns_and_who_drops_transparency_where_nothing_is_said() -> None:
    assert decoding(DataConfig(name="folder:x")) == Decoding(WHITE, upright=True)
    for name in ("imagenet", "cifar10", "tfds:x"):
        assert decoding(DataConfig(name=name)) == AS_STORED
        asked = DataConfig(name=name, background=[1, 2, 3], exif_orientation=True)
        assert decoding(asked) == Decoding((1, 2, 3), upright=True)
    never = DataConfig(name="folder:x", exif_orientation=False)
    assert decoding(never) == Decoding(WHITE, upright=False)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[1,2]", r"data\.background: expected at least 3 values, got \[1, 2\]"),
        ("[1,2,3,4]", r"data\.background: expected at most 3 values, got \[1, 2, 3, 4\]"),
        ("[1,2,256]", r"data\.background\.2: 256 is out of range \(must be <= 255\)"),
        ("white", r"data\.background: expected a list, got 'white'"),
    ],
)
def test_a_background_is_three_bytes(value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(None, [f"data.background={value}"])


# --- transparency and depth

BEHIND = (10, 20, 30)
BEHIND_GREY = 18
"""Of `BEHIND`, by Pillow's weights."""


def chunk(kind: bytes, content: bytes) -> bytes:
    check = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def png(
    width: int,
    depth: int,
    colour: int,
    row: bytes,
    before: bytes = b"",
    after: bytes = b"",
    height: int = 1,
) -> bytes:
    """Return a PNG of equal rows with further chunks before and after the pixels."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress((b"\0" + row) * height))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + before + pixels + after + chunk(b"IEND", b"")
    )


def clear(*values: int) -> bytes:
    """Return the chunk that makes a grey value, or a colour, transparent."""
    return chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


PALETTE = chunk(b"PLTE", bytes([1, 2, 3, 200, 100, 50]))

PIXELS: dict[str, tuple[bytes, list[Any]]] = {
    "1 bit": (png(2, 1, 0, b"\x40"), [0, 255]),
    "1 bit, black clear": (png(2, 1, 0, b"\x40", clear(0)), [BEHIND_GREY, 255]),
    "1 bit, white clear": (png(2, 1, 0, b"\x40", clear(1)), [0, BEHIND_GREY]),
    "2 bits": (png(4, 2, 0, b"\x1b"), [0, 85, 170, 255]),
    "2 bits, one clear": (png(4, 2, 0, b"\x1b", clear(1)), [0, BEHIND_GREY, 170, 255]),
    "4 bits, one clear": (png(2, 4, 0, b"\x2f", clear(2)), [BEHIND_GREY, 255]),
    "grey": (png(2, 8, 0, b"\x07\x09"), [7, 9]),
    "grey, one clear": (png(2, 8, 0, b"\x07\x09", clear(7)), [BEHIND_GREY, 9]),
    "16 bits": (png(2, 16, 0, b"\x12\x34\xab\xcd"), [0x12, 0xAB]),
    "16 bits, one clear": (png(2, 16, 0, b"\x12\x34\x12\x35", clear(0x1234)), [BEHIND_GREY, 0x12]),
    "grey and alpha": (
        png(3, 8, 4, b"\x07\xff\x09\x00\xc8\x80"),
        [(7,) * 3, BEHIND, (105, 110, 115)],
    ),
    "16 bits and alpha": (
        png(2, 16, 4, b"\x12\x34\xff\xff\x56\x78\0\0"),
        [(0x12,) * 3, BEHIND],
    ),
    "colour": (png(2, 8, 2, bytes([1, 2, 3, 4, 5, 6])), [(1, 2, 3), (4, 5, 6)]),
    "colour, one clear": (
        png(2, 8, 2, bytes([1, 2, 3, 4, 5, 6]), clear(1, 2, 3)),
        [BEHIND, (4, 5, 6)],
    ),
    "16 bits a colour, one clear": (
        png(2, 16, 2, bytes(range(12)), clear(0x0001, 0x0203, 0x0405)),
        [BEHIND, (6, 8, 10)],
    ),
    "colour and alpha": (
        png(3, 8, 6, bytes([1, 2, 3, 255, 4, 5, 6, 0, 200, 100, 50, 128])),
        [(1, 2, 3), BEHIND, (105, 60, 40)],
    ),
    "palette": (png(2, 1, 3, b"\x40", PALETTE), [(1, 2, 3), (200, 100, 50)]),
    "palette, one clear": (
        png(2, 1, 3, b"\x40", PALETTE + chunk(b"tRNS", b"\xff\x00")),
        [(1, 2, 3), BEHIND],
    ),
    "palette, one half clear": (
        png(2, 1, 3, b"\x40", PALETTE + chunk(b"tRNS", b"\xff\x80")),
        [(1, 2, 3), (105, 60, 40)],
    ),
}


@pytest.mark.parametrize("what", PIXELS)
def test_every_kind_of_png_in_front_of_a_background(what: str, tmp_path: Path) -> None:
    content, want = PIXELS[what]
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with opened(str(path)) as image:
        got, _ = read_pixels(image, decoding=Decoding(BEHIND))
    assert got.shape[-1] == (3 if isinstance(want[0], tuple) else 1)
    values = got[0].tolist() if isinstance(want[0], tuple) else got[0, :, 0].tolist()
    assert np.abs(np.array(values) - np.array(want)).max() <= (1 if "half" in what else 0)


@pytest.mark.parametrize(
    ("mode", "colour", "want"),
    [
        ("1", 1, 255),
        ("L", 77, 77),
        ("I;16", 0xABCD, 0xAB),
        ("P", 7, None),
        ("LA", (77, 0), BEHIND),
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("RGBA", (1, 2, 3, 0), BEHIND),
        ("RGBA", (1, 2, 3, 255), (1, 2, 3)),
        ("CMYK", (55, 155, 205, 0), (200, 100, 50)),
    ],
)
def test_every_kind_of_tiff(mode: str, colour: Any, want: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    Image.new(mode, (3, 2), colour).save(path)
    with opened(str(path)) as image:
        assert image.mode == mode
        got, _ = read_pixels(image, decoding=Decoding(BEHIND))
    if want is not None:
        np.testing.assert_array_equal(got, np.broadcast_to(want, got.shape))
    assert got.shape[:2] == (2, 3)


@pytest.mark.parametrize(
    ("mode", "message"),
    [("I", "32-bit pixels of unknown range"), ("F", "32-bit pixels"), ("LAB", "the space Lab")],
)
def test_a_sound_image_that_means_nothing_here_is_not_called_damaged(
    mode: str, message: str, root: Path
) -> None:
    path = root / "train" / "ant" / "0.png"
    Image.new(mode, (6, 6)).save(path, format="TIFF")
    with pytest.raises(DataError, match=rf"0\.png has .*{message}.*: convert it to") as caught:
        load_dataset(of(root))
    assert "damaged" not in str(caught.value)


def test_images_that_differ_in_transparency_alone(root: Path) -> None:
    for number, path in enumerate(sorted(root.glob("*/*/*.png"))):
        alpha = np.random.default_rng(number).integers(0, 2, (6, 6)).astype(np.uint8) * 255
        black = np.zeros((6, 6, 3), np.uint8)
        Image.fromarray(np.dstack([black, alpha])).save(path)
    first = np.random.default_rng(4).integers(0, 2, (6, 6)) * 255  # after the 4 of test
    data = load_dataset(of(root))
    want = np.repeat(255 - first[..., None], 3, axis=2).astype(np.uint8)
    np.testing.assert_array_equal(data.train.images[0], want)
    assert not (data.train.images == 0).all(axis=(1, 2, 3)).any()
    red = load_dataset(of(root, background=[255, 0, 0])).train.images
    np.testing.assert_array_equal(red[0], want & np.array([255, 0, 0], np.uint8))


# --- metadata and size

LARGE = bytes(2 << 20)
"""More than Pillow inflates of one text."""

METADATA = {
    "a compressed text": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(LARGE)),
    "an international text": chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(LARGE)),
    "a plain text": chunk(b"tEXt", b"Comment\0" + LARGE.replace(b"\0", b"x")),
    "a colour profile": chunk(b"iCCP", b"profile\0\0" + zlib.compress(LARGE)),
    "a damaged profile": chunk(b"iCCP", b"profile\0\0garbage"),
    "many texts": 40 * chunk(b"zTXt", b"Comment\0\0" + zlib.compress(LARGE[: 1 << 20])) * 2,
}


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("what", METADATA)
def test_metadata_of_any_size_is_no_damage(what: str, place: str, root: Path) -> None:
    chunks = {place: METADATA[what]}
    content = png(6, 8, 2, bytes(range(18)), height=6, **chunks)
    (root / "train" / "ant" / "0.png").write_bytes(content)
    got = load_dataset(of(root)).train.images[0]
    np.testing.assert_array_equal(got, np.tile(np.arange(18).reshape(1, 6, 3), (6, 1, 1)))


def test_a_png_cut_off_in_its_metadata_is_damaged(root: Path) -> None:
    whole = png(6, 8, 2, bytes(18), before=METADATA["a compressed text"], height=6)
    for size in (40, 60, len(whole) - 30):
        (root / "train" / "ant" / "0.png").write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"ant/0\.png is (damaged|not a JPEG)"):
            load_dataset(of(root))


def test_an_image_of_many_pixels_is_read_and_one_of_too_many_says_so(root: Path) -> None:
    path = root / "train" / "ant" / "0.png"
    path.write_bytes(png(10_000, 1, 0, b"\xff" * 1250, height=10_000))
    np.testing.assert_array_equal(load_dataset(of(root, image_size=6)).train.images[0], 255)
    path.write_bytes(png(20_000, 1, 0, b"", height=10_000))
    for call in (load_dataset, lambda config: Transform(8)(str(path), np.random.default_rng(0))):
        with pytest.raises(DataError) as caught:
            call(of(root, image_size=6))
        assert str(caught.value) == (
            f"{path} is too large (200,000,000 pixels, at most 178,956,970): make it smaller"
        )


def test_each_decoding_has_its_own_entry_in_the_cache(root: Path, cache: Path) -> None:
    put(root / "train" / "ant" / "0.png", mode="RGBA")
    images = [
        load_dataset(of(root, **values)).train.images[0]
        for values in ({}, {"background": [0, 0, 0]}, {"exif_orientation": False}, {})
    ]
    assert not np.array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[0], images[2])
    np.testing.assert_array_equal(images[0], images[3])
    assert len(list(cache.iterdir())) == 3


def test_streamed_images_are_seen_in_front_of_the_background(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.new("RGBA", (40, 40), (1, 2, 3, 0)).save(path)
    got = Transform(8, decoding=Decoding(BEHIND))(str(path), np.random.default_rng(0))
    np.testing.assert_array_equal(got, np.broadcast_to(BEHIND, (8, 8, 3)))


def test_pillow_is_silent_in_a_process_that_decodes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    silence_pillow()
    file = io.BytesIO()
    Image.fromarray(smooth(6, 6)).save(file, format="JPEG", exif=BROKEN_EXIF["cut off"])
    with Image.open(file) as image:
        image.getexif()
    path = tmp_path / "x.tif"
    Image.fromarray(smooth(100, 75)).save(path, compression="tiff_lzw")
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content[: len(content) // 3] + bytes(40) + content[len(content) // 3 + 40 :])
    with pytest.raises(DataError, match=r"x\.tif is damaged"), opened(str(path)):
        pass
    assert capfd.readouterr() == ("", "")
