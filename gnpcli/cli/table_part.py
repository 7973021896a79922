"""The options that choose the part of a table, and what they choose."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gnpcli.cli.options import split_names
from gnpcli.config.paths import user_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gnpcli.tables.cells import Cell
    from gnpcli.tables.spec import Changes, Table

RowsOption = Annotated[
    str | None,
    typer.Option("--models", "--rows", metavar="ROW,...", help="Rows to run.", show_default="all"),
]
ColumnsOption = Annotated[
    str | None,
    typer.Option("--columns", metavar="COLUMN,...", help="Columns to run.", show_default="all"),
]
SeedsOption = Annotated[
    str | None,
    typer.Option("--seeds", metavar="SEED,...", help="0,1,2 or 0-4.", show_default="the table's"),
]
EpochsOption = Annotated[
    int | None,
    typer.Option(
        "--epochs", help="Passes over the training data. Warmups keep their share of them."
    ),
]
VariantOption = Annotated[
    str | None,
    typer.Option(
        "--variant", help="A variant of the table, see gnp tables show.", show_default="the first"
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        parser=user_path,
        metavar="FOLDER",
        help="Folder of cells and results.",
        show_default="tables/TABLE[-VARIANT]",
    ),
]


@dataclass(frozen=True)
class Part:
    """The part of a table that was asked for, and where it lies."""

    table: Table
    rows: list[str]
    columns: list[str]
    seeds: list[int] | None
    """None leaves them to the table."""
    changes: Changes
    folder: Path

    def cells(self) -> list[Cell]:
        """Resolve the cells; errors as of `gnpcli.tables.cells.make_cells`."""
        from gnpcli.tables.cells import make_cells

        seeds = self.seeds or self.table.spec.seeds
        return make_cells(self.table, self.rows, self.columns, seeds, self.changes, self.folder)


def chosen_part(
    name: str,
    models: str | None,
    columns: str | None,
    seeds: str | None,
    epochs: int | None,
    dataset: str | None,
    data_dir: str | None,
    variant: str | None,
    assignments: Sequence[str],
    out: Path | None,
) -> Part:
    """Return what the arguments of the command choose."""
    from gnpcli.tables.spec import Changes, choose, load_table

    table = load_table(name)
    row_names = choose(table, "rows", "--models", _names(models))
    column_names = choose(table, "columns", "--columns", _names(columns))
    changes = Changes(table.variant(variant), epochs, dataset, data_dir, tuple(assignments))
    folder = out if out is not None else _default_out(table, changes.variant)
    return Part(table, row_names, column_names, _seeds(seeds), changes, folder)


def _names(text: str | None) -> list[str] | None:
    if text is None:
        return None
    names = split_names(text)
    if not names:
        raise typer.BadParameter("names none")
    return names


def _seeds(text: str | None) -> list[int] | None:
    """Read ``0,1,2`` and ``0-4``."""
    if text is None:
        return None
    seeds: list[int] = []
    for word in split_names(text):
        first, dash, last = word.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise typer.BadParameter(
                f"'{word}' is not a seed: write 0,1,2 or 0-4", param_hint="--seeds"
            )
        seeds += range(int(first), int(last) + 1) if dash else [int(first)]
    if not seeds or len(set(seeds)) < len(seeds):
        raise typer.BadParameter(f"'{text}' names a seed twice, or none", param_hint="--seeds")
    return seeds


def _default_out(table: Table, variant: str | None) -> Path:
    is_first = variant is None or variant == next(iter(table.spec.variants))
    return Path("tables") / (table.name if is_first else f"{table.name}-{variant}")
