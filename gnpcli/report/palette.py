"""The colours of pictures and pages, each for light ground and for dark ground."""

from __future__ import annotations

COLOURS: tuple[tuple[str, str], ...] = (
    ("#0068b5", "#5cb3ff"),
    ("#d1480a", "#ff9166"),
    ("#00835e", "#3fd0a2"),
    ("#a8328f", "#ee8ad8"),
    ("#8a6500", "#e0b341"),
    ("#5b5bd6", "#a9a6ff"),
    ("#5d6b78", "#a5b4c2"),
    ("#b3243f", "#ff8095"),
)
"""Of curves, for light and for dark ground.

Their order of lightness and hue tells them apart also with red-green colour blindness.
"""

INK, MUTED, GRID = "#1f2933", "#66727f", "#dde2e7"
"""Text, axes and grid lines on light ground."""
INK_DARK, MUTED_DARK, GRID_DARK = "#e6eaee", "#96a2ae", "#323a43"
"""The same on dark ground."""
