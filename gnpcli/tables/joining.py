"""The commands that are at work in the folder of a table: each is known there while it runs.

A command writes what it runs into a folder of its own, which is locked for as long as the command
lives. So the next one sees who is there, and that both run the same.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from gnpcli import __version__
from gnpcli.config.loader import flatten
from gnpcli.config.same_run import COMPUTED_BY
from gnpcli.errors import ConfigError
from gnpcli.files import write_atomically
from gnpcli.locks import FolderInUse, FolderLock, Holder
from gnpcli.runs.writing import writing
from gnpcli.tables.cells import Cell

WORKERS = "workers"
"""Folder of the folders of all commands at work, in the folder of a table's results."""

_WORK = "work.json"

_PARTS = ("version", "rows", "columns", "seeds")

Work = dict[str, Any]
"""What a command runs: ``version`` of `gnp`, ``rows``, ``columns`` and ``seeds``, and the ``cells``
of the first seed.

Of each cell it has the keys that say which run it is, with their values.
"""


@contextmanager
def at_work(out: Path, cells: Sequence[Cell], *, join: bool) -> Iterator[None]:
    """Be known as a command that runs `cells` in the folder of a table.

    Args:
        out: The folder; it is made where it is missing.
        cells: All that the command is to run.
        join: Whether others may be at work there.

    Raises:
        ConfigError: Another command is at work there, and `join` is false or it runs other cells.
        RunWriteError: The folder cannot be written.
    """
    work = _work(cells)
    missing = [path for path in (out, *out.parents) if not path.exists()]
    with ExitStack() as stack:
        stack.callback(_remove_empty, [out / WORKERS, *missing])
        stack.callback(_forget_killed, out)
        with writing(out), alone(out):
            for holder, other in _others(out):
                _check_joins(out, holder, join)
                _check_same(out, holder, other, work)
            mine = out / WORKERS / Holder.me().token
            stack.enter_context(FolderLock(mine, making="always"))
            write_atomically(mine / _WORK, json.dumps(work))
            stack.callback((mine / _WORK).unlink, missing_ok=True)
        yield


def alone(out: Path) -> FolderLock:
    """Hold the folder of a table for a moment; wait where another command does."""
    return FolderLock(out, making="if missing", on_busy=lambda error: None)


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _forget_killed(out: Path) -> None:
    with suppress(OSError), alone(out):
        for _ in _others(out):
            pass


def _work(cells: Sequence[Cell]) -> Work:
    first = cells[0].seed
    return {
        "version": [__version__],
        "rows": list(dict.fromkeys(cell.row for cell in cells)),
        "columns": list(dict.fromkeys(cell.column for cell in cells)),
        "seeds": list(dict.fromkeys(cell.seed for cell in cells)),
        "cells": {
            f"{cell.row} {cell.column}": _what_it_is(cell) for cell in cells if cell.seed == first
        },
    }


def _what_it_is(cell: Cell) -> dict[str, Any]:
    values = flatten(cell.config)
    return {key: value for key, value in values.items() if key not in COMPUTED_BY}


def _others(out: Path) -> Iterator[tuple[Holder | None, Work | None]]:
    """Yield who is at work, and on what where that can be read; forget those that were killed."""
    for folder in sorted((out / WORKERS).glob("*")):
        try:
            with FolderLock(folder):
                pass
            shutil.rmtree(folder)
        except FolderInUse as error:
            yield error.holder, _read(folder / _WORK)
        except FileNotFoundError:  # it has ended just now
            pass


def _read(path: Path) -> Work | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict):
        return None
    found.setdefault("version", ["an older one"])
    lists = all(isinstance(found.get(part), list) for part in _PARTS)
    cells = found.get("cells")
    is_work = lists and isinstance(cells, dict) and all(isinstance(v, dict) for v in cells.values())
    return found if is_work else None


def _check_joins(out: Path, holder: Holder | None, join: bool) -> None:
    if not join:
        raise ConfigError(
            f"{out} is in use by {holder or 'another command'}: wait until that ends, or divide "
            "the cells with it by --join"
        )


def _check_same(out: Path, holder: Holder | None, other: Work | None, mine: Work) -> None:
    different = None if other is None else next(_differences(other, mine), None)
    if different is not None:
        raise ConfigError(
            f"{out} is in use by {holder or 'another command'}, which runs something else "
            f"({different}): type the same command to join it, or take another --out"
        )


def _differences(other: Work, mine: Work) -> Iterator[str]:
    """Yield what differs between two commands, from the other to this one."""
    for part in _PARTS:
        if other[part] != mine[part]:
            yield f"{part}: {_listed(other[part])} -> {_listed(mine[part])}"
    for place, config in mine["cells"].items():
        before = other["cells"].get(place, {})
        for key in sorted(before.keys() | config.keys()):
            if before.get(key) != config.get(key):
                yield f"{place}: {key}: {before.get(key, '-')} -> {config.get(key, '-')}"


def _listed(names: Sequence[object]) -> str:
    return ",".join(map(str, names))
