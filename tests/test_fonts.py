"""No picture shows a box in place of a character, and matplotlib's remarks reach no screen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from gnpcli.report import fonts
from gnpcli.report.style import FORMATS, save
from tests.conftest import Gnp
from tests.folders import put


@pytest.fixture
def matplotlibs_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave the fonts that matplotlib brings along, as on a machine without others."""
    own = [entry for entry in fonts._entries() if "mpl-data" in entry.fname]
    fonts.face_of.cache_clear()
    monkeypatch.setattr(fonts, "_entries", lambda: own)
    yield
    fonts.face_of.cache_clear()


@pytest.mark.usefixtures("matplotlibs_own")
@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("plain", "plain"),
        ("Ämeise собака قط", "Ämeise собака قط"),
        ("猫", "\\u732b"),
        ("a 🐈", "a \\U0001f408"),
        ("two\nlines\x1b[2J", "two\\nlines\\x1b[2J"),
        ("\udcff", "\\udcff"),
        ("", ""),
    ],
)
def test_what_no_font_has_is_its_code(text: str, drawn: str) -> None:
    assert fonts.drawable(text) == drawn
    assert "".join(part for part, _ in fonts.runs(drawn)) == drawn


@pytest.mark.usefixtures("matplotlibs_own")
def test_another_font_has_what_the_first_lacks() -> None:
    first_path, *others = [entry.fname for entry in fonts._entries()]
    known = set(FT2Font(first_path).get_charmap())
    more = set().union(*(FT2Font(path).get_charmap() for path in others))
    missing = next(chr(code) for code in sorted(more - known) if chr(code).isprintable())
    assert fonts.drawable(missing) == missing
    (_, first), (part, other) = fonts.runs(f"a{missing}")
    assert (first.family, part) == ("DejaVu Sans", missing)
    assert other.family != "DejaVu Sans"
    assert fonts.families(f"a{missing}") == ["DejaVu Sans", other.family]


@pytest.mark.usefixtures("matplotlibs_own")
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_figure_is_saved_without_a_remark(suffix: str, tmp_path: Path) -> None:
    figure = Figure()
    axes = figure.subplots()
    axes.plot([1, 2], label="猫 Ä")
    axes.legend()
    path = tmp_path / f"x{suffix}"
    save(figure, path)  # a warning would be an error
    if suffix == ".svg":
        assert "猫 Ä" in path.read_text(encoding="utf-8")


def test_captions_of_a_preview_are_drawn_with_a_font_that_has_them(
    gnp: Gnp, tmp_path: Path
) -> None:
    for split in ("train", "test"):
        put(tmp_path / "data" / split / "собака" / "0.png", size=8)
        put(tmp_path / "data" / split / "собака 2" / "0.png", size=8)
    done = gnp("data", "preview", "--dataset", "folder:data", "--count", 1, "--out", "x.png", "-q")
    assert (done.returncode, done.stderr) == (0, "")
    with Image.open(tmp_path / "x.png") as sheet:
        caption = np.asarray(sheet.crop((8, 8 + 128, 8 + 128, 8 + 128 + 14)))
    wanted = []
    for name in ("собака", "собака 2"):
        image = Image.new("RGB", (128, 14), "white")
        font = ImageFont.truetype(fonts._entries()[0].fname, 11)
        ImageDraw.Draw(image).text((0, 0), name, fill="black", font=font)
        wanted.append(np.asarray(image))
    assert any(np.array_equal(caption, one) for one in wanted)
