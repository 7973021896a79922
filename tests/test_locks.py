"""A folder belongs to one process: locks, leases, and what a killed process leaves."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gnpcli.errors import ConfigError
from gnpcli.files import write_atomically
from gnpcli.locks import (
    LEASE_FILE,
    LOCK_FILE,
    LOCK_FILES,
    FolderExists,
    FolderInUse,
    FolderLock,
    LockLost,
    flock,
    lease,
)
from gnpcli.recipes.presets import resolve
from gnpcli.runs.folder import RunFolder, claimed_run
from tests.conftest import Gnp, fails

NO_FLOCK = [errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS]

HOLD = """
import sys, time
from pathlib import Path
from gnpcli import locks
from gnpcli.locks import flock
flock.HAS_FLOCK = sys.argv[2] == "flock"
with locks.FolderLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
CONTEND = """
import sys
from pathlib import Path
from gnpcli import locks
from gnpcli.locks import flock
flock.HAS_FLOCK = sys.argv[2] == "flock"
try:
    with locks.FolderLock(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
except locks.FolderInUse as error:
    print("refused", error.holder and error.holder.pid, flush=True)
"""


@pytest.fixture(params=["flock", "lease"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test with both kinds of lock."""
    monkeypatch.setattr(flock, "HAS_FLOCK", request.param == "flock")
    return str(request.param)


def start(code: str, folder: Path, kind: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder), kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_who_comes_second_is_told_who_holds_it(tmp_path, kind):
    with FolderLock(tmp_path) as lock:
        with pytest.raises(FolderInUse, match=f"process {os.getpid()} on .* this one") as caught:
            FolderLock(tmp_path).__enter__()
        holder = caught.value.holder
        assert holder is not None
        assert (holder.host, holder.pid) == (socket.gethostname(), os.getpid())
        lock.check()
    assert list(tmp_path.iterdir()) == []
    with FolderLock(tmp_path):
        pass


def test_a_killed_holder_blocks_nobody(tmp_path, kind):
    process = start(HOLD, tmp_path, kind)
    assert line(process) == "held"
    with pytest.raises(FolderInUse, match=f"process {process.pid} "):
        FolderLock(tmp_path).__enter__()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {LOCK_FILE if kind == "flock" else LEASE_FILE}
    with FolderLock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("found", ["nothing", "stale"])
def test_of_many_at_once_one_holds_it(tmp_path, kind, found):
    if found == "stale":
        abandon(tmp_path / LEASE_FILE, age_s=lease.STALE_S + 5)
    processes = [start(CONTEND, tmp_path, kind) for _ in range(5)]
    said = [line(process) for process in processes]
    assert sorted(word.split()[0] for word in said) == ["held", *["refused"] * 4]
    winner = processes[said.index("held")]
    assert set(said) == {"held", f"refused {winner.pid}"}
    for process in processes:
        process.communicate()


def test_a_lock_that_waits_is_told_for_whom_and_gets_it(tmp_path, kind):
    process = start(HOLD, tmp_path, kind)
    assert line(process) == "held"
    said: list[FolderInUse] = []

    def on_busy(error: FolderInUse) -> None:
        said.append(error)
        process.kill()
        process.communicate()

    with FolderLock(tmp_path, on_busy=on_busy):
        pass
    (error,) = said
    assert error.holder is not None
    assert error.holder.pid == process.pid


def abandon(path: Path, *, age_s: float, **fields: object) -> None:
    """Write a lease as a process of another machine leaves it."""
    holder = {"host": "elsewhere", "pid": 1, "command": "gnp train", "since": "2020-01-01"}
    path.write_text(json.dumps({**holder, "pid_space": "", "token": "t", **fields}))
    then = time.time() - age_s
    os.utime(path, (then, then))


@pytest.mark.parametrize("number", NO_FLOCK)
def test_a_file_system_without_flock_takes_a_lease(tmp_path, monkeypatch, number):
    def unsupported(handle: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", unsupported)
    with FolderLock(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [LEASE_FILE]
        with pytest.raises(FolderInUse, match=f"process {os.getpid()} "):
            FolderLock(tmp_path).__enter__()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("age_s", "content", "is_free"),
    [
        (lease.STALE_S + 5, None, True),
        (lease.STALE_S - 5, None, False),
        (lease.STALE_S + 5, b"", True),
        (lease.STALE_S - 5, b"", False),
        (lease.STALE_S - 5, b"\xff\x00[[[", False),
        (lease.STALE_S + 5, b'{"host": 1e999, "pid": 1e999}', True),
    ],
)
def test_a_lease_of_another_machine_holds_until_it_is_stale(
    tmp_path, monkeypatch, age_s, content, is_free
):
    monkeypatch.setattr(flock, "HAS_FLOCK", False)
    abandon(tmp_path / LEASE_FILE, age_s=age_s)
    if content is not None:
        (tmp_path / LEASE_FILE).write_bytes(content)
        os.utime(tmp_path / LEASE_FILE, (time.time() - age_s,) * 2)
    if is_free:
        with FolderLock(tmp_path), pytest.raises(FolderInUse, match=f"process {os.getpid()} "):
            FolderLock(tmp_path).__enter__()
        assert list(tmp_path.iterdir()) == []
    else:
        who = "process 1 on elsewhere" if content is None else "another process"
        with pytest.raises(FolderInUse, match=f"{who}.*wait until that ends"):
            FolderLock(tmp_path).__enter__()


def test_a_lease_is_renewed_and_its_loss_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(flock, "HAS_FLOCK", False)
    monkeypatch.setattr(lease, "BEAT_S", 0.01)
    path = tmp_path / LEASE_FILE
    with FolderLock(tmp_path) as lock:
        os.utime(path, (0, 0))
        wait_for(lambda: path.stat().st_mtime > 0)
        lock.check()
        abandon(path, age_s=0)  # another has taken it over
        wait_for(lambda: lock._grip is not None and lock._grip.is_lost)
        with pytest.raises(LockLost, match="taken over by another process"):
            lock.check()
    assert path.exists()  # it is not ours to remove


def test_a_process_that_stood_still_notices_the_loss_before_it_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(flock, "HAS_FLOCK", False)
    monkeypatch.setattr(lease, "BEAT_S", 1000)  # no thread has come to it since
    monkeypatch.setattr(lease, "STALE_S", 0.1)
    with FolderLock(tmp_path) as lock:
        time.sleep(0.2)
        lock.check()  # it stood still, and nobody has taken the folder over
        time.sleep(0.2)
        with FolderLock(tmp_path), pytest.raises(LockLost, match="taken over by another process"):
            lock.check()


def wait_for(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_control_characters_of_a_lock_file_reach_no_terminal(tmp_path, monkeypatch):
    monkeypatch.setattr(flock, "HAS_FLOCK", False)
    abandon(tmp_path / LEASE_FILE, age_s=0, command="\x1b[2Jevil" + "x" * 10_000)
    with pytest.raises(FolderInUse) as caught:
        FolderLock(tmp_path).__enter__()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500 + len(str(tmp_path))


def test_a_folder_that_was_made_goes_again_where_it_stays_empty(tmp_path, kind):
    with FolderLock(tmp_path / "a" / "b", making="if missing"):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []
    with FolderLock(tmp_path / "a" / "b", making="always"):
        (tmp_path / "a" / "b" / "kept").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["kept"]
    with pytest.raises(FolderExists):
        FolderLock(tmp_path / "a" / "b", making="always").__enter__()
    with pytest.raises(FileNotFoundError):
        FolderLock(tmp_path / "c").__enter__()
    (tmp_path / "mine").mkdir()
    with FolderLock(tmp_path / "mine", making="if missing"):
        pass
    assert (tmp_path / "mine").is_dir()


LEFT = [".config.yaml.tmp", ".config.yaml.0123456789ab.tmp", ".metrics.jsonl.77.tmp", *LOCK_FILES]


@pytest.mark.parametrize("name", LEFT)
def test_what_a_killed_start_leaves_blocks_no_start(tmp_path, name):
    config = resolve(None, [])
    (tmp_path / name).touch()
    os.utime(tmp_path / name, (0, 0))
    with claimed_run(config, tmp_path) as run:
        run.check_free(config)
        run.create(config)
    assert {path.name for path in tmp_path.iterdir()} - {LEASE_FILE} == {"config.yaml", "run.json"}


@pytest.mark.parametrize("name", [".notes.tmp", "config.yaml.tmp", "tmp", ".config.yaml"])
def test_what_others_left_stays_and_is_no_free_folder(tmp_path, name):
    (tmp_path / name).touch()
    with (
        claimed_run(resolve(None, []), tmp_path) as run,
        pytest.raises(ConfigError, match="is not empty and is not a run folder"),
    ):
        run.check_free(resolve(None, []))
    assert (tmp_path / name).exists()


def test_old_temporary_files_of_a_writer_are_removed_by_the_next(tmp_path):
    path = tmp_path / "table.md"
    for name in (".table.md.tmp", ".table.md.ab.tmp", ".other.md.ab.tmp"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / ".table.md.cd.tmp").touch()  # somebody may be writing it
    write_atomically(path, "text")
    left = {found.name for found in tmp_path.iterdir()}
    assert left == {"table.md", ".other.md.ab.tmp", ".table.md.cd.tmp"}


SMALL = ["-q", "--set", "model.name=tests.small:small", "--set", "data.batch_size=512"]


def test_a_run_is_trained_by_one_process_and_the_other_is_refused(gnp: Gnp, tmp_path: Path):
    folder = tmp_path / "run"
    with RunFolder(folder).claimed("if missing"):
        fails(gnp("train", *SMALL, "--run-dir", "run"), f"is in use by process {os.getpid()} on ")
        assert [path.name for path in folder.iterdir()] == [LOCK_FILE]
    assert not folder.exists()
    done = gnp("train", *SMALL, "--run-dir", "run", "--max-steps", "1")
    assert done.returncode == 0, done.stderr
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with RunFolder(folder).claimed():
        fails(gnp("resume", "run"), f"is in use by process {os.getpid()} on ")
        fails(gnp("train", *SMALL, "--run-dir", "run"), f"is in use by process {os.getpid()} on ")
        assert gnp("eval", "run").returncode == 0  # who reads need not ask
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        (["--dataset", "folder:nowhere"], []),
        (["--set", "data.validation_fraction=0.0001"], ["--run-dir", "a/b/run"]),
    ],
)
def test_a_start_that_fails_leaves_no_folder(
    gnp: Gnp, tmp_path: Path, arguments: list[str], place: list[str]
):
    fails(gnp("train", *SMALL, *arguments, *place))
    assert list(tmp_path.iterdir()) == []
