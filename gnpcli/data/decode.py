"""Image files to uint8 arrays, with Pillow in threads.

The result of a file depends on the file, the number of channels and the size asked for, never on the order of work.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from PIL import Image, UnidentifiedImageError

from gnpcli.data.base import Images
from gnpcli.errors import DataError

# What the suffixes of `gnpcli.data.layout` promise. Pillow goes by the content: a PNG named .jpg is read as a PNG,
# and nothing else that Pillow knows is ever started by a file that lies about its name.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
_CHUNK = 64  # files per task: a future costs as much as a tenth of a small image


class ColourFound(Exception):
    """A coloured image where only grey ones were announced."""


def read_header(path: str, image_size: int | None) -> tuple[int, bool]:
    """Return (side in pixels, is grey) of an image file as it will be decoded, without decoding its pixels.

    Args:
        path: An image file.
        image_size: Side that images are resized to; None keeps their own.

    Raises:
        DataError: If the file is not a readable image, or is not square and `image_size` is None.
    """
    with _opened(path) as image:
        if image_size is None and image.width != image.height:
            raise DataError(
                f"{path} is {image.width}x{image.height}, not square; set data.image_size to crop and resize all images"
            )
        return image_size or image.width, _is_grey(image)


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

    RGBA, CMYK and palette images become RGB (transparency is dropped), grey ones three equal channels; with one
    channel every image becomes grey. The first frame of an animation is taken; EXIF rotation is not applied. With
    `image_size` an image that is not of that size is cut to its centred square and resized, bilinear with antialiasing
    (a square image is resized whole).

    Args:
        paths: At least one file.
        image_size: Side to resize to; None takes images as they are, and all have to be squares of one size.
        channels: 1 or 3.
        only_grey: Stop at the first image that is not grey.
        like: The file that sets the size without `image_size`, and is named when another differs.
        progress: Called with the number of images decoded so far.

    Returns:
        uint8 ``[N, S, S, channels]``.

    Raises:
        ColourFound: With `only_grey`, if an image has colours.
        DataError: On a file that cannot be read or is damaged (the first in order), on images of different sizes or
            not square without `image_size`, and when the array does not fit into memory.
    """
    side, _ = read_header(like, image_size)
    images = allocate(len(paths), side, channels)

    def work(start: int) -> int:
        end = min(start + _CHUNK, len(paths))
        for index in range(start, end):
            with _opened(paths[index]) as image:
                if only_grey and not _is_grey(image):
                    raise ColourFound
                if image_size is None and image.size != (side, side):
                    raise DataError(
                        f"images differ in size: {like} is {side}x{side}, {paths[index]} is "
                        f"{image.width}x{image.height}; set data.image_size to resize all of them"
                    )
                images[index] = _pixels(image, side, channels)
        return end

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1), thread_name_prefix="gnp-decode") as pool:
        tasks = [pool.submit(work, start) for start in range(0, len(paths), _CHUNK)]
        try:
            for task in tasks:  # in order, so that of several bad files the first is named
                done = task.result()
                if progress is not None:
                    progress(done)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return images


def allocate(count: int, side: int, channels: int) -> Images:
    """Return an uninitialised uint8 array ``[count, side, side, channels]``.

    Raises:
        DataError: If it does not fit into memory.
    """
    try:
        return np.empty((count, side, side, channels), dtype=np.uint8)
    except MemoryError:
        raise DataError(
            f"{count} images of {side}x{side} pixels take {count * side * side * channels / 1e9:.1f} GB of "
            "memory, more than there is: set a smaller data.image_size"
        ) from None


def resize(images: Images, side: int) -> Images:
    """Resize square images, uint8 ``[N, S, S, C]`` with C 1 or 3, to `side` as `decode_files` does."""
    channels = images.shape[-1]
    squeezed = images[..., 0] if channels == 1 else images
    return np.stack([_pixels(Image.fromarray(image), side, channels) for image in squeezed])


def _is_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L") or image.mode.startswith("I;16")


def _pixels(image: Image.Image, side: int, channels: int) -> Images:
    """Return uint8 ``[side, side, channels]``."""
    if image.mode.startswith("I;16"):  # Pillow's own conversion cuts everything above 255 to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode!r} have no known range")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, Pillow warns
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    if image.size != (side, side):
        short = min(image.size)
        left, top = (image.width - short) // 2, (image.height - short) // 2
        if image.width != image.height:
            image = image.crop((left, top, left + short, top + short))
        image = image.resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(side, side, channels)


@contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    try:
        with Image.open(path, formats=_FORMATS) as image:
            yield image
    except (DataError, ColourFound):
        raise
    except UnidentifiedImageError:
        raise DataError(f"{path} is not a {', '.join(_FORMATS)} image: delete or replace it") from None
    except OSError as error:
        if error.filename is not None:  # the file system's word, not the decoder's
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
        raise DataError(f"{path} is damaged ({error}): delete or replace it") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise DataError(f"{path} is damaged ({error}): delete or replace it") from error
