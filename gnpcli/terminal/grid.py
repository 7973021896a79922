"""Texts in rows and columns, as a terminal shows them."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gnpcli.terminal.console import PIPED_WIDTH


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


def show(grid: Grid, console: Console) -> None:
    """Print a grid. Where it is too wide, notes stand below their rows and other cells break."""
    table = draw(grid)
    if grid.has_notes and console.measure(table).maximum > console.width:
        _show_notes_below(grid, console)
    else:
        console.print(table)


def draw(grid: Grid) -> Table:
    """Return a grid as rich draws it.

    Names in the first column and numbers keep to one line each. A narrow terminal breaks the names
    of the columns and all other texts.
    """
    table = Table(
        title=Text(grid.title) if grid.title else None,
        title_justify="left",
        title_style="",
        box=None,
        pad_edge=False,
    )
    for index, name in enumerate(grid.header):
        is_number = index in grid.numbers
        table.add_column(
            Text(name, style="bold"),
            justify="right" if is_number else "left",
            no_wrap=index == 0,
            min_width=_width(grid, index) if is_number else None,
            overflow="fold",
        )
    for index, row in enumerate(grid.rows):
        style = grid.styles[index] if index < len(grid.styles) else None
        table.add_row(*map(_draw_cell, row), style=style)
    return table


def _width(grid: Grid, column: int) -> int | None:
    """Return the widest cell of a column, without its name."""
    return max((_draw_cell(row[column]).cell_len for row in grid.rows), default=None)


def _draw_cell(cell: Cell) -> Text:
    if isinstance(cell, str):
        return Text(cell)
    if isinstance(cell, Styled):
        return Text(cell.text, style=cell.style)
    return Text("\n").join(Text(part.text, style=part.style) for part in cell)


def _show_notes_below(grid: Grid, console: Console) -> None:
    body = replace(grid, header=grid.header[:-1], rows=[row[:-1] for row in grid.rows])
    wide = Console(file=io.StringIO(), width=PIPED_WIDTH)
    with wide.capture() as captured:
        wide.print(draw(body))
    header, *lines = captured.get().splitlines()
    console.print(header.rstrip(), style="bold", markup=False, soft_wrap=True)
    for line, row in zip(lines, grid.rows, strict=True):
        console.print(line.rstrip(), markup=False, soft_wrap=True)
        console.print(Text("    ").append(_draw_cell(row[-1])), soft_wrap=True)
