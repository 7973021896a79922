"""The cells of a table: one ordinary run folder for each row, column and seed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gnpcli.config.loader import flatten
from gnpcli.config.resolved import Resolved, settle
from gnpcli.config.same_run import another_run
from gnpcli.config.schema import RunConfig
from gnpcli.errors import ConfigError
from gnpcli.runs.folder import RunFolder
from gnpcli.tables.spec import Changes, Table

CELLS = "cells"
"""Folder of all run folders in the folder of a table's results."""

CellState = Literal["absent", "begun", "finished"]
"""How far the run folder of a cell is."""


@dataclass(frozen=True)
class Cell:
    """One run of a table."""

    row: str
    column: str
    seed: int
    config: RunConfig
    """As the table says it; groups may be per device."""
    run_dir: Path

    @property
    def name(self) -> str:
        """Row, column and seed in a line."""
        return f"{self.row} {self.column} seed {self.seed}"

    @property
    def on_one_device(self) -> Resolved:
        """The configuration in numbers, for what the number of devices does not change."""
        return settle(self.config, lambda: 1)

    @property
    def log(self) -> Path:
        """What its process prints, beside the run folder: a new run wants an empty one."""
        return self.run_dir.with_name(f"{self.run_dir.name}.log")

    @property
    def claim(self) -> Path:
        """The folder that is there, and locked, while a command runs this cell."""
        return self.run_dir.with_name(f"{self.run_dir.name}.claim")


def run_dir(out: Path, row: str, column: str, seed: int) -> Path:
    """Return the run folder of a cell."""
    return out / CELLS / row / column / f"seed{seed}"


def find_runs(out: Path) -> list[tuple[str, str, int]]:
    """Return row, column and seed of every run folder in a table's results, by seed."""
    runs = []
    for folder in (out / CELLS).glob("*/*/seed*"):
        row, column, seed = (
            folder.parent.parent.name,
            folder.parent.name,
            folder.name.removeprefix("seed"),
        )
        if seed.isdecimal() and RunFolder(folder).exists():
            runs.append((row, column, int(seed)))
    return sorted(runs, key=lambda run: run[2])


def make_cells(
    table: Table,
    rows: Sequence[str],
    columns: Sequence[str],
    seeds: Sequence[int],
    changes: Changes,
    out: Path,
) -> list[Cell]:
    """Resolve the cells of a table, seed by seed.

    So a table that is stopped early is whole for its first seeds.

    Raises:
        ConfigError: A cell that cannot be resolved, code that is not trusted, or two rows or
            columns that `changes` made the same.
    """
    cells = []
    for seed in seeds:
        for row in rows:
            for column in columns:
                config = table.resolve(row, column, seed, changes, "needed")
                cells.append(Cell(row, column, seed, config, run_dir(out, row, column, seed)))
    _check_distinct(table, cells)
    return cells


def _check_distinct(table: Table, cells: Iterable[Cell]) -> None:
    seen: dict[str, Cell] = {}
    for cell in cells:
        key = json.dumps(flatten(cell.config), sort_keys=True)
        other = seen.setdefault(key, cell)
        if other is not cell:
            raise ConfigError(
                f"table {table.name}: {other.row} {other.column} and {cell.row} {cell.column} "
                "would be the same run: what tells them apart was overridden"
            )


def check_folders(cells: Iterable[Cell]) -> dict[str, CellState]:
    """Return how far each cell's run is, by `Cell.name`.

    Raises:
        ConfigError: A folder holds a run of another configuration, with the keys that differ.
    """
    states: dict[str, CellState] = {}
    others = []
    for cell in cells:
        run = RunFolder(cell.run_dir)
        different = another_run(run.config(), cell.config) if run.exists() else []
        states[cell.name] = _state(run)
        if different:
            keys = "; ".join(different)
            others.append(f"{cell.run_dir} holds a run with another configuration ({keys})")
    if others:
        more = f" (and {len(others) - 1} more cells)" if len(others) > 1 else ""
        raise ConfigError(f"{others[0]}{more}: take another --out")
    return states


def _state(run: RunFolder) -> CellState:
    if not run.exists():
        return "absent"
    return "finished" if run.summary()["status"] == "finished" else "begun"
