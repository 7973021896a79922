"""How a camera was held: EXIF's orientation of a photograph, and what undoes it.

The eight orientations are the symmetries of a rectangle. Each is a transposition or none, then a
mirror top to bottom or none, then one left to right or none.
"""

from __future__ import annotations

from typing import NamedTuple

from PIL import Image
from PIL.ExifTags import Base

from gnpcli.data.base import Images
from gnpcli.data.images.resize import Box


class Orientation(NamedTuple):
    """What turns stored pixels upright, in this order."""

    transposed: bool = False
    """Whether rows and columns change places."""
    upside_down: bool = False
    """Whether top and bottom change places after that."""
    mirrored: bool = False
    """Whether left and right change places after that."""

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height of the upright image."""
        return (height, width) if self.transposed else (width, height)

    def upright(self, pixels: Images) -> Images:
        """Return a view of ``[H, W, C]`` that is upright."""
        if self.transposed:
            pixels = pixels.swapaxes(0, 1)
        if self.upside_down:
            pixels = pixels[::-1]
        if self.mirrored:
            pixels = pixels[:, ::-1]
        return pixels

    def stored(self, box: Box, width: int, height: int) -> Box:
        """Return where a box of the upright image lies in the stored one.

        Args:
            box: In pixels of the upright image.
            width: Of the stored image.
            height: Of the stored image.
        """
        left, top, right, bottom = box
        across, down = self.size(width, height)
        if self.mirrored:
            left, right = across - right, across - left
        if self.upside_down:
            top, bottom = down - bottom, down - top
        return (top, left, bottom, right) if self.transposed else (left, top, right, bottom)


UPRIGHT = Orientation()
_BY_NUMBER = {
    1: UPRIGHT,
    2: Orientation(mirrored=True),
    3: Orientation(upside_down=True, mirrored=True),
    4: Orientation(upside_down=True),
    5: Orientation(transposed=True),
    6: Orientation(transposed=True, mirrored=True),
    7: Orientation(transposed=True, upside_down=True, mirrored=True),
    8: Orientation(transposed=True, upside_down=True),
}
"""By the number that EXIF gives: where row 0 and column 0 of the stored pixels are to be seen."""


def orientation(image: Image.Image) -> Orientation:
    """Return the orientation that an opened image was stored in.

    It is upright where there is no EXIF, where EXIF is damaged, and where its number means nothing.
    """
    if "exif" not in image.info:
        return UPRIGHT
    try:
        number = image.getexif().get(Base.Orientation)
    except Exception:  # Pillow's parser raises nearly anything on damaged EXIF
        return UPRIGHT
    return _BY_NUMBER.get(number, UPRIGHT) if isinstance(number, int) else UPRIGHT
