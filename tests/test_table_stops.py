"""A table whose every process gets the signal of its job, and one whose cells have a time limit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gnpcli.engine.time_limit import JOB_END
from gnpcli.errors import TRY_AGAIN
from gnpcli.runs.folder import RunFolder
from tests.commands import FINDS_SMALL, PROGRAM
from tests.conftest import Gnp, fails

TABLE = """\
title: Tiny
purpose: One cell of many steps
preset: vit-nano-digits
set:
  model: {name: "tests.small:small"}
  train: {epochs: 100000, log_every_steps: 1}
seeds: [0]
baseline: adam
rows: {small: {}}
columns:
  adam:
    set:
      gr: {strategy: none}
"""
COMMAND = ("reproduce-table", "tiny.yaml", "--out", "out", "--quiet")


def workers(pid: int) -> list[int]:
    """Return the processes of cells that a process has started."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes()
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        if parent == pid and b"gnpcli.tables.worker" in words:
            found.append(int(folder.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
def test_a_signal_to_every_process_of_a_table_saves_its_cell(tmp_path: Path):
    (tmp_path / "tiny.yaml").write_text(TABLE)
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *COMMAND],
        cwd=tmp_path,
        env={**os.environ, **FINDS_SMALL},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    run = RunFolder(tmp_path / "out" / "cells" / "small" / "adam" / "seed0")
    deadline = time.monotonic() + 300
    while not run.log_size() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    (worker,) = workers(process.pid)
    for number in (signal.SIGUSR1, signal.SIGTERM):
        for pid in (worker, process.pid):
            os.kill(pid, number)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGUSR1, told
    summary = run.summary()
    assert summary["status"] == "interrupted"
    assert summary["step"] in run.checkpoint_sizes()


@pytest.mark.slow
def test_a_cell_that_reaches_its_time_limit_is_the_last_that_is_begun(gnp: Gnp, tmp_path: Path):
    (tmp_path / "tiny.yaml").write_text(TABLE)
    limited = (*COMMAND, "--seeds", "0,1,2", "--set", "train.time_limit=auto")
    for steps in ([1], [1, 2]):
        done = gnp(*limited, env={JOB_END: str(int(time.time()) - 60)})
        fails(
            done,
            "1 of 3 cells stopped at their time limit or by a signal, saved, not finished: "
            "small adam seed 1, small adam seed 2; the same command goes on",
            status=TRY_AGAIN,
        )
        run = RunFolder(tmp_path / "out" / "cells" / "small" / "adam" / "seed0")
        assert sorted(run.checkpoint_sizes()) == steps
        assert [path.name for path in run.path.parent.glob("seed?")] == ["seed0"]
    result = json.loads((tmp_path / "out" / "table.json").read_text())
    (cell,) = result["cells"]
    assert [(run["seed"], run["status"]) for run in cell["runs"]] == [(0, "interrupted")]
    assert "small adam seed 0: interrupted" in done.stdout
