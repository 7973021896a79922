"""Signals and Ctrl-C: what collects them, and how a command that gets them ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gnpcli.devices.signals import STOP_SIGNALS, stop_signals
from tests.commands import FINDS_SMALL, PROGRAM

COMMAND = """
import signal, sys, time
from gnpcli.devices import signals
signals.GRACE_S = float(sys.argv[1])
with signals.command_signals():
{body}
print("end", flush=True)
"""
SLEEPS = """
    print("ready", flush=True)
    time.sleep(60)
"""
SWALLOWS = """
    try:
        print("ready", flush=True)
        time.sleep(60)
    except signals.Stopped:
        time.sleep(60)
"""
RAISES_ANOTHER = """
    print("ready", flush=True)
    try:
        time.sleep(60)
    except BaseException:
        raise ImportError("initialization failed") from None
"""
COMPILES_ON = """
    import atexit
    atexit.register(print, "what a thread of XLA still needs is cleared away")
    print("ready", flush=True)
    time.sleep(60)
"""
IN_A_DEL = """
    class Slow:
        def __del__(self):
            print("ready", flush=True)
            time.sleep(1)
    slow = Slow()
    del slow
    time.sleep(60)
"""
PRINTED_BY_C = """
    import ctypes
    def called():
        print("ready", flush=True)
        time.sleep(60)
    try:
        ctypes.pythonapi.PyErr_Print.restype = None
        called()
    except signals.Stopped as error:
        sys.excepthook(type(error), error, error.__traceback__)
    time.sleep(60)
"""
IMPORTS_AN_EXTENSION = """
    import enum
    from importlib.machinery import ExtensionFileLoader
    made = enum.EnumMeta.__call__
    def make(cls, *arguments, **named):
        frame = sys._getframe()
        while frame and not isinstance(frame.f_locals.get("self"), ExtensionFileLoader):
            frame = frame.f_back
        if frame:
            enum.EnumMeta.__call__ = made
            print("ready", flush=True)
            time.sleep(0.5)
        return made(cls, *arguments, **named)
    enum.EnumMeta.__call__ = make
    import jaxlib.mlir.ir
    time.sleep(60)
"""
COLLECTS = """
    # Blocked in this thread, as though it were in code that is not Python's.
    with signals.stop_signals(lambda text: print(text, flush=True), "saving") as received:
        signal.pthread_sigmask(signal.SIG_BLOCK, signals.STOP_SIGNALS)
        print("ready", flush=True)
        time.sleep(1)
        print("in C no more", flush=True)
        while not received:
            time.sleep(0.01)
"""


def start(body: str, grace_s: float = 60) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(body=body), str(grace_s)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


ENDED = (128 + signal.SIGINT, -signal.SIGINT)
"""Of a command that Ctrl-C ended: by itself, or, where more came at its very end, by the system."""


@pytest.mark.parametrize(
    "body",
    [SLEEPS, RAISES_ANOTHER, COMPILES_ON, IN_A_DEL, PRINTED_BY_C, IMPORTS_AN_EXTENSION],
)
@pytest.mark.parametrize("times", [1, 5])
def test_ctrl_c_ends_a_command_without_a_traceback(body, times):
    process = start(body)
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    shown, told = process.communicate(timeout=60)
    assert process.returncode in ENDED
    assert shown == ""
    assert told in ("", SLOW)


SLOW = "SIGINT: stopping; Ctrl-C once more after 60 s ends at once, unsaved\n"


def test_a_command_that_does_not_stop_says_so_and_a_later_ctrl_c_ends_it():
    process = start(SWALLOWS, grace_s=0.05)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("SIGINT: stopping; Ctrl-C once more")
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGINT):
        time.sleep(0.1)
        process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert told == "ended at once\n"


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_what_is_collected_is_told_before_the_main_thread_knows(number):
    process = start(COLLECTS)
    for _ in range(5):
        process.send_signal(number)
    shown, told = process.communicate(timeout=60)
    lines = shown.splitlines()
    assert lines[0].startswith(f"{number.name}: saving; Ctrl-C once more after 60 s")
    assert lines[1:] == ["in C no more", "end"]
    assert told == ""
    assert process.returncode == 0


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_library_collects_one_and_the_next_acts_as_before(number):
    said: list[str] = []
    before = signal.getsignal(number)
    caught: list[int] = []
    signal.signal(number, lambda number, frame: caught.append(number))
    try:
        with stop_signals(said.append, "saving") as received:
            signal.raise_signal(number)
            assert (received, caught) == ([number], [])
            signal.raise_signal(number)
            assert (received, caught) == ([number], [number])
    finally:
        signal.signal(number, before)
    deadline = time.monotonic() + 30
    while not said and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(said) == 1
    assert said[0].startswith(f"{number.name}: saving")


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_what_is_ignored_from_the_start_stays_ignored(number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with stop_signals() as received:
            signal.raise_signal(number)
            assert received == []
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


TRAIN = ["train", "-q", "--set", "model.name=tests.small:small", "--epochs", "400"]


def train(folder: Path, *before: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*before, sys.executable, "-c", PROGRAM, *TRAIN, "--run-dir", "run"],
        cwd=folder,
        env={**os.environ, **FINDS_SMALL},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(folder: Path, process: subprocess.Popen[str]) -> None:
    metrics = folder / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("delay_s", [0.3, 0.7, 1.1, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0])
def test_five_times_ctrl_c_at_any_moment(tmp_path: Path, delay_s: float):
    process = train(tmp_path)
    time.sleep(delay_s)
    for _ in range(5):
        process.send_signal(signal.SIGINT)
        time.sleep(0.03)
    shown, told = process.communicate(timeout=120)
    assert process.returncode in ENDED, told
    assert shown == ""
    for sign in ("Traceback", "Exception", "KeyboardInterrupt"):
        assert sign not in told
    if "saved" in told.replace("unsaved", ""):
        assert (tmp_path / "run" / "summary.json").exists()
    elif (tmp_path / "run").exists():
        assert (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_saves_and_its_status_is_that_of_a_shell(tmp_path: Path, number: signal.Signals):
    process = train(tmp_path)
    wait_for_step(tmp_path, process)
    process.send_signal(number)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    first, last = told.splitlines()
    assert first.startswith(f"{number.name}: stopping after this step and saving; Ctrl-C")
    assert last.startswith(f"error: stopped by {number.name} after step ")


@pytest.mark.slow
def test_nohup_trains_on_after_a_hang_up(tmp_path: Path):
    process = train(tmp_path, "nohup")
    wait_for_step(tmp_path, process)
    process.send_signal(signal.SIGHUP)
    size = (tmp_path / "run" / "metrics.jsonl").stat().st_size
    deadline = time.monotonic() + 60
    while (tmp_path / "run" / "metrics.jsonl").stat().st_size == size:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM


ENDING = """
import os, signal, sys
from gnpcli.devices.signals import STOP_SIGNALS, keep_status
keep_status()
for number in STOP_SIGNALS:
    if number != signal.SIGINT:
        os.kill(os.getpid(), number)
sys.exit(75)
"""


def test_a_command_that_ends_keeps_its_status():
    assert subprocess.run([sys.executable, "-c", ENDING], timeout=60).returncode == 75
