"""Runs the cells of a table, each in a process of its own: how one ends is no matter to the others."""

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

from gnpcli.devices.process import stop_signals
from gnpcli.errors import Interrupted
from gnpcli.runs.folder import RunFolder
from gnpcli.tables.cells import Cell, State
from gnpcli.tables.shares import Share
from gnpcli.tables.spec import Metric
from gnpcli.tables.values import final_value, latest_value

POLL_S = 0.2
LOOK_EVERY_S = 2.0
"""Seconds between two looks into the metrics of a running cell."""

Status = Literal["waiting", "running", "kept", "finished", "failed", "stopped"]


@dataclass
class Progress:
    """Where a cell stands."""

    cell: Cell
    status: Status = "waiting"
    epoch: float | None = None
    value: float | None = None
    """Of the metric: the latest while running, else the final one."""
    problem: str = ""
    """Why it failed, in a line."""

    @property
    def share(self) -> float:
        """Of the epochs that are done, 0 to 1."""
        if self.status in ("kept", "finished"):
            return 1.0
        return min((self.epoch or 0.0) / self.cell.config.train.epochs, 1.0)


@dataclass
class _Job:
    progress: Progress
    share: Share
    process: subprocess.Popen[bytes]
    log_start: int
    looked: float = 0.0
    seen: int = 0


def run_cells(
    cells: Sequence[Cell],
    states: dict[str, State],
    metric: Metric,
    shares: Sequence[Share],
    show: Callable[[Sequence[Progress]], None],
) -> list[Progress]:
    """Bring every cell to its end that is not there yet, as many at a time as there are `shares`.

    Args:
        cells: In the order in which to run them.
        states: How far they are, from `gnpcli.tables.cells.check_folders`.
        metric: What is told of running cells.
        shares: From `gnpcli.tables.shares.shares`.
        show: Told where all cells stand, a few times a second.

    Returns:
        Where each cell stands at the end: kept, finished or failed.

    Raises:
        Interrupted: After SIGINT or SIGTERM, when every running cell has saved its state.
    """
    progress = [Progress(cell) for cell in cells]
    for item in progress:
        if states[item.cell.name] == "finished":
            item.status, item.value = "kept", final_value(RunFolder(item.cell.run_dir), metric)
        elif states[item.cell.name] == "begun":
            item.epoch, item.value = latest_value(RunFolder(item.cell.run_dir), metric)
    queue = deque(item for item in progress if item.status == "waiting")
    free, jobs = deque(shares), list[_Job]()
    told = False
    with stop_signals() as received:
        try:
            while jobs or (queue and not received):
                while queue and free and not received:
                    jobs.append(_start(queue.popleft(), free.popleft()))
                if received and not told:
                    told = True
                    for job in jobs:
                        job.process.send_signal(signal.SIGINT)
                for job in list(jobs):
                    if job.process.poll() is None:
                        _look(job, metric)
                        continue
                    _settle(job, metric)
                    jobs.remove(job)
                    free.append(job.share)
                show(progress)
                time.sleep(POLL_S)
            show(progress)
        finally:
            for job in jobs:  # a second signal: what was saved is saved
                job.process.kill()
                job.process.wait()
    if received:
        done = sum(item.status in ("kept", "finished") for item in progress)
        raise Interrupted(
            f"stopped by {received[0].name} with {done} of {len(cells)} cells finished, the others "
            "saved; "
            "the same command goes on",
            received[0],
        )
    return progress


def _start(item: Progress, share: Share) -> _Job:
    cell = item.cell
    cell.log.parent.mkdir(parents=True, exist_ok=True)
    with open(
        cell.log, "ab"
    ) as log:  # closed here, so that the lock the worker takes on it is the worker's alone
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
        "run_dir": str(cell.run_dir),
        "cpus": share.cpus,
    }
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it is dead already, which `_settle` will find
        process.stdin.write(json.dumps(task).encode() + b"\n")
        process.stdin.flush()  # and left open: its end tells the worker that nobody waits for it any more
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
    item, status = job.progress, job.process.returncode
    assert job.process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        job.process.stdin.close()
    if status == 0 and RunFolder(item.cell.run_dir).summary()["status"] == "finished":
        item.status, item.value = "finished", final_value(RunFolder(item.cell.run_dir), metric)
    elif status in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        item.status = "stopped"
    else:
        item.status, item.problem = "failed", _why(status, item.cell.log, job.log_start)


def _why(status: int, log: Path, start: int) -> str:
    if status < 0:
        hint = " (out of memory?)" if -status == signal.SIGKILL else ""
        return f"killed by {signal.Signals(-status).name}{hint}"
    lines = log.read_bytes()[start:].decode(errors="replace").splitlines()
    said = [line for line in lines if line.strip()]
    errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
    if errors:
        return errors[-1]
    return f"{said[-1].strip() if said else f'exit status {status}'} (see {log})"
