"""Runs the cells of a table, each in a process of its own: how one ends is no matter to others.

A cell is claimed before it is run (`gnpcli.tables.claims`). Commands that share a folder so divide
the cells: each passes over those that others have, and waits in the end until all are done.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gnpcli.config.same_run import how_computed
from gnpcli.devices.signals import STOP_SIGNALS, stop_signals
from gnpcli.errors import TRY_AGAIN, ConfigError, Interrupted
from gnpcli.locks import Holder
from gnpcli.runs.folder import RunFolder
from gnpcli.tables.cells import Cell, CellState, check_folders
from gnpcli.tables.claims import claim, who_runs
from gnpcli.tables.schema import Metric
from gnpcli.tables.shares import Share
from gnpcli.tables.values import final_value, latest_value

POLL_S = 0.2
LOOK_EVERY_S = 2.0
"""Seconds between two looks at a running cell, and at those that other commands may have."""

_STOPPED = [TRY_AGAIN, *(status for number in STOP_SIGNALS for status in (128 + number, -number))]
"""Statuses of a cell that was stopped: it has saved its state, or had nothing to save yet."""

CellStatus = Literal["waiting", "running", "elsewhere", "kept", "finished", "failed", "stopped"]
"""Where a cell stands in this run of the table.

``kept`` was finished before. Another command runs what is ``elsewhere``.
"""


@dataclass
class CellProgress:
    """Where a cell stands."""

    cell: Cell
    status: CellStatus = "waiting"
    epoch: float | None = None
    value: float | None = None
    """Of the metric: the latest while running, else the final one."""
    problem: str = ""
    """Why it failed, in a line."""
    holder: Holder | None = None
    """Who runs it elsewhere."""
    had_diverged: bool = False
    """Whether it had before this command came: then it is tried again."""

    @property
    def is_done(self) -> bool:
        """Whether its run is finished."""
        return self.status in ("kept", "finished")

    @property
    def is_open(self) -> bool:
        """Whether this command may come to run it."""
        return self.status in ("waiting", "elsewhere")

    @property
    def share(self) -> float:
        """Of the epochs that are done, 0 to 1."""
        if self.is_done:
            return 1.0
        return min((self.epoch or 0.0) / self.cell.config.train.epochs, 1.0)


def run_cells(
    cells: Sequence[Cell],
    states: dict[str, CellState],
    metric: Metric,
    shares: Sequence[Share],
    show: Callable[[Sequence[CellProgress]], None],
    tell: Callable[[str], None],
    *,
    accept_changed_data: bool = False,
) -> list[CellProgress]:
    """Bring every cell to its end that is not there yet, as many at a time as there are `shares`.

    Cells that other commands run are waited for. One whose command is killed is taken over. When a
    cell has reached its time limit, no other one is begun or waited for: it would take one step.

    Args:
        cells: In the order in which to run them.
        states: How far they are, from `gnpcli.tables.cells.check_folders`.
        metric: What is told of running cells.
        shares: From `gnpcli.tables.shares.shares`.
        show: Told where all cells stand, a few times a second.
        tell: Told that a signal has come, at once and from another thread.
        accept_changed_data: Cells go on also on data that have changed.

    Returns:
        Where each cell stands at the end: kept, finished, failed or stopped. After a time limit
        some may be waiting or elsewhere.

    Raises:
        RunWriteError: The folder cannot be written.
        Interrupted: After one of `STOP_SIGNALS`, when every running cell has saved its state.
    """
    progress = [_before(cell, states[cell.name], metric) for cell in cells]
    pool = _Pool(progress, shares, metric, accept_changed_data)
    with stop_signals(tell, "stopping, every running cell saves") as received:
        try:
            while pool.is_busy:
                if received:
                    pool.stop()
                pool.start_open()
                pool.look()
                show(progress)
                time.sleep(POLL_S)
            show(progress)
        finally:
            pool.kill()  # an error: what was saved is saved
    if received:
        done = sum(item.is_done for item in progress)
        raise Interrupted(
            f"stopped by {received[0].name} with {done} of {len(cells)} cells finished, the others "
            "saved; the same command goes on",
            128 + received[0],
        )
    return progress


def _before(cell: Cell, state: CellState, metric: Metric) -> CellProgress:
    """Return where a cell stands before anything is run."""
    item, run = CellProgress(cell), RunFolder(cell.run_dir)
    if state == "finished":
        item.status, item.value = "kept", final_value(run, metric)
    elif state == "begun":
        item.epoch, item.value = latest_value(run, metric)
        item.had_diverged = run.summary()["status"] == "diverged"
    return item


@dataclass
class _Job:
    """The process of a cell."""

    progress: CellProgress
    share: Share
    claim: contextlib.ExitStack
    process: subprocess.Popen[bytes]
    log_start: int
    """Bytes of the cell's log that earlier processes wrote."""


