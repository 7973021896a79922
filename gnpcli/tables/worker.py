"""The process of one cell: ``python -m gnpcli.tables.worker``.

Its task is a line of JSON on standard input. Standard error is the cell's log. Standard input stays
open for as long as the process that started this one lives. When that ends, however it ends, this
one saves its state and stops as after SIGTERM.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from gnpcli.config.loader import Layer
from gnpcli.devices.signals import command_signals
from gnpcli.devices.start import start_jax
from gnpcli.locks import FolderInUse
from gnpcli.models.own import explain
from gnpcli.runs.folder import RunFolder
from gnpcli.terminal.words import readable

WAIT_S = 1.0


def main() -> None:
    """Train the cell, or continue it; an error ends the log with its one line."""
    task = json.loads(_read_line())
    threading.Thread(target=_stop_when_alone, daemon=True).start()
    if task["cpus"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, task["cpus"])  # before jax counts them
    try:
        # All processes of a job may get a signal that this one gets from its starter, too.
        with command_signals():
            _run_when_free(task)
    except Exception as error:
        message, status = explain(error)
        if message is None:
            raise
        print(f"error: {readable(message)}", file=sys.stderr, flush=True)
        sys.exit(status)


def _run_when_free(task: dict[str, Any]) -> None:
    """Wait as long as another process works on this cell.

    One that outlived its starter may still be saving, and another table may share the folder.
    """
    told = False
    while True:
        try:
            return _run(task)
        except FolderInUse as error:
            if not told:
                print(f"waiting: {error}", file=sys.stderr, flush=True)
            told = True
            time.sleep(WAIT_S)


def _run(task: dict[str, Any]) -> None:
    from gnpcli.devices.process import keep_compiled_programs, keep_freed_memory

    keep_freed_memory()
    start_jax()
    keep_compiled_programs()
    from gnpcli.engine.train import resume, train
    from gnpcli.models.registry import load_model
    from gnpcli.recipes.presets import read_resolved

    load_model(task["config"]["model"]["name"])  # the table's process was allowed to
    run_dir = Path(task["run_dir"])
    if RunFolder(run_dir).exists():
        changes, accept = task["how_computed"], task["accept_changed_data"]
        resume(run_dir, changes, accept_changed_data=accept)
    else:
        train(read_resolved([Layer(task["config"])]), run_dir)


def _read_line() -> bytes:
    """Read past Python's buffers, a byte at a time: what follows the line is not read."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            break
        line += byte
    return line


def _stop_when_alone() -> None:
    """Wait for the end of standard input, then stop.

    It is read past Python's buffers: a thread that holds their lock hangs the exit.
    """
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
