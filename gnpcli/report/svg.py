"""A figure as an ``<svg>`` element of a page.

Its colours are CSS variables, to which `page.style` gives light and dark values.
"""

from __future__ import annotations

import hashlib
import html
import io
import re
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from gnpcli.report.curves import Dash
from gnpcli.report.fonts import viewers_fonts
from gnpcli.report.palette import COLOURS, GRID, INK, MUTED
from gnpcli.report.style import style
from gnpcli.strict_json import to_json

_VARIABLES = {
    **{light: f"--c{index}" for index, (light, _) in enumerate(COLOURS)},
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
}
"""CSS variables by the colour on light ground."""

_NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
_REFERENCE = r"(xlink:href=\"|url\()#([^\")]+)"


def inline_svg(figure: Figure, title: str, data: Mapping[str, Any] | None = None) -> str:
    """Return a figure as an ``<svg>`` element that has the page's font and no fixed size.

    Args:
        figure: Made within `style`.
        title: What the picture is, for those who cannot see it.
        data: JSON-able, put into ``data-chart``.
    """
    chart = ""
    if data is not None:
        text = to_json(data)
        chart = f' data-chart="{html.escape(text)}"'
    suffix = hashlib.sha256((title + chart).encode()).hexdigest()[:8]
    svg = _with_own_ids(_svg(figure), suffix)
    svg = _without_fonts(_with_variables(svg))
    head, content = svg.split(">", 1)
    label = html.escape(title)
    return f'<svg {_NAMESPACES} {_view_box(head)} role="img" aria-label="{label}"{chart}>{content}'


def variable(colour: str) -> str:
    """Return the CSS value of a colour of the palette."""
    return f"var({_VARIABLES[colour]})"


def swatch(colour: str, dash: Dash) -> str:
    """Return a short line for a legend, as an ``<svg>`` element.

    Args:
        colour: Of the palette.
        dash: Its pattern.
    """
    pattern = ""
    if not isinstance(dash, str):
        lengths = " ".join(str(1.6 * part) for part in dash[1])
        pattern = f' stroke-dasharray="{lengths}"'
    return (
        '<svg class="swatch" viewBox="0 0 22 8" aria-hidden="true">'
        f'<path d="M0 4H22" style="stroke: {variable(colour)}; stroke-width: 2.2"{pattern}/></svg>'
    )


def _svg(figure: Figure) -> str:
    """Return a figure as matplotlib writes it, from ``<svg`` on and without metadata."""
    buffer = io.StringIO()
    metadata = {"Date": None, "Creator": None}
    with style(), viewers_fonts():
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    text = buffer.getvalue()
    svg = text[text.index("<svg") :]
    return re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)


def _with_own_ids(svg: str, suffix: str) -> str:
    """Keep only the ids that something refers to, and put a suffix to them.

    A page has many pictures, and no two of them may have an id in common.
    """
    used = {found[1] for found in re.findall(_REFERENCE, svg)}

    def renamed(found: re.Match[str]) -> str:
        return f' id="{found[1]}-{suffix}"' if found[1] in used else ""

    svg = re.sub(r' id="([^"]+)"', renamed, svg)
    return re.sub(_REFERENCE, rf"\1#\2-{suffix}", svg)


def _with_variables(svg: str) -> str:
    """Replace colours by CSS variables that fall back on the same colours."""
    for colour, name in _VARIABLES.items():
        svg = svg.replace(colour, f"var({name}, {colour})")
    return svg


def _without_fonts(svg: str) -> str:
    """Leave of fonts only their size."""
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    return re.sub(r"font-family: [^;\"]*;?", "", svg)


def _view_box(head: str) -> str:
    found = re.search(r'viewBox="[^"]*"', head)
    return found[0] if found is not None else ""