class _Pool:
    """The processes of the cells that run, one for each share of the machine."""

    def __init__(
        self,
        progress: Sequence[CellProgress],
        shares: Sequence[Share],
        metric: Metric,
        accept_changed_data: bool,
    ):
        self._open = [item for item in progress if item.status == "waiting"]
        self._free = deque(shares)
        self._metric = metric
        self._accept = accept_changed_data
        self._jobs: list[_Job] = []
        self._sizes: dict[str, int] = {}
        """Bytes of the metrics of each cell when they were read."""
        self._looked = self._tried = -math.inf
        """When cells were looked at, and when all that are open were claimed in vain; monotonic."""
        self._is_stopping = False
        self._begins_none = False

    @property
    def is_busy(self) -> bool:
        """Whether a cell runs, here or elsewhere, or will."""
        return bool(self._jobs or (self._open and not self._begins_none))

    def start_open(self) -> None:
        """Start as many cells as there are free shares, unless the pool begins none any more.

        Those that other commands have are passed over, and tried again now and then.
        """
        if self._begins_none or not self._free or not _is_due(self._tried):
            return
        for item in list(self._open):
            if not self._free:
                return
            self._try(item)
        self._tried = time.monotonic()

    def _try(self, item: CellProgress) -> None:
        """Start a cell, unless another command has it or has brought it to its end."""
        claimed = claim(item.cell)
        if claimed is None:
            return
        self._open.remove(item)
        with claimed:
            _note_end(item, self._metric)
            _refuse_another(item)
            if item.is_open:
                self._jobs.append(_start(item, self._free.popleft(), claimed, self._accept))

    def look(self) -> None:
        """Note how far the cells are, and how those that ended did."""
        for job in list(self._jobs):
            if job.process.poll() is not None:
                _settle(job, self._metric)
                self._begins_none |= job.process.returncode == TRY_AGAIN
                self._jobs.remove(job)
                self._free.append(job.share)
                self._tried = -math.inf
        if _is_due(self._looked):
            self._looked = time.monotonic()
            self._look_elsewhere()
            for job in self._jobs:
                self._read(job.progress)

    def _look_elsewhere(self) -> None:
        """Note what other commands do with the cells that this one does not run."""
        for item in list(self._open):
            item.holder = who_runs(item.cell)
            item.status = "waiting" if item.holder is None else "elsewhere"
            self._read(item)
            _note_end(item, self._metric)
            if not item.is_open:
                self._open.remove(item)

    def _read(self, item: CellProgress) -> None:
        """Read how far a cell is, if its metrics have grown."""
        run = RunFolder(item.cell.run_dir)
        size = run.log_size()
        if size != self._sizes.get(item.cell.name, 0):
            self._sizes[item.cell.name] = size
            item.epoch, item.value = latest_value(run, self._metric)

    def stop(self) -> None:
        """Ask every running cell, once, to save its state and to end."""
        if not self._is_stopping:
            self._is_stopping = self._begins_none = True
            for job in self._jobs:
                # Not SIGINT: while Python starts, that is a traceback in the log.
                job.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End what still runs."""
        for job in self._jobs:
            job.process.kill()
            job.process.wait()
            job.claim.close()


def _start(
    item: CellProgress, share: Share, claimed: contextlib.ExitStack, accept_changed_data: bool
) -> _Job:
    cell = item.cell
    cell.log.parent.mkdir(parents=True, exist_ok=True)
    with open(cell.log, "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "gnpcli.tables.worker"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env={**os.environ, **share.environment},
            start_new_session=True,  # Ctrl-C comes to this process alone, which passes it on
        )
        log_start = log.tell()
    task = {
        "config": cell.config.model_dump(mode="json"),
        "how_computed": how_computed(cell.config),
        "run_dir": str(cell.run_dir),
        "cpus": share.cpus,
        "accept_changed_data": accept_changed_data,
    }
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it is dead already, which `_settle` will find
        process.stdin.write(json.dumps(task).encode() + b"\n")
        # It stays open: its end tells the worker that nobody waits for it any more.
        process.stdin.flush()
    item.status = "running"
    return _Job(item, share, claimed.pop_all(), process, log_start)


def _is_due(last: float) -> bool:
    return time.monotonic() - last >= LOOK_EVERY_S


def _note_end(item: CellProgress, metric: Metric) -> None:
    """Note the end that another command has brought a cell to, if it has.

    A cell that diverges is not tried by each of them.
    """
    run = RunFolder(item.cell.run_dir)
    summary = run.summary()
    if summary["status"] == "finished":
        item.status, item.value = "finished", final_value(run, metric)
    elif summary["status"] == "diverged" and not item.had_diverged:
        item.status, item.problem = "failed", summary.get("error", "it diverged elsewhere")


def _refuse_another(item: CellProgress) -> None:
    """Note that a cell cannot be gone on with where its folder holds another configuration."""
    try:
        check_folders([item.cell])
    except ConfigError as error:
        item.status, item.problem = "failed", str(error)


def _settle(job: _Job, metric: Metric) -> None:
    """Note how the process of a cell has ended."""
    item, code = job.progress, job.process.returncode
    run = RunFolder(item.cell.run_dir)
    assert job.process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        job.process.stdin.close()
    if code == 0 and run.summary()["status"] == "finished":
        item.status, item.value = "finished", final_value(run, metric)
    elif code in _STOPPED:
        item.status = "stopped"
    else:
        item.status, item.problem = "failed", _why(code, item.cell.log, job.log_start)
    job.claim.close()


def _why(code: int, log: Path, start: int) -> str:
    """Return why a process failed: the signal, its last error, or the last line that it printed."""
    if code < 0:
        hint = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{hint}"
    lines = log.read_bytes()[start:].decode(errors="replace").splitlines()
    said = [line.strip() for line in lines if line.strip()]
    errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
    if errors:
        return errors[-1]
    last = said[-1] if said else f"exit status {code}"
    return f"{last} (see {log})"
