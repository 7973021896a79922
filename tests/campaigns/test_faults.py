"""The library that counts file-system events: each is seen, and one can kill or fail."""

from __future__ import annotations

import errno
import itertools
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.campaigns.campaign import Campaign, Case, Failed, run, sound
from tests.campaigns.faults import Fault, build
from tests.commands import Completed

PROGRAM = """
import os, shutil, sys
folder = sys.argv[1]
os.mkdir(f"{folder}/a")
with open(f"{folder}/a/file", "w") as file:
    file.write("0123456789")
    file.flush()
    os.fsync(file.fileno())
os.rename(f"{folder}/a/file", f"{folder}/a/other")
open(f"{folder}/a/other").read()
shutil.rmtree(f"{folder}/a")
open(f"{folder}-beside", "w").close()
"""
EVENTS = ("mkdir /a", "open /a/file", "write /a/file", "fsync /a/file", "rename /a/other")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = build(tmp_path_factory.mktemp("faults"))
    if built is None:
        pytest.skip("it needs Linux and a C compiler")
    return built


def go(library: Path, fault: Fault) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-S", "-c", PROGRAM, str(fault.under)],
        env={**os.environ, **fault.environment(), "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
    )


def test_every_event_below_the_folder_is_counted(library, tmp_path):
    log = tmp_path / "log"
    folder = tmp_path / "folder"
    folder.mkdir()
    assert go(library, Fault(folder, 0, log=log)).returncode == 0
    lines = [line.split(" ", 1)[1] for line in log.read_text().splitlines()]
    assert lines[:5] == [*EVENTS]
    assert len(lines) == 7  # the two of rmtree


@pytest.mark.parametrize(("at", "left"), [(1, ""), (3, ""), (4, "0123456789")])
def test_a_kill_is_in_the_place_of_the_event(library, tmp_path, at, left):
    assert go(library, Fault(tmp_path, at)).returncode == -signal.SIGKILL
    file = tmp_path / "a" / "file"
    assert (file.read_text() if file.exists() else "") == left


def test_a_torn_write_leaves_its_first_half(library, tmp_path):
    assert go(library, Fault(tmp_path, 3, "torn")).returncode == -signal.SIGKILL
    assert (tmp_path / "a" / "file").read_text() == "01234"


def test_an_event_fails_with_an_errno(library, tmp_path):
    done = go(library, Fault(tmp_path, 3, errno.ENOSPC))
    assert "No space left on device" in done.stderr
    assert done.returncode == 1


def test_reading_is_counted_apart(library, tmp_path):
    assert "Input/output error" in go(library, Fault(tmp_path, 1, errno.EIO, kind="read")).stderr
    assert (tmp_path / "a" / "other").exists()


class FakeLab:
    """Gives folders, and runs nothing."""

    def __init__(self, folder: Path):
        self.folder, self.numbers = folder, itertools.count()

    def new_folder(self) -> Path:
        made = self.folder / str(next(self.numbers))
        made.mkdir()
        return made


def test_a_campaign_counts_what_held_and_keeps_what_did_not(tmp_path):
    def case(number: int) -> Case:
        def attempt(folder: Path) -> str:
            (folder / "file").write_text(str(number))
            if number == 7:
                raise Failed("seven")
            if number == 8:
                raise OSError("eight")
            return "odd" if number % 2 else "even"

        return Case(f"number {number}", attempt)

    campaign = Campaign("c", "", lambda lab, numbers: [case(number) for number in range(10)], 3)
    lab = FakeLab(tmp_path)
    report = run(campaign, lab, size="all", keep=tmp_path / "kept")  # type: ignore[arg-type]
    assert report.held == {"odd": 4, "even": 4}
    assert report.failures == {"number 7": "seven", "number 8": "OSError: eight"}
    assert (tmp_path / "kept" / "number-7" / "file").read_text() == "7"
    assert run(campaign, lab, size="small").cases == 3  # type: ignore[arg-type]
    assert run(campaign, lab, size="all", only="r 4").held == {"even": 1}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "error", "holds"),
    [
        (0, "", True),
        (0, "warning: x\n", True),
        (1, "error: x\n", True),
        (1, "", False),
        (1, "error: x\nerror: y\n", False),
        (2, "Usage: gnp\n", True),
        (-9, "", False),
        (1, "Traceback (most recent call last):\nerror: x\n", False),
        (0, "/lib/x.py:3: UserWarning: y\n", False),
        (1, "error: \x1b[31mred\n", False),
    ],
)
def test_a_command_is_sound_or_not(status, error, holds):
    done = Completed(["x"], status, "", error)
    if holds:
        assert sound(done) is done
    else:
        with pytest.raises(Failed):
            sound(done)


def test_odd_inputs_are_those_of_their_seed():
    from tests.campaigns import odd

    def some(seed: int) -> list[object]:
        numbers = random.Random(seed)
        tree = [odd.tree("a: {b: [1, 2], c: x}\nd: 3\n", numbers) for _ in range(20)]
        return [*tree, *(odd.scramble(b"0123456789", numbers) for _ in range(20))]

    assert some(0) == some(0)
    assert some(0) != some(1)
