"""One image file to one square of pixels: the part that is taken, decoded at the detail it needs.

A box is in pixels of the whole image. No JAX: this runs in the processes that decode.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile

from gnpcli.data.base import Images
from gnpcli.data.images.opening import opened
from gnpcli.data.images.pixels import AS_STORED, Decoding, orientation_of, read_pixels
from gnpcli.data.images.resize import Box, resize

Policy = Callable[[Image.Image, np.random.Generator], Image.Image]
"""What `gnpcli.data.augment.host.make_host_policy` returns."""

CENTRE_SHARE = 0.875
"""Side of the centre crop over the short side that the image is resized to: 224 of 256 pixels."""

_MIN_ASPECT, _MAX_ASPECT = 3 / 4, 4 / 3
_TRIES = 10


@dataclass(frozen=True)
class Transform:
    """What an image file becomes: uint8 ``[S, S, 3]``. Without `min_area` nothing is random.

    Args:
        image_size: S.
        min_area: Smallest share of the image's area that its random resized crop keeps; None cuts
            the centre.
        flip: Whether every other image is mirrored left to right.
        policy: What is done to the image after that.
        decoding: What transparency and orientation mean.
    """

    image_size: int
    min_area: float | None = None
    flip: bool = False
    policy: Policy | None = None
    decoding: Decoding = AS_STORED

    def __call__(self, path: str, rng: np.random.Generator) -> Images:
        """Read, cut, mirror and change one image.

        Args:
            path: An image file.
            rng: Drawn from for the crop, then for the flip, then by the policy.

        Raises:
            DataError: If the file cannot be read, is damaged, or is no image.
        """
        size = self.image_size
        with opened(path) as image:
            shape = orientation_of(image, self.decoding).size(*image.size)
            if self.min_area is None:
                box, detail = centre_box(*shape, size), 2
            else:
                box, detail = random_box(rng, *shape, self.min_area), 1
            pixels = cut(image, box, size, detail=detail, decoding=self.decoding)
        if self.flip and rng.random() < 0.5:
            pixels = _mirrored(pixels)
        if self.policy is not None:
            pixels = np.asarray(self.policy(Image.fromarray(pixels), rng))
        return pixels


def random_box(rng: np.random.Generator, width: int, height: int, min_area: float) -> Box:
    """Draw the box of a random resized crop (arXiv 1409.4842, section 6).

    Its share of the area is uniform in [`min_area`, 1]. The logarithm of its aspect ratio is
    uniform in [log 3/4, log 4/3]. Both are drawn anew, ten times at most, until the box fits. Its
    place is uniform. If none fits it is the centre, with the image's own aspect ratio as far as
    that lies in the range.
    """
    for _ in range(_TRIES):
        area = width * height * rng.uniform(min_area, 1)
        aspect = math.exp(rng.uniform(math.log(_MIN_ASPECT), math.log(_MAX_ASPECT)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left = int(rng.integers(width - w, endpoint=True))
            top = int(rng.integers(height - h, endpoint=True))
            return left, top, left + w, top + h
    w, h = min(width, round(height * _MAX_ASPECT)), min(height, round(width / _MIN_ASPECT))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def centre_box(width: int, height: int, size: int) -> Box:
    """Return the centre of an image whose short side is resized to ``size / 0.875``.

    The long side is resized to a whole number of pixels, rounded down. The margins are rounded to
    whole pixels of the resized image. It is the published evaluation (256 and 224 pixels) in one
    step instead of two.
    """
    short = round(size / CENTRE_SHARE)
    resized = [short * side // min(width, height) for side in (width, height)]
    left, top = (round((side - size) / 2) for side in resized)
    x, y = width / resized[0], height / resized[1]
    return left * x, top * y, min((left + size) * x, width), min((top + size) * y, height)


def cut(
    image: ImageFile.ImageFile,
    box: Box,
    size: int,
    *,
    detail: float = 1,
    decoding: Decoding = AS_STORED,
) -> Images:
    """Cut a box out of an opened image, not yet decoded, and resize it: bilinear with antialiasing.

    A JPEG file is decoded at a half, a quarter or an eighth of its size where the box keeps enough
    pixels: that costs less. At just enough the result is a little sharper than from all pixels, by
    1 to 2 of 256 levels in the mean. At twice that it differs by half a level: evaluation is what
    it would be without.

    Args:
        image: From `gnpcli.data.images.opening.opened`.
        box: Within the image as it is seen, turned by its orientation.
        size: Side of the result.
        detail: Pixels of the decoded box, along its shorter side, over `size`: at least, where the
            file is so large.
        decoding: What transparency and orientation mean.

    Returns:
        uint8 ``[size, size, 3]``.
    """
    turned = orientation_of(image, decoding)
    box = turned.stored(box, *image.size)
    side = min(box[2] - box[0], box[3] - box[1])
    pixels, scale = read_pixels(image, _scale(side, detail * size), decoding)
    left, top, right, bottom = (edge / scale for edge in box)
    # A square is turned after it was cut: it is smaller, and its edges stay where they are.
    square = turned.upright(resize(pixels, size, (left, top, right, bottom)))
    return np.broadcast_to(square, (size, size, 3))


def _scale(side: float, needed: float) -> int:
    """Return the largest of 8, 4, 2 and 1 that divides `side` into at least `needed` pixels."""
    for scale in (8, 4, 2):
        if side >= scale * needed:
            return scale
    return 1


def _mirrored(pixels: Images) -> Images:
    """Swap left and right: channel by channel, which takes a sixth of the time."""
    mirrored = np.empty_like(pixels)
    for channel in range(pixels.shape[-1]):
        mirrored[..., channel] = pixels[:, ::-1, channel]
    return mirrored
