"""Texts in rows and columns, as a terminal shows them."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gnpcli.terminal.console import PIPED_WIDTH
from gnpcli.terminal.words import NOTHING, readable

INDENT = "    "
NOTE_WIDTH = 30
"""Characters that a note is given beside its row, at least."""


class Styled(NamedTuple):
    """A text and how it is drawn, in rich's words: ``bold``, ``cyan``, ``dim``."""

    text: str
    style: str


Cell = str | Styled | list[Styled]
"""One text, or several below each other."""


@dataclass(frozen=True)
class Grid:
    """What to draw: a header, rows of as many cells, and a title above."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    numbers: Collection[int] = ()
    """Columns set to the right."""
    styles: Sequence[str] = ()
    """Of the rows, in order; a row beyond the last has none."""
    has_notes: bool = False
    """Whether the last column is a note, which may stand below its row where there is no room."""
    has_header: bool = True


def show(grid: Grid, console: Console) -> None:
    """Print a grid.

    A row is one line where another program reads it. On a terminal too narrow for a row and its
    note, the note stands below the row. On one too narrow for the row, its cells stand below its
    name as well.
    """
    if not console.is_terminal:
        for line in _aligned(grid):
            console.print(line, markup=False, soft_wrap=True)
        return
    if not grid.has_notes or _fits(grid, console):
        console.print(draw(grid))
        return
    rows = _without_notes(grid)
    lines = _aligned(rows) if _width(rows, console) <= console.width else _below_names(rows)
    notes = [_draw_cell(row[-1]) for row in grid.rows]
    for number, (line, note) in enumerate(zip(lines, [None, *notes], strict=True)):
        console.print(line, style=None if number else "bold", markup=False)
        if note:
            _show_note(note, console)


def _fits(grid: Grid, console: Console) -> bool:
    """Return whether notes fit beside their rows, broken over lines of `NOTE_WIDTH` if need be."""
    least = _width(_without_notes(grid), console) + NOTE_WIDTH
    return min(_width(grid, console), least) <= console.width


def _width(grid: Grid, console: Console) -> int:
    """Return how wide a grid is with each row on one line."""
    wide = console.options.update_width(PIPED_WIDTH)
    return console.measure(draw(grid), options=wide).maximum


def _without_notes(grid: Grid) -> Grid:
    return replace(grid, header=grid.header[:-1], rows=[row[:-1] for row in grid.rows])


def _aligned(grid: Grid) -> list[str]:
    """Return the header and the rows as a line each."""
    wide = Console(file=io.StringIO(), width=PIPED_WIDTH)
    with wide.capture() as captured:
        wide.print(draw(grid))
    return [line.rstrip() for line in captured.get().splitlines()]


def _below_names(grid: Grid) -> list[str]:
    """Return the header and the rows as two lines each: the first cell, and the others below."""
    texts = []
    for row in [grid.header, *grid.rows]:
        name, *others = (_draw_cell(cell).plain for cell in row)
        texts.append(f"{name}\n{INDENT}{'  '.join(text or NOTHING for text in others)}")
    return texts


def _show_note(note: Text, console: Console) -> None:
    """Print a note. One word, such as a folder, stays whole, however long, to be copied."""
    if " " in note.plain:
        console.print(Padding(note, (0, 0, 0, len(INDENT))))
    else:
        console.print(Text(INDENT).append(note), soft_wrap=True)


def draw(grid: Grid) -> Table:
    """Return a grid as rich draws it.

    Names in the first column and numbers keep to one line each. A narrow terminal breaks the names
    of the columns and all other texts.
    """
    table = Table(
        title=Text(readable(grid.title)) if grid.title else None,
        title_justify="left",
        title_style="",
        box=None,
        pad_edge=False,
        show_header=grid.has_header,
    )
    for index, name in enumerate(grid.header):
        is_number = index in grid.numbers
        table.add_column(
            Text(readable(name), style="bold"),
            justify="right" if is_number else "left",
            no_wrap=index == 0,
            min_width=_widest_cell(grid, index) if is_number else None,
            overflow="fold",
        )
    for index, row in enumerate(grid.rows):
        style = grid.styles[index] if index < len(grid.styles) else None
        table.add_row(*map(_draw_cell, row), style=style)
    return table


def _widest_cell(grid: Grid, column: int) -> int | None:
    """Return the width of a column without its name."""
    return max((_draw_cell(row[column]).cell_len for row in grid.rows), default=None)


def _draw_cell(cell: Cell) -> Text:
    if isinstance(cell, str):
        return Text(readable(cell))
    if isinstance(cell, Styled):
        return Text(readable(cell.text), style=cell.style)
    return Text("\n").join(map(_draw_cell, cell))
