"""Image files to one array in memory: all of one size and one number of channels, in threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from gnpcli.data.base import Images
from gnpcli.data.images.opening import ColourFound, opened, quiet_pillow
from gnpcli.data.images.pixels import Decoding, is_grey, read_square
from gnpcli.errors import DataError

_FILES_PER_TASK = 64
"""A future costs as much as a tenth of a small image."""


def read_header(path: str, image_size: int | None) -> tuple[int, bool]:
    """Return (side in pixels, is grey) of an image as it will be decoded. No pixel is decoded.

    Args:
        path: An image file.
        image_size: Side that images are resized to; None keeps their own.

    Raises:
        DataError: If the file is not a readable image, or is not square and `image_size` is None.
    """
    with quiet_pillow(), opened(path) as image:
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
    with quiet_pillow(), opened(path) as image:
        return min(image.size)


def decode_files(
    paths: Sequence[str],
    *,
    image_size: int | None,
    channels: int,
    only_grey: bool,
    like: str,
    decoding: Decoding,
    progress: Callable[[int], None] | None = None,
) -> Images:
    """Decode image files into one array, in the order of `paths`.

    RGBA, CMYK and palette images become RGB. Grey ones become three equal channels. With one
    channel every image becomes grey. The first frame of an animation is taken. With `image_size` an
    image that is not of that size is cut to its centred square and resized, bilinear with
    antialiasing.

    Args:
        paths: At least one file.
        image_size: Side to resize to; None takes images as they are, and all have to be squares of
            one size.
        channels: 1 or 3.
        only_grey: Stop at the first image that is not grey.
        like: The file that sets the size without `image_size`, and is named when another differs.
        decoding: What transparency and orientation mean.
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
            return read_square(image, side, channels, decoding)

    def work(start: int) -> int:
        end = min(start + _FILES_PER_TASK, len(paths))
        for index in range(start, end):
            images[index] = decode(paths[index])
        return end

    with quiet_pillow():
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
