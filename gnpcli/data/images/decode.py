"""Image files to pixels: opened by content, one meaning for every colour model.

Pillow opens every file and says what it is. libjpeg-turbo then decodes sound JPEGs, grey or in
colour, through simplejpeg: the same bits as Pillow's in three quarters of the time. The rest, and
every doubt, is Pillow's. The result depends on the file, the number of channels and the size asked
for, never on the order of work.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Literal

import numpy as np
import simplejpeg
from PIL import Image, ImageFile, UnidentifiedImageError

from gnpcli.data.base import Images
from gnpcli.data.images.resize import resize
from gnpcli.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
"""What the suffixes of `gnpcli.data.images.layout` promise.

Pillow goes by the content: a PNG named .jpg is read as a PNG. Nothing else that Pillow knows is
ever started by a file that lies about its name.
"""
_JPEG_COLOURS = {"L": "GRAY", "RGB": "RGB"}
"""What simplejpeg calls Pillow's modes."""
_FILES_PER_TASK = 64
"""A future costs as much as a tenth of a small image."""


class ColourFound(Exception):
    """A coloured image where only grey ones were announced."""


def read_header(path: str, image_size: int | None) -> tuple[int, bool]:
    """Return (side in pixels, is grey) of an image as it will be decoded. No pixel is decoded.

    Args:
        path: An image file.
        image_size: Side that images are resized to; None keeps their own.

    Raises:
        DataError: If the file is not a readable image, or is not square and `image_size` is None.
    """
    with opened(path) as image:
        if image_size is None and image.width != image.height:
            raise DataError(
                f"{path} is {image.width}x{image.height}, not square; set data.image_size to crop "
                "and resize all images"
            )
        return image_size or image.width, is_grey(image)


def short_side(path: str) -> int:
    """Return the smaller of an image file's width and height, without decoding its pixels.

    Raises:
        DataError: If the file is not a readable image.
    """
    with opened(path) as image:
        return min(image.size)


def decode_files(
    paths: Sequence[str],
    *,
    image_size: int | None,
    channels: int,
    only_grey: bool,
    like: str,
    progress: Callable[[int], None] | None = None,
) -> Images:
    """Decode image files into one array, in the order of `paths`.

    RGBA, CMYK and palette images become RGB: transparency is dropped. Grey ones become three equal
    channels. With one channel every image becomes grey. The first frame of an animation is taken.
    EXIF rotation is not applied. With `image_size` an image that is not of that size is cut to its
    centred square and resized, bilinear with antialiasing.

    Args:
        paths: At least one file.
        image_size: Side to resize to; None takes images as they are, and all have to be squares of
            one size.
        channels: 1 or 3.
        only_grey: Stop at the first image that is not grey.
        like: The file that sets the size without `image_size`, and is named when another differs.
        progress: Called with the number of images decoded so far.

    Returns:
        uint8 ``[N, S, S, channels]``.

    Raises:
        ColourFound: With `only_grey`, if an image has colours.
        DataError: On a file that cannot be read or is damaged (the first in order), on images of
            different sizes or not square without `image_size`, and when the array does not fit into
            memory.
    """
    side, _ = read_header(like, image_size)
    images = allocate(
        len(paths), side, channels, remedy="set data.stream to true, or a smaller data.image_size"
    )

    def decode(path: str) -> Images:
        with opened(path) as image:
            if only_grey and not is_grey(image):
                raise ColourFound
            if image_size is None and image.size != (side, side):
                raise DataError(
                    f"images differ in size: {like} is {side}x{side}, {path} is "
                    f"{image.width}x{image.height}; set data.image_size to resize all of them"
                )
            return read_square(image, side, channels)

    def work(start: int) -> int:
        end = min(start + _FILES_PER_TASK, len(paths))
        for index in range(start, end):
            images[index] = decode(paths[index])
        return end

    _run_tasks(work, range(0, len(paths), _FILES_PER_TASK), progress)
    return images


