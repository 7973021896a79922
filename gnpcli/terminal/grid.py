"""Texts in rows and columns, as a terminal shows them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rich.table import Table
from rich.text import Text


class Styled(NamedTuple):
    """A text and how it is drawn, in rich's words: ``bold``, ``cyan``, ``dim``."""

    text: str
    style: str


Cell = str | Styled | Sequence[Styled]
"""One text; a sequence stands below each other."""


@dataclass(frozen=True)
class Grid:
    """What to draw: a header, rows of as many cells, and a title above."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    numbers: Collection[int] = ()
    """Columns set to the right, which are never broken over lines."""
    row_styles: Sequence[str | None] = ()
    """Of each row, in order; none beyond the last."""


def draw(grid: Grid) -> Table:
    """Return a grid as rich draws it.

    The first column and numbers keep to one line each; a narrow terminal breaks the others.
    """
    table = Table(
        title=grid.title or None,
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
            no_wrap=is_number or index == 0,
            overflow="fold",
        )
    for index, row in enumerate(grid.rows):
        style = grid.row_styles[index] if index < len(grid.row_styles) else None
        table.add_row(*map(_draw_cell, row), style=style)
    return table


def _draw_cell(cell: Cell) -> Text:
    if isinstance(cell, str):
        return Text(cell)
    if isinstance(cell, Styled):
        return Text(cell.text, style=cell.style)
    return Text("\n").join(Text(part.text, style=part.style) for part in cell)
