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
"""What a row blends an image with: black (for rows that blend nothing), its mean, itself in grey,
itself smoothed.
"""

_TABLES_FROM = {"AutoContrast": AUTOCONTRAST, "Equalize": EQUALIZE}
_BLENDS = {"Contrast": MEAN, "Color": GREY, "Sharpness": SMOOTH}


@dataclass(frozen=True, eq=False)
class Layer:
    """The operations that images can draw at one place of a policy: R rows of parameters. Row 0
    does nothing.
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
    return Layer(
        operations=rows,
        coordinates=np.array([_fixed_point(_affine(*row, size)) for row in rows], np.int32),
        tables=np.array([_table(*row, size) for row in rows], np.uint8),
        table_from=np.array([_TABLES_FROM.get(name, FIXED) for name, _ in rows], np.int32),
        factors=np.array(
            [argument if name in _BLENDS else 1 for name, argument in rows], np.float32
        ),
        blend_with=np.array([_BLENDS.get(name, BLACK) for name, _ in rows], np.int32),
        halves=np.array([argument if name == "Cutout" else 0 for name, argument in rows], np.int32),
    )


def _affine(name: str, argument: float, size: int) -> tuple[float, ...]:
    """Return ``a .. f`` with which output position (x, y) reads input ``(a x + b y + c, d x + e y +
    f)``.

    Positions are measured from the image's corner: the first pixel's centre is (0.5, 0.5).
    """
    a, b, c, d, e, f = 1.0, 0.0, 0.0, 0.0, 1.0, 0.0
    if name == "ShearX":
        b = argument
    elif name == "ShearY":
        d = argument
    elif name == "TranslateX":
        c = argument
    elif name == "TranslateY":
        f = argument
    elif name == "Rotate":
        # Pillow's steps in Pillow's order, so that the fixed point below agrees to the last bit.
        angle = -math.radians(argument % 360)
        a, b = round(math.cos(angle), 15), round(math.sin(angle), 15)
        d, e = round(-math.sin(angle), 15), a
        middle = size / 2
        c = a * -middle + b * -middle + middle
        f = d * -middle + e * -middle + middle
    return a, b, c, d, e, f


def _fixed_point(matrix: tuple[float, ...]) -> list[int]:
    a, b, c, d, e, f = matrix
    # The half pixels put whole numbers at pixel centres.
    values = (a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5)
    return [math.floor(value * 65536 + 0.5) for value in values]


def _table(name: str, argument: float, size: int) -> npt.NDArray[np.uint8]:
    levels = np.arange(256)
    if name == "Invert":
        levels = 255 - levels
    elif name == "Solarize":
        levels = np.where(levels < argument, levels, 255 - levels)
    elif name == "SolarizeAdd":
        levels = np.where(levels < 128, np.minimum(levels + int(argument), 255), levels)
    elif name == "Posterize":
        levels = levels & ~(2 ** (8 - int(argument)) - 1)
    elif name in ("Brightness", "CountContrast"):
        other = min(255, size * size // 256) if name == "CountContrast" else 0
        blend = np.float32(other) + np.float32(argument) * (levels - other).astype(np.float32)
        levels = np.clip(blend, 0, 255)
    return levels.astype(np.uint8)
