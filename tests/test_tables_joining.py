"""Commands that divide the cells of a table: claims, who is known, and two of them for real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gnpcli import __version__
from gnpcli.errors import ConfigError
from gnpcli.locks import LEASE_FILE, LOCK_FILE, flock
from gnpcli.runs.folder import RunFolder
from gnpcli.tables.cells import Cell, make_cells
from gnpcli.tables.claims import claim, who_runs
from gnpcli.tables.joining import WORKERS, at_work
from gnpcli.tables.spec import Changes
from tests.conftest import Gnp, fails
from tests.tables import TINY, children, command, has_step, records, wait_for, write

AT_WORK = """
import sys
from pathlib import Path
from gnpcli.tables.cells import make_cells
from gnpcli.tables.joining import at_work
from gnpcli.tables.spec import Changes, load_table
table = load_table(sys.argv[1])
cells = make_cells(table, ["nano"], ["adam", "zero"], [0, 1], Changes(), Path("out"))
with at_work(Path("out"), cells, join=False):
    print("there", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["flock", "lease"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test with both kinds of lock."""
    monkeypatch.setattr(flock, "HAS_FLOCK", request.param == "flock")
    return str(request.param)


def some_cells(
    folder: Path,
    *,
    seeds: tuple[int, ...] = (0, 1),
    columns: str = "adam zero",
    epochs: int = 16,
    devices: int = 1,
) -> list[Cell]:
    """The cells of a command in `folder`."""
    changes = Changes(epochs=epochs, assignments=(f"mesh.devices={devices}",))
    return make_cells(write(folder), ["nano"], columns.split(), seeds, changes, folder / "out")


def test_a_cell_is_claimed_by_one(tmp_path: Path, kind: str):
    cell, other = some_cells(tmp_path, columns="adam")
    claimed = claim(cell)
    assert claimed is not None
    with claimed:
        assert claim(cell) is None
        holder = who_runs(cell)
        assert holder is not None
        assert holder.pid == os.getpid()
        assert who_runs(other) is None
    assert who_runs(cell) is None
    assert not (tmp_path / "out").exists()
    again = claim(cell)
    assert again is not None
    again.close()


def test_the_claim_that_a_killed_command_left_names_nobody(tmp_path: Path, kind: str):
    cell, _ = some_cells(tmp_path, columns="adam")
    claimed = claim(cell)
    assert claimed is not None
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], **TEXT)
    path = cell.claim / (LOCK_FILE if kind == "flock" else LEASE_FILE)
    holder = {**json.loads(path.read_text()), "pid": int(ended.stdout)}
    path.write_text(json.dumps(holder))
    assert who_runs(cell) is None
    path.write_text(json.dumps({**holder, "host": "elsewhere"}))  # whose processes nobody here sees
    found = who_runs(cell)
    assert found is not None
    assert (found.host, found.pid) == ("elsewhere", int(ended.stdout))
    claimed.close()


TEXT: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True}


def test_who_is_at_work_is_joined_by_the_same_command_alone(tmp_path: Path, kind: str):
    out = tmp_path / "out"
    with at_work(out, some_cells(tmp_path), join=False):
        with (
            pytest.raises(ConfigError, match=r"in use by process \d+ on .* by --join"),
            at_work(out, some_cells(tmp_path), join=False),
        ):
            pass
        for others, told in (
            (some_cells(tmp_path, seeds=(1, 2)), r"something else \(seeds: 0,1 -> 1,2\): "),
            (some_cells(tmp_path, columns="zero"), r"\(columns: adam,zero -> zero\)"),
            (some_cells(tmp_path, epochs=9), r"nano adam: .*: 16 -> 9|nano adam: gr.warmup"),
        ):
            with pytest.raises(ConfigError, match=told), at_work(out, others, join=True):
                pass
        with (
            at_work(out, some_cells(tmp_path), join=True),
            at_work(out, some_cells(tmp_path, devices=2), join=True),
        ):
            assert len([*(out / WORKERS).iterdir()]) == 3
    assert not out.exists()
    with at_work(out, some_cells(tmp_path, seeds=(5,)), join=False):
        pass


def test_a_command_that_was_killed_is_forgotten(tmp_path: Path):
    write(tmp_path)
    code = [sys.executable, "-c", AT_WORK, "small.yaml"]
    process = subprocess.Popen(code, cwd=tmp_path, stdin=subprocess.PIPE, **TEXT)
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=f"process {process.pid} "):
        at_work(out, some_cells(tmp_path), join=False).__enter__()
    process.kill()
    process.communicate()
    assert len([*(out / WORKERS).iterdir()]) == 1
    with at_work(out, some_cells(tmp_path, seeds=(7,)), join=False):
        assert len([*(out / WORKERS).iterdir()]) == 1
    assert [*out.iterdir()] == []


@pytest.mark.parametrize(
    "change", [{"rows": 1}, {"cells": []}, {"cells": {"nano adam": 1}}, {"seeds": None}, None]
)
def test_a_record_of_work_that_cannot_be_read_hinders_nobody(tmp_path: Path, change: Any):
    out = tmp_path / "out"
    with at_work(out, some_cells(tmp_path), join=False):
        (record,) = out.glob(f"{WORKERS}/*/work.json")
        odd = [1] if change is None else json.loads(record.read_text()) | change
        record.write_text(json.dumps(odd))
        with at_work(out, some_cells(tmp_path, seeds=(7,)), join=True):
            pass


@pytest.mark.parametrize("version", [["0.1"], None], ids=["another", "one that did not say"])
def test_a_command_of_another_version_is_not_joined(tmp_path: Path, version: Any):
    out = tmp_path / "out"
    with at_work(out, some_cells(tmp_path), join=False):
        (record,) = out.glob(f"{WORKERS}/*/work.json")
        work = json.loads(record.read_text()) | {"version": version}
        record.write_text(json.dumps({key: value for key, value in work.items() if value}))
        told = rf"\(version: (0.1|an older one) -> {__version__}\)"
        with pytest.raises(ConfigError, match=told):
            at_work(out, some_cells(tmp_path), join=True).__enter__()


def test_there_is_nothing_to_join_where_nothing_is_run(gnp: Gnp, tmp_path: Path):
    done = gnp("reproduce-table", "adam-vs-gr", "--render", "--join")
    assert done.returncode == 2
    assert "nothing to run with --render" in done.stderr
    assert list(tmp_path.iterdir()) == []


# --- for real

ANOTHER_MACHINE = """
import os, socket
from gnpcli.locks import flock, lease
flock.HAS_FLOCK = False
lease.BEAT_S, lease.STALE_S = 0.5, 5.0
socket.gethostname = lambda: os.environ["MACHINE"]
"""
"""What Python runs as it starts: a file system without flock, on a machine of another name."""


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of a single command."""
    folder = tmp_path_factory.mktemp("table")
    (folder / "tiny.yaml").write_text(TINY)
    subprocess.run(command("tiny.yaml", "--out", "out", "--quiet"), cwd=folder, check=True)
    return folder / "out"


class Joiners:
    """Commands that share a folder, each on a machine of its own as far as they can tell."""

    def __init__(self, folder: Path, kind: str):
        self._folder = folder
        (folder / "tiny.yaml").write_text(TINY)
        self._path = os.environ.get("PYTHONPATH", "")
        if kind == "lease":
            (folder / "site").mkdir()
            (folder / "site" / "sitecustomize.py").write_text(ANOTHER_MACHINE)
            self._path = f"{folder / 'site'}{os.pathsep}{self._path}"
        self._started: list[subprocess.Popen[str]] = []

    def start(self, machine: str, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command("tiny.yaml", "--out", "out", "--join", *arguments),
            cwd=self._folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": self._path, "MACHINE": machine},
        )
        self._started.append(process)
        return process

    def end(self) -> None:
        """End those that still run, as after a test that failed."""
        for process in self._started:
            for pid in (*children(process), process.pid) if process.poll() is None else ():
                os.kill(pid, signal.SIGKILL)
            process.communicate()


@pytest.fixture(params=["flock", "lease"])
def joiners(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Start joiners whose file system has flock, or has none."""
    joiners = Joiners(tmp_path, request.param)
    yield joiners
    joiners.end()


def starts(out: Path) -> dict[str, list[int]]:
    """The steps at which the sessions of each cell began."""
    return {
        f"{folder.parent.name} {folder.name}": [
            session["start_step"] for session in RunFolder(folder).sessions()
        ]
        for folder in sorted(out.glob("cells/*/*/seed?"))
    }


@pytest.mark.slow
def test_a_joiner_takes_over_the_cell_of_one_that_is_killed(
    whole: Path, tmp_path: Path, joiners: Joiners
):
    out = tmp_path / "out"
    first = out / "cells" / "nano" / "adam" / "seed0"
    victim = joiners.start("alpha")
    wait_for(lambda: bool(RunFolder(first).checkpoint_sizes()), victim)
    other = joiners.start("beta", "--json")
    for pid in (victim.pid, *children(victim)):  # as its machine ends
        os.kill(pid, signal.SIGKILL)
    shown, told = other.communicate(timeout=600)
    assert other.returncode == 0, told
    assert records(out) == records(whole)
    begun = starts(out)
    resumed = begun.pop("adam seed0")
    assert resumed[0] == 0
    assert resumed[1] >= 1
    assert len(resumed) == 2
    assert begun == {"adam seed1": [0], "zero seed0": [0], "zero seed1": [0]}
    ours, theirs = json.loads(shown), json.loads((whole / "table.json").read_text())
    assert ours["comparisons"] == theirs["comparisons"]
    assert [cell["mean"] for cell in ours["cells"]] == [cell["mean"] for cell in theirs["cells"]]
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}


@pytest.mark.slow
def test_joiners_divide_the_cells_and_each_tells_the_whole_table(whole: Path, tmp_path: Path):
    joiners, out = Joiners(tmp_path, "flock"), tmp_path / "out"
    processes = [joiners.start(machine) for machine in ("alpha", "beta")]
    both = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], both
    assert records(out) == records(whole)
    assert [*starts(out).values()] == [[0]] * 4
    assert both[0][0] == both[1][0]
    for process, (_, told) in zip(reversed(processes), both, strict=True):
        assert f" pid {process.pid}\n" in told  # of the other one
        assert "(4 of 4 cells)" in told
    ran = [told.count(": running, ") for _, told in both]
    assert sum(ran) == 4
    assert min(ran) >= 1


@pytest.mark.slow
def test_ctrl_c_of_a_joiner_saves_its_cell_and_leaves_the_others_alone(whole: Path, tmp_path: Path):
    joiners, out = Joiners(tmp_path, "flock"), tmp_path / "out"
    folder = out / "cells" / "nano"
    first = joiners.start("alpha", "--seeds", "0")
    wait_for(lambda: has_step(folder / "adam" / "seed0", 1), first)
    other = joiners.start("beta", "--seeds", "0")
    wait_for(lambda: (folder / "zero" / "seed0").exists(), other)
    first.send_signal(signal.SIGINT)
    _, told = first.communicate(timeout=300)
    assert first.returncode == 128 + signal.SIGINT, told
    _, told = other.communicate(timeout=600)
    assert other.returncode == 0, told
    whole_records = records(whole)
    assert records(out) == {name: whole_records[name] for name in records(out)}
    assert starts(out)["zero seed0"] == [0]


@pytest.mark.slow
def test_a_joiner_with_other_settings_is_refused(tmp_path: Path, gnp: Gnp):
    joiners = Joiners(tmp_path, "flock")
    first = joiners.start("alpha")
    wait_for(lambda: (tmp_path / "out" / WORKERS).exists(), first)
    begun = ("reproduce-table", "tiny.yaml", "--out", "out")
    fails(gnp(*begun), f"out is in use by process {first.pid} on ", "--join")
    done = gnp(*begun, "--join", "--set", "optimizer.lr=0.5")
    fails(done, "optimizer.lr: 0.002 -> 0.5")
    fails(gnp(*begun, "--join", "--seeds", "0"), "which runs something else (seeds: 0,1 -> 0)")
    joiners.end()
