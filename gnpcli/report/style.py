"""How every picture looks, and the file that it is written to."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from gnpcli.errors import DataError
from gnpcli.report.fonts import dress, viewers_fonts
from gnpcli.report.palette import GRID, INK, MUTED

FORMATS = (".png", ".svg", ".pdf")
"""What a picture's name may end in."""

_STYLE: dict[str, Any] = {
    "text.parse_math": False,  # a name with dollars is a name
    "svg.fonttype": "none",
    "svg.hashsalt": "gnp",
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.4,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
"""Matplotlib settings. The fixed salt makes the ids of an SVG the same each time."""

_UNDATED: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
"""Metadata by format without the time of writing."""


def style() -> AbstractContextManager[None]:
    """Return the context that every picture is made and saved in: fonts, grid, reproducible SVG."""
    return matplotlib.rc_context(_STYLE)  # type: ignore[arg-type]


def check_out(path: Path) -> None:
    """Refuse a picture that cannot be written, before the work for it begins.

    Raises:
        DataError: Its name ends in none of `FORMATS`, its folder is not there, or it is a folder.
    """
    if path.suffix.lower() not in FORMATS:
        raise DataError(f"{path}: the name of a picture ends in {', '.join(FORMATS)}")
    check_place(path)


def check_place(path: Path) -> None:
    """Refuse a file that has no place.

    Raises:
        DataError: Its folder is not there, or it is a folder itself.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder: name a file in it")
    if not path.absolute().parent.is_dir():
        raise DataError(f"there is no folder {path.absolute().parent} to write {path.name} into")


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the file's name: PNG at 150 dots an inch, SVG or PDF.

    The same figure gives the same bytes, on a machine with the same fonts.
    """
    kind = path.suffix.lower()[1:]
    metadata = _UNDATED.get(kind, {})
    if kind != "svg":
        dress(figure)
    with style(), viewers_fonts():
        figure.savefig(path, format=kind, dpi=150, facecolor="white", metadata=metadata)
