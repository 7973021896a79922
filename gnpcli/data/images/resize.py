"""Resizing of decoded images: bilinear with antialiasing, as Pillow defines it, but faster.

There are two implementations of one filter: fast_image_resize (the package cykooz-resizer, SIMD)
where there is a wheel of it, else Pillow. Each rounds its coefficients in its own way. They differ
by at most one of 256 levels. Both let other threads run meanwhile.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from gnpcli.data.base import Images

try:
    from cykooz_resizer import (
        CropBox,
        FilterType,
        ImageData,
        PixelType,
        ResizeAlg,
        ResizeOptions,
        Resizer,
    )
except ImportError:
    Resizer = None
else:
    _BILINEAR = ResizeAlg.convolution(FilterType.bilinear)
    _PIXEL_TYPES = {1: PixelType.U8, 3: PixelType.U8x3}

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels, not always whole numbers; a pixel's left edge has its
number.
"""


def resize(pixels: Images, size: int, box: Box | None = None) -> Images:
    """Resize an image, or a part of it, to a square.

    Each pixel is the mean of those around its place weighted by a triangle, of half the width 1
    where the image grows and of that of the new pixel where it shrinks. Pixels just outside the box
    count as far as the triangle reaches.

    Args:
        pixels: uint8 ``[H, W, C]``; C is 1 or 3.
        size: Side of the result.
        box: Within the image; None takes all of it.

    Returns:
        uint8 ``[size, size, C]``.
    """
    if Resizer is None:
        return _resize_with_pillow(pixels, size, box)
    height, width, channels = pixels.shape
    left, top, right, bottom = box or (0, 0, width, height)
    kind = _PIXEL_TYPES[channels]
    result = ImageData(size, size, kind)
    part = CropBox(left, top, right - left, bottom - top)
    Resizer().resize(
        ImageData(width, height, kind, pixels.tobytes()),
        result,
        ResizeOptions(_BILINEAR, False, part),
    )
    return np.frombuffer(result.get_buffer(), np.uint8).reshape(size, size, channels)


def _resize_with_pillow(pixels: Images, size: int, box: Box | None) -> Images:
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box)).reshape(
        size, size, -1
    )