def _run_tasks(
    work: Callable[[int], int], starts: Sequence[int], progress: Callable[[int], None] | None
) -> None:
    """Call `work` with each of `starts` in threads, and `progress` with what it returns, in order.

    The order makes the first of several bad files the one that is named.
    """
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1), thread_name_prefix="gnp-decode") as pool:
        tasks = [pool.submit(work, start) for start in starts]
        try:
            for task in tasks:
                done = task.result()
                if progress is not None:
                    progress(done)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def allocate(
    count: int, side: int, channels: int, *, remedy: str = "set a smaller data.image_size"
) -> Images:
    """Return an uninitialised uint8 array ``[count, side, side, channels]``.

    Raises:
        DataError: If it does not fit into memory, with what to do about it.
    """
    num_bytes = count * side * side * channels
    try:
        # A system that overcommits would hand it out, and kill the process that fills it.
        if num_bytes > _physical_memory():
            raise MemoryError
        return np.empty((count, side, side, channels), dtype=np.uint8)
    except MemoryError:
        raise DataError(
            f"{count} images of {side}x{side} pixels take {num_bytes / 1e9:.1f} GB of memory, more "
            f"than there is: {remedy}"
        ) from None


def _physical_memory() -> float:
    """Return the machine's memory in bytes; infinite where the system does not tell."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return float("inf")


def is_grey(image: Image.Image) -> bool:
    """Return whether an image has brightness only: Pillow's modes 1, L and I;16."""
    return image.mode in ("1", "L") or image.mode.startswith("I;16")


def convert(image: Image.Image, mode: Literal["L", "RGB"]) -> Image.Image:
    """Return an image in `mode`. Transparency is dropped, and the upper 8 of 16 bits are kept.

    Raises:
        ValueError: On 32-bit pixels, whose range the file does not tell.
    """
    if image.mode.startswith("I;16"):  # Pillow's own conversion cuts everything above 255 to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode!r} have no known range")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, Pillow warns
    return image if image.mode == mode else image.convert(mode)


def read_pixels(image: ImageFile.ImageFile, scale: int = 1) -> tuple[Images, int]:
    """Decode an opened image. A JPEG can be decoded at a part of its size, which costs less.

    Args:
        image: From `opened`; transparency is dropped.
        scale: 1, 2, 4 or 8: the sides of a JPEG are divided by it and rounded up.

    Returns:
        uint8 ``[H, W, C]``, C = 1 for a grey image and 3 otherwise, and the scale that was used:
        `scale`, or 1.
    """
    jpeg = _read_jpeg(image, scale)
    if jpeg is not None:
        return jpeg, scale
    pixels = np.asarray(convert(image, "L" if is_grey(image) else "RGB"))
    return pixels.reshape(*pixels.shape[:2], -1), 1


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


def read_square(image: ImageFile.ImageFile, side: int, channels: int) -> Images:
    """Decode an opened image and resize its centred square where it is not of the size asked for.

    Args:
        image: From `opened`.
        side: Of the result.
        channels: 1 or 3.

    Returns:
        uint8 ``[side, side, channels]``; may be read only.
    """
    pixels, _ = read_pixels(image)
    if pixels.shape[-1] > channels:
        pixels = np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
    height, width, _ = pixels.shape
    if (width, height) != (side, side):
        short = min(width, height)
        left, top = (width - short) // 2, (height - short) // 2
        pixels = resize(pixels[top : top + short, left : left + short], side)
    if pixels.shape[-1] == channels:  # broadcasting takes a tenth of the time of a small image
        return pixels
    return np.broadcast_to(pixels, (side, side, channels))


@contextmanager
def opened(path: str) -> Iterator[ImageFile.ImageFile]:
    """Open an image file by its content, whatever its name, as one of `FORMATS`.

    Raises:
        DataError: If the file is damaged, cannot be read, or is no image. What the body's decoding
            brings up counts, too.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except (DataError, ColourFound):
        raise
    except UnidentifiedImageError:
        raise DataError(
            f"{path} is not a {', '.join(FORMATS)} image: delete or replace it"
        ) from None
    except OSError as error:
        if error.filename is not None:  # the file system's word, not the decoder's
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
        raise DataError(f"{path} is damaged ({error}): delete or replace it") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise DataError(f"{path} is damaged ({error}): delete or replace it") from error
