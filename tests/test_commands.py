"""What tests start beside themselves ends as a process of its own would."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.commands import CommandServer, Started

READY = "import os, sys, time; print(os.getpid(), *sys.argv[1:], flush=True)\n"


def start(server: CommandServer, folder: Path, program: str) -> Started:
    files = {"out": folder / "out", "err": folder / "err"}
    for path in files.values():
        path.write_text("")
    return server.start(["a", "b c"], cwd=folder, env=os.environ, program=READY + program, **files)


def test_a_program_has_its_arguments_and_tells_its_status(command_server, tmp_path):
    started = start(command_server, tmp_path, "sys.exit(3)")
    assert started.wait(60) == started.poll() == started.returncode == 3
    assert (tmp_path / "out").read_text().split(" ", 1) == [str(started.pid), "a b c\n"]


def test_a_program_is_killed_and_is_no_more(command_server, tmp_path):
    started = start(command_server, tmp_path, "time.sleep(60)")
    with pytest.raises(subprocess.TimeoutExpired):
        started.wait(0.01)
    assert started.poll() is None
    started.send_signal(signal.SIGTERM)
    assert started.wait(60) == -signal.SIGTERM
    started.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(started.pid, 0)


def test_a_program_ends_like_any_other(command_server, tmp_path):
    """What it registered is called, its threads end, and what it printed is there."""
    program = (
        "import atexit, threading\n"
        "atexit.register(print, 'left')\n"
        "def late():\n    time.sleep(0.2)\n    print('late')\n"
        "threading.Thread(target=late).start()\n"
    )
    started = start(command_server, tmp_path, program)
    assert started.wait(60) == 0
    assert (tmp_path / "out").read_text().splitlines()[1:] == ["late", "left"]


@pytest.mark.parametrize(
    ("program", "status", "told"),
    [
        ("sys.exit()", 0, ""),
        ("sys.exit('no')", 1, "no\n"),
        ("raise KeyboardInterrupt", -signal.SIGINT, "KeyboardInterrupt"),
        ("0 / 0", 1, "ZeroDivisionError"),
    ],
)
def test_a_program_has_the_status_that_python_gives(
    command_server, tmp_path, program, status, told
):
    assert start(command_server, tmp_path, program).wait(60) == status
    assert told in (tmp_path / "err").read_text()
