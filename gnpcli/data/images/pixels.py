"""An opened image to pixels: one meaning for every colour model, transparency and orientation.

libjpeg-turbo decodes sound JPEGs, grey or in colour, through simplejpeg: the same bits as Pillow's
in three quarters of the time. The rest, and every doubt, is Pillow's. The result depends on the
file and the arguments, never on the order of work.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import simplejpeg
from PIL import Image, ImageFile

from gnpcli.config.schema import DataConfig
from gnpcli.data.base import Images
from gnpcli.data.images.opening import Unsupported
from gnpcli.data.images.orientation import UPRIGHT, Orientation, orientation
from gnpcli.data.images.resize import resize

_JPEG_COLOURS = {"L": "GRAY", "RGB": "RGB"}
"""What simplejpeg calls Pillow's modes."""
_MANY_PIXELS = 1 << 24
_one_at_a_time = threading.Lock()
"""Held while more than `_MANY_PIXELS` are decoded.

They take up to 2 GB at Pillow's limit, and each core has a thread that decodes.
"""

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""
WHITE: Colour = (255, 255, 255)


@dataclass(frozen=True)
class Decoding:
    """What pixels mean beyond their values."""

    background: Colour | None = None
    """What is seen through transparent pixels; None drops transparency."""
    upright: bool = False
    """Whether EXIF's orientation is undone. A TIFF is always upright: it has no EXIF for that."""

    @property
    def name(self) -> str:
        """What tells apart what two decodings make of the same files."""
        return f"background {self.background}, upright {self.upright}"


AS_STORED = Decoding()


def decoding(config: DataConfig) -> Decoding:
    """Return how `data.background` and `data.exif_orientation` decode a data set's images.

    Null takes the images of ``folder:DIR`` as a person sees them, and those of other data sets as
    their makers' own code reads them.
    """
    is_own = config.name.startswith("folder:")
    upright = is_own if config.exif_orientation is None else config.exif_orientation
    if config.background is None:
        return Decoding(WHITE if is_own else None, upright)
    red, green, blue = config.background
    return Decoding((red, green, blue), upright)


def is_grey(image: Image.Image) -> bool:
    """Return whether an image has brightness only: Pillow's modes 1, L and I;16."""
    return image.mode in ("1", "L") or image.mode.startswith("I;16")


def convert(
    image: Image.Image, mode: Literal["L", "RGB"], background: Colour | None = None
) -> Image.Image:
    """Return an image in `mode`. The upper 8 of 16 bits are kept.

    Args:
        image: Of any mode.
        mode: Of the result.
        background: As of `Decoding`.

    Raises:
        Unsupported: On 32-bit pixels, whose range the file does not tell, and on modes that Pillow
            does not convert.
    """
    if image.mode.startswith("I;16"):  # Pillow's own conversion cuts everything above 255 to white
        image = _eight_bits(image)
    elif image.mode in ("I", "F"):
        raise Unsupported("32-bit pixels of unknown range: convert it to 8 bits a channel")
    if image.has_transparency_data and background is not None:
        image = _flattened(image, background)
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, Pillow warns
    if image.mode == mode:
        return image
    if image.mode == "LAB":
        raise Unsupported("colours in the space Lab: convert it to RGB")
    return image.convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return the upper half of 16-bit pixels, with transparency where a value stands for it."""
    deep = np.asarray(image)
    grey = Image.fromarray((deep >> 8).astype(np.uint8))
    clear = image.info.get("transparency")
    if clear is None:
        return grey
    alpha = Image.fromarray(np.where(deep == clear, 0, 255).astype(np.uint8))
    return Image.merge("LA", (grey, alpha))


def _flattened(image: Image.Image, background: Colour) -> Image.Image:
    """Return what is seen of an image in front of a background: RGB."""
    seen = Image.new("RGBA", image.size, (*background, 255))
    seen.alpha_composite(image.convert("RGBA"))
    return seen.convert("RGB")


def read_pixels(
    image: ImageFile.ImageFile, scale: int = 1, decoding: Decoding = AS_STORED
) -> tuple[Images, int]:
    """Decode an opened image. A JPEG can be decoded at a part of its size, which costs less.

    Args:
        image: From `gnpcli.data.images.opening.opened`.
        scale: 1, 2, 4 or 8: the sides of a JPEG are divided by it and rounded up.
        decoding: Its background is used. The pixels are not turned.

    Returns:
        uint8 ``[H, W, C]``, C = 1 for a grey image and 3 otherwise, and the scale that was used:
        `scale`, or 1.
    """
    with _turn(image):
        jpeg = _read_jpeg(image, scale)
        if jpeg is not None:
            return jpeg, scale
        mode: Literal["L", "RGB"] = "L" if is_grey(image) else "RGB"
        pixels = np.asarray(convert(image, mode, decoding.background))
        return pixels.reshape(*pixels.shape[:2], -1), 1


def _turn(image: Image.Image) -> AbstractContextManager[object]:
    """Return what lets a thread decode an image: at once, or when no other large one is."""
    is_large = image.width * image.height > _MANY_PIXELS
    return _one_at_a_time if is_large else nullcontext()


def _read_jpeg(image: ImageFile.ImageFile, scale: int) -> Images | None:
    """Decode an opened JPEG with simplejpeg.

    Returns None where the image is none, or where simplejpeg has any doubt: Pillow decides then.
    """
    is_jpeg = image.format in ("JPEG", "MPO") and image.mode in _JPEG_COLOURS
    if not is_jpeg or image.fp is None:
        return None
    image.fp.seek(0)
    try:
        pixels: Images = simplejpeg.decode_jpeg(
            image.fp.read(),
            _JPEG_COLOURS[image.mode],
            min_factor=scale,
            min_width=-(-image.width // scale),
            min_height=-(-image.height // scale),
        )
    except ValueError:
        image.fp.seek(0)
        return None
    return pixels


def orientation_of(image: Image.Image, decoding: Decoding) -> Orientation:
    """Return what turns an opened image's stored pixels as `decoding` wants them."""
    return orientation(image) if decoding.upright else UPRIGHT


def read_square(
    image: ImageFile.ImageFile, side: int, channels: int, decoding: Decoding = AS_STORED
) -> Images:
    """Decode an opened image and resize its centred square where it is not of the size asked for.

    Args:
        image: From `gnpcli.data.images.opening.opened`.
        side: Of the result.
        channels: 1 or 3.
        decoding: What pixels mean.

    Returns:
        uint8 ``[side, side, channels]``; may be read only.
    """
    pixels, _ = read_pixels(image, decoding=decoding)
    if pixels.shape[-1] > channels:
        pixels = np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
    pixels = orientation_of(image, decoding).upright(pixels)
    height, width, _ = pixels.shape
    if (width, height) != (side, side):
        short = min(width, height)
        left, top = (width - short) // 2, (height - short) // 2
        pixels = resize(pixels[top : top + short, left : left + short], side)
    if pixels.shape[-1] == channels:  # broadcasting takes a tenth of the time of a small image
        return pixels
    return np.broadcast_to(pixels, (side, side, channels))
