"""The HTML around reports.

A page is one file without external resources. It is light or dark, and readable on a phone and on
paper. ``page.css`` and ``page.js`` beside this module go into every page.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path

from gnpcli.errors import GnpError
from gnpcli.files import write_atomically
from gnpcli.report.palette import COLOURS, GRID, GRID_DARK, INK, INK_DARK, MUTED, MUTED_DARK

_LIGHT = {
    "ground": "#ffffff",
    "card": "#f6f8fa",
    "ink": INK,
    "muted": MUTED,
    "grid": GRID,
    "warn": "#fff4de",
    "warn-ink": "#7a4a00",
    **{f"c{index}": light for index, (light, _) in enumerate(COLOURS)},
}
_DARK = {
    "ground": "#14181d",
    "card": "#1c2229",
    "ink": INK_DARK,
    "muted": MUTED_DARK,
    "grid": GRID_DARK,
    "warn": "#3a2c10",
    "warn-ink": "#ffd58a",
    **{f"c{index}": dark for index, (_, dark) in enumerate(COLOURS)},
}


@cache
def style() -> str:
    """Return the style sheet of a page: the colours as CSS variables, then ``page.css``."""
    light, dark = _variables(_LIGHT), _variables(_DARK)
    colours = (
        f":root {{ color-scheme: light dark; {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
        f"@media print {{ :root {{ color-scheme: light; {light} }} }}\n"
    )
    return colours + _read("page.css")


@cache
def script() -> str:
    """Return the script of a page, which shows the values of a chart under the pointer."""
    return _read("page.js")


def _variables(colours: Mapping[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


def _read(name: str) -> str:
    return resources.files("gnpcli.report").joinpath(name).read_text(encoding="utf-8")


_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def document(title: str, body: str) -> str:
    """Return a whole page. Its policy lets a browser fetch nothing.

    Args:
        title: Plain text.
        body: HTML, such as `gnpcli.report.charts.inline_charts` and `table` return.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{style()}</style>\n</head>\n<body>\n{body}"
        f"<script>\n{script()}</script>\n</body>\n</html>\n"
    )


def write(path: Path, title: str, body: str) -> None:
    """Write `document` to a file.

    Raises:
        GnpError: It cannot be written; the file that was there is as it was.
    """
    try:
        write_atomically(path, document(title, body))
    except OSError as error:
        raise GnpError(f"cannot write {path}: {error.strerror}: take another --out") from error


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()
) -> str:
    """Return a table of plain texts as HTML.

    Args:
        columns: Heads; all empty for none.
        rows: Cells, as many as columns.
        numbers: Which columns are set to the right.
    """

    def cell(tag: str, index: int, text: str) -> str:
        kind = " class=number" if index in numbers else ""
        return f"<{tag}{kind}>{html.escape(text)}</{tag}>"

    def line(tag: str, texts: Sequence[str]) -> str:
        cells = "".join(cell(tag, index, text) for index, text in enumerate(texts))
        return f"<tr>{cells}</tr>"

    head = f"<thead>{line('th', columns)}</thead>" if any(columns) else ""
    body = "".join(line("td", row) + "\n" for row in rows)
    return f'<div class="scroll"><table>{head}<tbody>\n{body}</tbody></table></div>\n'


def tiles(values: Mapping[str, str]) -> str:
    """Return the figures that matter most, each over its name."""
    inner = "".join(
        f'<div class="tile"><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>'
        for name, value in values.items()
    )
    return f'<div class="tiles">{inner}</div>\n'


def warnings(texts: Sequence[str]) -> str:
    """Return a list of warnings; nothing where there is none."""
    if not texts:
        return ""
    items = "".join(f"<li>{html.escape(text)}</li>" for text in texts)
    return f'<ul class="warnings">{items}</ul>\n'
