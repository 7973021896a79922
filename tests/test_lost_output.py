"""Output that goes away ends nothing: a closed pipe, a closed terminal, a closed stream."""

from __future__ import annotations

import errno
import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from gnpcli.terminal.lasting import lasting
from tests.commands import FINDS_SMALL, PROGRAM
from tests.conftest import fails

LISTINGS = [
    ["--help"],
    ["models", "list"],
    ["data", "list", "--json"],
    *(
        pytest.param(arguments, marks=pytest.mark.slow)
        for arguments in (
            ["presets", "list"],
            ["presets", "show", "vit-s-cifar10"],
            ["tables", "list"],
            ["train", "--dry-run"],
        )
    ),
]


def gone() -> int:
    """Return a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def closed_terminal() -> int:
    outer, inner = pty.openpty()
    os.close(outer)
    return inner


def run(
    *arguments: str, out: int | None, err: int | None, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=folder,
        env={**os.environ, **FINDS_SMALL},
        stdout=subprocess.PIPE if out is None else out,
        stderr=subprocess.PIPE if err is None else err,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("arguments", LISTINGS)
def test_a_reader_that_has_seen_enough_is_no_failure(arguments):
    done = run(*arguments, out=gone(), err=None)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_failure_that_nobody_reads_keeps_its_status():
    assert run("models", "show", "nothing", out=None, err=gone()).returncode == 1
    assert run("models", "shows", out=None, err=gone()).returncode == 2


def test_a_full_disk_under_a_result_is_a_failure():
    with open("/dev/full", "w") as full:
        fails(run("models", "list", out=full.fileno(), err=None), "No space left on device")


def test_closed_streams_stay_closed_to_the_files_that_are_opened(tmp_path):
    """Else the first file that is opened takes the number of a stream, and its output."""
    code = (
        "import os, sys; from gnpcli.terminal.lasting import keep_output; keep_output()\n"
        "file = open(sys.argv[1], 'w'); print('out'); print('err', file=sys.stderr)\n"
        "os.write(1, b'out'); os.write(2, b'err'); sys.exit(file.fileno())"
    )
    shell = 'exec "$0" -c "$1" "$2" <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", shell, sys.executable, code, str(tmp_path / "file")])
    assert done.returncode > 2
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize("make", [gone, closed_terminal])
def test_what_is_written_to_nobody_is_dropped(make):
    number = make()
    with os.fdopen(number, "w") as file:
        stream = lasting(file)
        assert lasting(stream) is stream
        for _ in range(3):
            assert stream.write("text\n") == 5
            stream.flush()
        os.write(number, b"text of code that is not Python's")


def test_another_error_of_a_result_is_raised_once():
    with open("/dev/full", "w") as file:
        stream = lasting(file)
        stream.write("text")
        with pytest.raises(OSError, match="No space") as caught:
            stream.flush()
        assert caught.value.errno == errno.ENOSPC
        stream.flush()


def test_a_stream_of_pythons_own_is_as_it_is():
    stream = io.StringIO()
    assert lasting(stream) is stream


SMALL = ["--set", "model.name=tests.small:small", "--set", "data.batch_size=512"]


@pytest.mark.parametrize(
    "make", [gone, pytest.param(closed_terminal, marks=pytest.mark.slow)], ids=["pipe", "terminal"]
)
def test_a_run_outlives_who_looks_on(tmp_path, make):
    """As under ``2>&1 | head -1``, or after the terminal was closed under ``nohup``."""
    number = make()
    arguments = ["train", *SMALL, "--max-steps", "3", "--run-dir", "run"]
    done = run(*arguments, out=number, err=number, folder=tmp_path)
    os.close(number)
    assert done.returncode == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["step"]) == ("stopped", 3)
    assert (tmp_path / "run" / "checkpoints" / "3").is_dir()
