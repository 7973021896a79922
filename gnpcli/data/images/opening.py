"""Image files opened by their content, and what is said of those that cannot be read.

Pillow opens a file. What it would inflate without need, or remark on, is kept from it: a sound
image is not damaged because of its metadata.
"""

from __future__ import annotations

import ctypes
import io
import logging
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

import PIL
from PIL import Image, ImageFile, UnidentifiedImageError

from gnpcli.errors import DataError
from gnpcli.git_lfs import pointer_advice

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What the suffixes of `gnpcli.data.images.entries` promise.

Pillow goes by the content: a PNG named .jpg is read as a PNG. Nothing else that Pillow knows is
ever started by a file that lies about its name.
"""

_PNG = b"\x89PNG\r\n\x1a\n"
_METADATA = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
"""Chunks of a PNG with texts and a colour profile.

Nothing here reads them. Pillow inflates them, and refuses the image where they are large.
"""

_GREY_STEPS = {"L;2": 85, "L;4": 17}
"""Distance of two neighbours among grey values of few bits, once they are of 8."""


class Unsupported(Exception):
    """A sound image of a kind that has no meaning here. The message completes ``PATH has ...``."""


class ColourFound(Exception):
    """A coloured image where only grey ones were announced."""


@contextmanager
def opened(path: str) -> Iterator[ImageFile.ImageFile]:
    """Open an image file by its content, whatever its name, as one of `FORMATS`.

    Raises:
        DataError: If the file is damaged, cannot be read, is too large, or is no image. What the
            body's decoding brings up counts, too.
    """
    try:
        with open(path, "rb") as file, open_image(file) as image:
            yield image
    except (DataError, ColourFound):
        raise
    except UnidentifiedImageError:
        unknown = f"{path} is not a {', '.join(FORMATS)} image: delete or replace it"
        raise DataError(pointer_advice(path) or unknown) from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} is too large{_pixels(error)}: make it smaller") from error
    except Unsupported as error:
        raise DataError(f"{path} has {error}") from error
    except OSError as error:
        if error.filename is not None:  # the file system's word, not the decoder's
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
        raise DataError(f"{path} is damaged ({error}): delete or replace it") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise DataError(f"{path} is damaged ({error}): delete or replace it") from error


def open_image(file: BinaryIO) -> ImageFile.ImageFile:
    """Return Pillow's image of an open file, not yet decoded.

    Raises:
        UnidentifiedImageError: If it is none of `FORMATS`.
        Image.DecompressionBombError: If it has more than about 179 million pixels.
        Exception: Whatever else Pillow raises on a damaged file.
    """
    image = Image.open(_without_metadata(file), formats=FORMATS)
    if image.format == "TIFF":
        image.load()  # which turns it upright: its size is not known before
    if image.format == "PNG" and "transparency" in image.info:
        _scale_transparency(image)
    return image


def _scale_transparency(image: ImageFile.ImageFile) -> None:
    """Put the value that stands for transparency on the scale of Pillow's pixels.

    Pillow gives it as the PNG stores it, though it decodes 2 and 4 bits of grey, and 16 bits of a
    colour, to 8.
    """
    raw_mode, clear = image.tile[0][3], image.info["transparency"]
    if raw_mode == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    elif raw_mode in _GREY_STEPS:
        image.info["transparency"] = clear * _GREY_STEPS[raw_mode]


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Keep Pillow's remarks off the screen inside the block; no thread may outlive it."""
    with warnings.catch_warnings():
        silence_pillow()
        yield


def silence_pillow() -> None:
    """Keep Pillow's remarks off the screen from now on: on metadata, and on large images.

    What matters of them is an error of `opened`.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL + 1)
    _silence_libtiff()


@cache
def _silence_libtiff() -> None:
    """Keep libtiff from writing to stderr by itself, where it is the library in Pillow's wheel.

    Pillow raises an error besides.
    """
    package = Path(PIL.__file__).parent
    wheel = [*package.parent.glob("pillow.libs/libtiff*"), *package.glob(".dylibs/libtiff*")]
    for path in wheel:
        with suppress(OSError, AttributeError):
            library = ctypes.CDLL(str(path))
            library.TIFFSetErrorHandler(None)
            library.TIFFSetWarningHandler(None)


def _pixels(error: Exception) -> str:
    """Return how many pixels an image has, and may have, as Pillow's message gives them."""
    numbers = [int(digits) for digits in re.findall(r"\d+", str(error))]
    return f" ({numbers[0]:,} pixels, at most {numbers[1]:,})" if len(numbers) == 2 else ""


def _without_metadata(file: BinaryIO) -> BinaryIO:
    """Return a PNG without its texts and its colour profile, and any other file as it is."""
    is_png = file.read(len(_PNG)) == _PNG
    chunks = list(_metadata(file)) if is_png else []
    file.seek(0)
    if not chunks:
        return file
    kept = io.BytesIO()
    for start, end in chunks:
        kept.write(file.read(start - file.tell()))
        file.seek(end)
    kept.write(file.read())
    kept.seek(0)
    return kept


def _metadata(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Yield where each chunk of metadata begins and ends in a PNG."""
    start = len(_PNG)
    head = file.read(8)
    while len(head) == 8:
        length, kind = struct.unpack(">I4s", head)
        end = start + 12 + length  # length, kind, content, checksum
        if kind in _METADATA:
            yield start, end
        start = file.seek(end)
        head = file.read(8)
