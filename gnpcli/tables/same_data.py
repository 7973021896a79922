"""Whether the cells of a table that are there already were trained on the data of today."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from gnpcli.config.schema import DataConfig
from gnpcli.data.base import DataSpec
from gnpcli.data.changes import CHOOSES_IMAGES, data_changes
from gnpcli.data.registry import describe_data
from gnpcli.engine.loading import load_with_progress
from gnpcli.errors import CheckpointError, GnpError
from gnpcli.runs.folder import RunFolder
from gnpcli.tables.cells import Cell, CellState
from gnpcli.terminal.screen import Screen


def check_same_data(
    cells: Sequence[Cell], states: Mapping[str, CellState], *, accept: bool, screen: Screen
) -> None:
    """Refuse to go on with a table where its data have changed since a cell was trained.

    Cells without a record of their data, and data that are not there, are not compared.

    Args:
        cells: Of the table.
        states: From `gnpcli.tables.cells.check_folders`.
        accept: Go on all the same. The screen is told.
        screen: Told how far the loading is.

    Raises:
        CheckpointError: Data have changed. The message names the cell and what differs.
    """
    there = [cell for cell in cells if states[cell.name] != "absent"]
    others = list(_trained_on_others(there, screen))
    if not others:
        return
    cell, changes = others[0]
    more = f" (and {len(others) - 1} more cells)" if len(others) > 1 else ""
    told = f"{cell.name}{more} was trained on other images than are there now: {changes}"
    if not accept:
        raise CheckpointError(
            f"{told}; put the old ones back, take another --out, or go on with "
            "--accept-changed-data"
        )
    screen.warn(f"{told}; going on, as asked")


def _trained_on_others(cells: Sequence[Cell], screen: Screen) -> Iterator[tuple[Cell, str]]:
    """Yield the cells that were trained on other data than are there now, and what differs."""
    loaded: dict[str, DataSpec | None] = {}
    for cell in cells:
        digest = _recorded(RunFolder(cell.run_dir))
        if digest is None:
            continue
        key = _images(cell.config.data)
        if key not in loaded:
            loaded[key] = _load(cell, screen)
        now = loaded[key]
        if now is not None and now.digest != digest:
            yield cell, _differences(cell, now)


def _images(data: DataConfig) -> str:
    """Return what says which images a section names and where they lie."""
    return data.model_dump_json(include={*CHOOSES_IMAGES, "dir", "validation_fraction"})


def _recorded(run: RunFolder) -> str | None:
    """Return the digest of the data of a run's last session; None where it has none."""
    sessions = run.sessions()
    return sessions[-1].get("data") if sessions else None


def _load(cell: Cell, screen: Screen) -> DataSpec | None:
    """Return what the data of a cell are now; None where they are not there."""
    info = describe_data(cell.config.data)
    if info is None or not info.present:
        return None
    return load_with_progress(cell.on_one_device, screen).spec


def _differences(cell: Cell, now: DataSpec) -> str:
    """Return in words what has changed since the last save of a cell."""
    from gnpcli.runs.description import read_description  # loads jax; comparing digests does not

    try:
        saves = RunFolder(cell.run_dir).saves()
        saved = read_description(saves, saves.steps()[-1])
    except (GnpError, IndexError):
        return "its checkpoints do not say in what"
    return "; ".join(data_changes(saved.data, now)) or "its last checkpoint knows of no change"
