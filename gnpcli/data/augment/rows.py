"""Operations as rows of parameters: what an image can draw at one place of a policy. NumPy only.

Under vmap a choice among 17 operations would compute all 17. Instead every operation is a row of
the parameters of four passes (`gnpcli.data.augment.passes`), each of which leaves an image alone at
its neutral parameters. The rows are constants of the compiled step, computed in float64 as Pillow
computes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FIXED, AUTOCONTRAST, EQUALIZE = range(3)
"""Where a row's lookup table comes from: the row itself, or the image."""

BLACK, MEAN, GREY, SMOOTH = range(4)
"""What a row blends an image with: black (which changes nothing), its mean, its grey, or its smooth
version.
"""

Affine = tuple[float, float, float, float, float, float]
"""``a .. f``: output position (x, y) reads input ``(a x + b y + c, d x + e y + f)``."""

_TABLES_FROM = {"AutoContrast": AUTOCONTRAST, "Equalize": EQUALIZE}
_BLENDS = {"Contrast": MEAN, "Color": GREY, "Sharpness": SMOOTH}


@dataclass(frozen=True, eq=False)
class Layer:
    """The operations that images can draw at one place of a policy: R rows of parameters.

    Row 0 does nothing.
    """

    operations: tuple[tuple[str, float], ...]
    """(name, signed argument) of each row."""
    coordinates: npt.NDArray[np.int32]
    """``[R, 6]``, 16.16 fixed point: pixel (x, y) comes from ``(a x + b y + c, d x + e y + f)``,
    rounded down.
    """
    tables: npt.NDArray[np.uint8]
    """``[R, 256]``."""
    table_from: npt.NDArray[np.int32]
    """``[R]``."""
    factors: npt.NDArray[np.float32]
    """``[R]``: blends give ``other + factor (image - other)``."""
    blend_with: npt.NDArray[np.int32]
    """``[R]``."""
    halves: npt.NDArray[np.int32]
    """``[R]``, half the side of the painted square."""


def make_layer(operations: Sequence[tuple[str, float]], size: int) -> Layer:
    """Return the layer with a row for each operation, after row 0.

    Args:
        operations: (name, signed argument), as in `gnpcli.data.augment.policies.OPERATIONS`.
        size: Side of the images.
    """
    rows = (("Identity", 0.0), *operations)
    coordinates, tables, table_from, factors, blend_with, halves = [], [], [], [], [], []
    for name, argument in rows:
        coordinates.append(_fixed_point(_affine(name, argument, size)))
        tables.append(_table(name, argument, size))
        table_from.append(_TABLES_FROM.get(name, FIXED))
        factors.append(argument if name in _BLENDS else 1)
        blend_with.append(_BLENDS.get(name, BLACK))
        halves.append(argument if name == "Cutout" else 0)
    return Layer(
        operations=rows,
        coordinates=np.array(coordinates, np.int32),
        tables=np.array(tables, np.uint8),
        table_from=np.array(table_from, np.int32),
        factors=np.array(factors, np.float32),
        blend_with=np.array(blend_with, np.int32),
        halves=np.array(halves, np.int32),
    )


def _affine(name: str, argument: float, size: int) -> Affine:
    """Return the coefficients with which an operation moves pixels.

    Positions are measured from the image's corner: the first pixel's centre is (0.5, 0.5).
    """
    match name:
        case "ShearX":
            return 1.0, argument, 0.0, 0.0, 1.0, 0.0
        case "ShearY":
            return 1.0, 0.0, 0.0, argument, 1.0, 0.0
        case "TranslateX":
            return 1.0, 0.0, argument, 0.0, 1.0, 0.0
        case "TranslateY":
            return 1.0, 0.0, 0.0, 0.0, 1.0, argument
        case "Rotate":
            return _rotation(argument, size)
    return 1.0, 0.0, 0.0, 0.0, 1.0, 0.0


def _rotation(degrees: float, size: int) -> Affine:
    """Return the coefficients of a turn about the centre.

    The steps are Pillow's in Pillow's order, so that the fixed point agrees to the last bit.
    """
    angle = -math.radians(degrees % 360)
    a, b = round(math.cos(angle), 15), round(math.sin(angle), 15)
    d, e = round(-math.sin(angle), 15), a
    middle = size / 2
    c = a * -middle + b * -middle + middle
    f = d * -middle + e * -middle + middle
    return a, b, c, d, e, f


def _fixed_point(matrix: Affine) -> list[int]:
    """Return the coefficients in 16.16 fixed point, for positions of pixel centres."""
    a, b, c, d, e, f = matrix
    # The half pixels put whole numbers at pixel centres.
    values = (a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5)
    return [math.floor(value * 65536 + 0.5) for value in values]


def _table(name: str, argument: float, size: int) -> npt.NDArray[np.uint8]:
    """Return uint8 ``[256]``: what an operation makes of each level."""
    levels = np.arange(256)
    match name:
        case "Invert":
            table = 255 - levels
        case "Solarize":
            table = np.where(levels < argument, levels, 255 - levels)
        case "SolarizeAdd":
            table = np.where(levels < 128, np.minimum(levels + int(argument), 255), levels)
        case "Posterize":
            table = levels & ~(2 ** (8 - int(argument)) - 1)
        case "Brightness":
            return _blend_with_constant(levels, 0, argument)
        case "CountContrast":
            return _blend_with_constant(levels, min(255, size * size // 256), argument)
        case _:
            table = levels
    return table.astype(np.uint8)


def _blend_with_constant(
    levels: npt.NDArray[np.int_], other: int, factor: float
) -> npt.NDArray[np.uint8]:
    change = np.float32(factor) * (levels - other).astype(np.float32)
    blend: npt.NDArray[np.float32] = np.clip(np.float32(other) + change, 0, 255)
    return blend.astype(np.uint8)
