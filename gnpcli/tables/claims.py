"""Which command runs a cell: its claim, a lock on a folder beside the run folder.

The lock ends with its command, however that ends. So others take over the cell of one that was
killed: at once where the file system has `flock`, else when its lease is stale (`gnpcli.locks`).
The run folder has a lock of its own, which the process of the cell holds. That process may outlive
its command for as long as it saves.
"""

from __future__ import annotations

from contextlib import ExitStack

from gnpcli.locks import FolderInUse, FolderLock, Holder, read_holder
from gnpcli.runs.writing import writing
from gnpcli.tables.cells import Cell


def claim(cell: Cell) -> ExitStack | None:
    """Claim a cell for this command.

    Returns:
        What gives it up when it is closed; None where another command has it.

    Raises:
        RunWriteError: The folder of the claim cannot be written.
    """
    with ExitStack() as stack:
        try:
            with writing(cell.claim):
                stack.enter_context(FolderLock(cell.claim, making="if missing"))
        except FolderInUse:
            return None
        return stack.pop_all()


def who_runs(cell: Cell) -> Holder | None:
    """Return the command that has claimed a cell; None where there is none, as far as is seen."""
    holder = read_holder(cell.claim)
    return None if holder is None or holder.is_dead() else holder
