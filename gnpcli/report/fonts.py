"""Fonts that have the characters of a text.

A picture never shows a box in place of a character: what no font of this machine has is written as
its code. An SVG keeps its texts, for the fonts of whoever looks at it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import groupby
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text
from PIL import ImageFont

from gnpcli.terminal.words import readable

_FIRST = "DejaVu Sans"
"""Matplotlib brings it along, and draws with it. It has the alphabets, but not 猫."""
_BOXES = "last resort"
"""Begins the names of fonts that have a box for every character."""
_PROBE_SIZE = 11
"""Points. Fonts of pictures, such as emoji, have no such size."""


class Face(NamedTuple):
    """A font file."""

    family: str
    path: str


def drawable(text: str) -> str:
    """Return a text in which characters that no font has are their codes, such as ``\\u732b``."""
    return "".join(
        character if face_of(character) is not None else _code(character)
        for character in readable(text)
    )


def families(text: str) -> list[str]:
    """Return the names of the fonts that a drawable text takes, matplotlib's own first."""
    faces = (face_of(character) for character in text)
    return list(dict.fromkeys([_FIRST, *(face.family for face in faces if face is not None)]))


def runs(text: str) -> Iterator[tuple[str, Face]]:
    """Yield the parts of a drawable text, each with the font that has its characters."""
    for face, characters in groupby(text, face_of):
        if face is not None:
            yield "".join(characters), face


def dress(figure: Figure) -> None:
    """Give every text of a figure fonts that have its characters."""
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if not text.get_text().isascii():
            lines = map(drawable, text.get_text().split("\n"))
            text.set_text("\n".join(lines))
            text.set_fontfamily(families(text.get_text()))


@contextmanager
def viewers_fonts() -> Iterator[None]:
    """Draw inside the block what keeps its texts as texts, for the fonts of whoever looks at it.

    Matplotlib does not remark on characters that its own fonts lack.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        yield


@cache
def face_of(character: str) -> Face | None:
    """Return the first font that has a character; None where no font has it."""
    for entry in _entries():
        if ord(character) in _characters(entry.fname):
            return Face(entry.name, entry.fname)
    return None


def _code(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


@cache
def _entries() -> list[FontEntry]:
    """Return the upright fonts of usual weight, matplotlib's own first."""
    usual = [
        entry
        for entry in fontManager.ttflist
        if entry.style == "normal"
        and entry.weight in (400, "normal", "regular")
        and not entry.name.lower().startswith(_BOXES)
    ]
    return sorted(usual, key=lambda entry: (entry.name != _FIRST, entry.name, entry.fname))


@cache
def _characters(path: str) -> frozenset[int]:
    """Return the characters that a font has: none where it cannot be read or drawn with."""
    try:
        ImageFont.truetype(path, _PROBE_SIZE)
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return frozenset()
