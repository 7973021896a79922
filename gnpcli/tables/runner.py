"""Runs the cells of a table, each in a process of its own: how one ends is no matter to others."""

from __future__ import annotations

import contextlib
import json
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
from gnpcli.errors import Interrupted
from gnpcli.runs.folder import RunFolder
from gnpcli.tables.cells import Cell, CellState
from gnpcli.tables.schema import Metric
from gnpcli.tables.shares import Share
from gnpcli.tables.values import final_value, latest_value

POLL_S = 0.2
LOOK_EVERY_S = 2.0
"""Seconds between two looks into the metrics of a running cell."""

_STOPPED = [status for number in STOP_SIGNALS for status in (128 + number, -number)]
"""Statuses of a cell that was stopped: it has saved its state, or had nothing to save yet."""

CellStatus = Literal["waiting", "running", "kept", "finished", "failed", "stopped"]
"""Where a cell stands in this run of the table; ``kept`` was finished before."""


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

    @property
    def is_done(self) -> bool:
        """Whether its run is finished."""
        return self.status in ("kept", "finished")

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

    Args:
        cells: In the order in which to run them.
        states: How far they are, from `gnpcli.tables.cells.check_folders`.
        metric: What is told of running cells.
        shares: From `gnpcli.tables.shares.shares`.
        show: Told where all cells stand, a few times a second.
        tell: Told that a signal has come, at once and from another thread.
        accept_changed_data: Cells go on also on data that have changed.

    Returns:
        Where each cell stands at the end: kept, finished or failed.

    Raises:
        Interrupted: After one of `STOP_SIGNALS`, when every running cell has saved its state.
    """
    progress = [_before(cell, states[cell.name], metric) for cell in cells]
    pool = _Pool(progress, shares, metric, accept_changed_data)
    with stop_signals(tell, "stopping, every running cell saves") as received:
        try:
            while pool.is_busy:
                if received:
                    pool.stop()
                pool.start_waiting()
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
            received[0],
        )
    return progress


def _before(cell: Cell, state: CellState, metric: Metric) -> CellProgress:
    """Return where a cell stands before anything is run."""
    item, run = CellProgress(cell), RunFolder(cell.run_dir)
    if state == "finished":
        item.status, item.value = "kept", final_value(run, metric)
    elif state == "begun":
        item.epoch, item.value = latest_value(run, metric)
    return item


@dataclass
class _Job:
    """The process of a cell."""

    progress: CellProgress
    share: Share
    process: subprocess.Popen[bytes]
    log_start: int
    """Bytes of the cell's log that earlier processes wrote."""
    looked: float = 0.0
    """When its metrics were looked into, on the monotonic clock."""
    seen: int = 0
    """Bytes of its metrics then."""


class _Pool:
    """The processes of the cells that run, one for each share of the machine."""

    def __init__(
        self,
        progress: Sequence[CellProgress],
        shares: Sequence[Share],
        metric: Metric,
        accept_changed_data: bool,
    ):
        self._waiting = deque(item for item in progress if item.status == "waiting")
        self._free = deque(shares)
        self._metric = metric
        self._accept = accept_changed_data
        self._jobs: list[_Job] = []
        self._is_stopping = False

    @property
    def is_busy(self) -> bool:
        """Whether a cell runs, or will."""
        return bool(self._jobs or (self._waiting and not self._is_stopping))

    def start_waiting(self) -> None:
        """Start as many cells as there are free shares, unless the pool is stopping."""
        while self._waiting and self._free and not self._is_stopping:
            item, share = self._waiting.popleft(), self._free.popleft()
            self._jobs.append(_start(item, share, self._accept))

    def look(self) -> None:
        """Note how far the running cells are, and how those that ended did."""
        for job in list(self._jobs):
            if job.process.poll() is None:
                _look(job, self._metric)
                continue
            _settle(job, self._metric)
            self._jobs.remove(job)
            self._free.append(job.share)

    def stop(self) -> None:
        """Ask every running cell, once, to save its state and to end."""
        if not self._is_stopping:
            self._is_stopping = True
            for job in self._jobs:
                # Not SIGINT: while Python starts, that is a traceback in the log.
                job.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End what still runs."""
        for job in self._jobs:
            job.process.kill()
            job.process.wait()


def _start(item: CellProgress, share: Share, accept_changed_data: bool) -> _Job:
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
    return _Job(item, share, process, log_start)


def _look(job: _Job, metric: Metric) -> None:
    """Read how far a running cell is, if its metrics have grown."""
    if time.monotonic() - job.looked < LOOK_EVERY_S:
        return
    job.looked = time.monotonic()
    run = RunFolder(job.progress.cell.run_dir)
    size = run.log_size()
    if size != job.seen:
        job.seen = size
        job.progress.epoch, job.progress.value = latest_value(run, metric)


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
