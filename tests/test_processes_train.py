"""Two real processes train one run: the numbers, the files, the signals, the failures."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gnpcli.devices.signals import STOP_SIGNALS
from gnpcli.errors import TRY_AGAIN
from tests.commands import PROGRAM
from tests.folders import put
from tests.launch import Launched, launch, wait_until

pytestmark = pytest.mark.slow

TOTAL = 44
TRAIN = (
    "train",
    *("--set", "model.name=tests.small:small", "--set", "data.batch_size=64"),
    *("--set", "optimizer.name=sgd", "--set", "gr.strategy=constant"),
    *("--set", "checkpoint.every_steps=10", "--set", "train.log_every_steps=1"),
    *("--epochs", 2),
)
"""44 steps with BatchNorm, dropout and the penalty."""

LAYOUTS: dict[str, dict[str, int]] = {
    "2x2": {"processes": 2, "devices": 2},
    "1x4": {"processes": 1, "devices": 4},
    "1x1": {"processes": 1, "devices": 1},
}

WATCHED = (
    """
import os, sys
_seen = os.open("written-by-1.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
_writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
def _watch(event, args):
    if event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.utime") or (
        event == "open" and isinstance(args[2], int) and args[2] & _writes
    ):
        os.write(_seen, f"{args[0]}\\n".encode())
sys.addaudithook(_watch)
"""
    + PROGRAM
)
"""A process that notes all that it writes, as far as Python does it."""


def trained(folder: Path, **options: Any) -> Launched:
    return launch([*TRAIN, "--run-dir", folder / "run", "--json"], folder, **options)


def log(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a run without what depends on the clock."""
    text = (folder / "run" / "metrics.jsonl").read_text()
    records = [json.loads(line) for line in text.splitlines()]
    for record in records:
        for key in ("elapsed_s", "images_per_s", "check"):
            record.pop(key, None)
    return records


def digests(folder: Path) -> dict[int, Any]:
    """Return the digests of all arrays of each save."""
    found = {}
    for path in (folder / "run" / "checkpoints").iterdir():
        if path.name.isdecimal():
            text = (path / "manifest" / "manifest").read_bytes().partition(b"\n")[2]
            found[int(path.name)] = json.loads(text)["digests"]
    return found


def assert_close(records: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    assert [record["step"] for record in records] == [record["step"] for record in others]
    for record, other in zip(records, others, strict=True):
        for key, value in record.items():
            if isinstance(value, float):
                assert value == pytest.approx(other[key], rel=1e-4, abs=1e-5), (key, record["step"])


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of two processes with two devices each."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = trained(folder, programs={1: WATCHED})
    assert json.loads(done.out(0))["status"] == "finished"
    assert (done.out(1), done.err(1)) == ("", "")
    return folder


def test_a_run_of_two_processes_is_one_run(undisturbed):
    records = log(undisturbed)
    assert [r["step"] for r in records if r["split"] == "train"] == [*range(1, TOTAL + 1)]
    names = {path.name for path in (undisturbed / "run").iterdir()}
    assert len([name for name in names if name.startswith("events.out")]) == 1
    assert names - {name for name in names if name.startswith("events.out")} == {
        *("config.yaml", "metrics.jsonl", "summary.json", "environment.json", "run.json"),
        "checkpoints",
    }
    (session,) = json.loads((undisturbed / "run" / "environment.json").read_text())["sessions"]
    assert (session["processes"], len(session["devices"])) == (2, 4)
    written = (undisturbed / "written-by-1.txt").read_text().splitlines()
    of_run = [path for path in written if path.startswith(str(undisturbed / "run"))]
    assert [path for path in of_run if ".orbax-checkpoint-tmp" not in path] == []


def test_the_same_processes_give_the_same_bits(undisturbed, tmp_path):
    trained(tmp_path)
    assert log(tmp_path) == log(undisturbed)
    assert digests(tmp_path) == digests(undisturbed)


@pytest.mark.parametrize("layout", ["1x4", "1x1"])
def test_one_process_gives_the_same_numbers(undisturbed, tmp_path, layout):
    """Beyond the first steps rounding grows: within 1e-6 is asked of the first ten."""
    trained(tmp_path, **LAYOUTS[layout])
    for record, other in zip(log(tmp_path)[:10], log(undisturbed)[:10], strict=True):
        assert record["loss"] == pytest.approx(other["loss"], rel=1e-6)
        assert record["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-6)
    assert_close(log(tmp_path)[:40], log(undisturbed)[:40])


def has_logged(folder: Path, steps: int) -> Callable[[], bool]:
    path = folder / "run" / "metrics.jsonl"
    return lambda: path.exists() and len(path.read_bytes().splitlines()) >= steps


def resume(folder: Path, **options: Any) -> Launched:
    return launch(["resume", folder / "run", "--json"], folder, **options)


SLOW = (
    """
import time
from gnpcli.engine.loop import Loop
_take = Loop._take
def _take_slowly(self, step):
    time.sleep(0.3)
    _take(self, step)
Loop._take = _take_slowly
"""
    + PROGRAM
)
"""A process that leaves time between two steps."""


@pytest.mark.parametrize("process", [0, 1])
def test_every_signal_to_one_process_stops_all_at_one_step(undisturbed, tmp_path, process):
    """One run is stopped by each of them in turn, and then goes on to the end."""
    command: list[object] = [*TRAIN, "--run-dir", tmp_path / "run"]
    steps = [0]
    for number in STOP_SIGNALS:
        with Launched(command, tmp_path, programs={0: SLOW, 1: SLOW}) as going:
            wait_until(has_logged(tmp_path, steps[-1] + 2))
            going.processes[process].send_signal(number)
            assert going.wait() == [128 + number] * 2, going.err(0) + going.err(1)
            assert going.error(0) == going.error(1)
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        steps.append(summary["step"])
        assert summary["status"] == "interrupted"
        said = f"stopped by {number.name} to process {process} after step {steps[-1]}, saved"
        assert said in going.error(0)
        is_told = f"{number.name} to process 1: stopping after step {steps[-1]}" in going.err(0)
        assert is_told == (process == 1)
        session = range(steps[-2] + 1, steps[-1] + 1)
        saved = [step for step in sorted(digests(tmp_path)) if step in session]
        assert saved == [step for step in session if step % 10 == 0 or step == steps[-1]]
        command = ["resume", tmp_path / "run"]
    assert steps == sorted({*steps})
    assert steps[-1] < TOTAL
    resume(tmp_path)
    assert_same_run(tmp_path, undisturbed)


def assert_same_run(folder: Path, other: Path) -> None:
    """Assert that a run that was stopped holds, bit for bit, what one that was not holds."""
    assert log(folder) == log(other)
    assert digests(folder)[TOTAL] == digests(other)[TOTAL]


SMALL_LIMIT = ("--time-limit", 0.001)
"""Which is over when training begins: a session takes one step, and those until all know of it."""


def test_one_command_for_every_attempt(undisturbed, tmp_path):
    """It starts a run, goes on with it after each time limit, and does nothing at its end."""
    command = [*TRAIN, "--run-dir", tmp_path / "run", "--resume", "--json"]
    steps = []
    for _ in range(2):
        with Launched([*command, *SMALL_LIMIT], tmp_path) as going:
            assert going.wait() == [TRY_AGAIN] * 2, going.err(0) + going.err(1)
            assert going.error(0) == going.error(1)
        steps.append(max(digests(tmp_path)))
        assert f"stopped by its time limit after step {steps[-1]}, saved" in going.error(0)
        assert (going.out(0), going.out(1)) == ("", "")
    assert 0 < steps[0] < steps[1] < TOTAL
    assert digests(tmp_path).keys() == {*steps}
    done = launch(command, tmp_path)
    assert json.loads(done.out(0))["status"] == "finished"
    assert done.out(1) == ""
    assert_same_run(tmp_path, undisturbed)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    again = launch(command, tmp_path)
    assert json.loads(again.out(0))["step"] == TOTAL
    assert f"is already at step {TOTAL}: nothing to do" in again.err(0)
    assert (again.out(1), again.err(1)) == ("", "")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == written
    with Launched([*command, "--seed", 3], tmp_path) as going:
        assert going.wait() == [1, 1]
        assert going.error(0) == going.error(1)
    assert "holds a run with another configuration (train.seed: 0 -> 3)" in going.error(0)


LATE = (
    """
import time
from gnpcli.engine.session import Session
_go = Session.go
def _go_late(self, *arguments):
    try:
        return _go(self, *arguments)
    finally:
        time.sleep(8)
Session.go = _go_late
"""
    + PROGRAM
)
"""A process 0 that takes longer to leave its folder than is left after a failure."""


def test_processes_that_were_stopped_end_together_with_one_status(tmp_path):
    """As under ``srun --kill-on-bad-exit=1``: who is left when the first one ends gets SIGTERM."""
    command = [*TRAIN, "--run-dir", tmp_path / "run", *SMALL_LIMIT]
    with Launched(command, tmp_path, programs={0: LATE}) as going:
        wait_until(lambda: any(process.poll() is not None for process in going.processes))
        for process in going.processes:
            process.send_signal(signal.SIGTERM)
        assert going.wait() == [TRY_AGAIN] * 2, going.err(0) + going.err(1)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "interrupted"


def test_kills_at_random_moments_cost_no_step(undisturbed, tmp_path):
    """Ten times one of the two is killed; the other ends by itself, and both are started anew.

    The last session is one of a single process.
    """
    draws = random.Random(15)
    command: list[object] = [*TRAIN, "--run-dir", tmp_path / "run"]
    for _ in range(10):
        # Who is killed before the two have met is waited for as long as that.
        with Launched(command, tmp_path, variables={"GNP_CONNECT_TIMEOUT_S": "30"}) as going:
            if draws.random() < 0.7:  # else while they start
                wait_until(partial(is_training, going))
            time.sleep(draws.uniform(0, 6))
            victim = draws.randrange(2)
            going.processes[victim].kill()
            statuses = going.wait(120)
            told = going.err(1 - victim)
        assert statuses[victim] in (-signal.SIGKILL, 0)
        assert statuses[1 - victim] in (1, -signal.SIGABRT, 0), (statuses, told)
        if (tmp_path / "run" / "config.yaml").exists():
            command = ["resume", tmp_path / "run"]
    resume(tmp_path, **LAYOUTS["1x4"])
    assert_close(log(tmp_path)[:40], log(undisturbed)[:40])
    assert [r["step"] for r in log(tmp_path) if r["split"] == "train"] == [*range(1, TOTAL + 1)]


def is_training(going: Launched) -> bool:
    return "steps  " in going.err(0) or going.processes[0].poll() is not None


LIMITED = (
    """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))
"""
    + PROGRAM
)


@pytest.mark.parametrize(("process", "room"), [(0, 10_000), (1, 500)])
def test_a_full_disk_of_one_process_ends_all_with_one_line(tmp_path, process, room):
    """Process 0 has no room for the log, process 1 none for its share of a save."""
    programs = {process: LIMITED.format(room)}
    with Launched([*TRAIN, "--run-dir", tmp_path / "run"], tmp_path, programs=programs) as going:
        assert going.wait() == [1, 1]
        assert going.error(0) == going.error(1)
    assert "File too large" in going.error(0)
    resume(tmp_path)


DAMAGED_FOR_ONE = (
    """
from gnpcli.runs.saves import Saves
_check = Saves._check
def _check_but_the_last(self, step, name, arrays, wanted):
    if step == {step}:
        raise self._damaged(step, "this process cannot read it")
    _check(self, step, name, arrays, wanted)
Saves._check = _check_but_the_last
"""
    + PROGRAM
)


def test_a_save_that_one_process_finds_damaged_is_damaged_for_all(tmp_path):
    launch([*TRAIN, "--run-dir", tmp_path / "run", "--max-steps", 25], tmp_path)
    assert sorted(digests(tmp_path)) == [10, 20, 25]
    programs = {1: DAMAGED_FOR_ONE.format(step=25)}
    done = resume(tmp_path, programs=programs)
    told = done.err(0).replace("\n", " ")
    assert "the checkpoint of step 25" in told
    assert "this process cannot read it; moved to 25.damaged" in told
    assert "from step 20" in told
    assert done.err(1) == ""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of two classes: 32 training and 10 test images each."""
    root = tmp_path_factory.mktemp("images")
    for split, count in (("train", 32), ("test", 10)):
        for label, name in enumerate(("ant", "bee")):
            for index in range(count):
                put(root / split / name / f"{index:02}.png", seed=100 * label + index)
    return root


def of_images(images: Path, folder: Path, *more: object) -> list[object]:
    return [
        "train",
        *("--dataset", f"folder:{images}", "--set", "data.stream=true", "--epochs", 2),
        *("--set", "model.name=tests.small:small", "--set", "data.batch_size=16"),
        *("--set", "optimizer.name=sgd", "--set", "gr.strategy=constant"),
        *("--set", "data.image_size=16", "--set", "data.workers=0"),
        *("--set", "train.log_every_steps=1", "--run-dir", folder / "run", *more),
    ]


def test_each_process_reads_its_rows_of_streamed_batches(images, tmp_path):
    for name, layout in LAYOUTS.items():
        launch(of_images(images, tmp_path / name), tmp_path / name, **layout)
    own = log(tmp_path / "2x2")
    assert len(own) == 8 + 2
    assert_close(own, log(tmp_path / "1x4"))
    assert_close(own, log(tmp_path / "1x1"))
    tested = [record["num_examples"] for record in own if record["split"] == "test"]
    assert tested == [20, 20]


def damaged_copy(images: Path, root: Path, *names: str) -> Path:
    for path in images.rglob("*.png"):
        target = root / path.relative_to(images)
        target.parent.mkdir(parents=True, exist_ok=True)
        whole = path.read_bytes()
        is_damaged = str(path.relative_to(images)) in names
        target.write_bytes(whole[: len(whole) // 2] if is_damaged else whole)
    return root


def test_an_image_that_one_process_cannot_read_ends_all_with_one_line(images, tmp_path):
    root = damaged_copy(images, tmp_path / "images", "train/bee/07.png")
    with Launched(of_images(root, tmp_path), tmp_path) as going:
        assert going.wait() == [1, 1]
        assert going.error(0) == going.error(1)
    assert "train/bee/07.png" in going.error(0)


def test_skipped_images_are_those_of_all_processes(images, tmp_path):
    root = damaged_copy(images, tmp_path / "images", "train/bee/07.png", "test/ant/03.png")
    done = launch(of_images(root, tmp_path, "--set", "data.unreadable=skip"), tmp_path)
    told = done.err(0)
    assert told.count("1 unreadable image(s) of the train split skipped") == 1
    assert told.count("1 unreadable image(s) of the test split skipped") == 1
    tested = [record["num_examples"] for record in log(tmp_path) if record["split"] == "test"]
    assert tested == [19, 19]


@pytest.mark.parametrize(
    "own", [("--set", "optimizer.lr=0.5"), ("--max-steps", "3"), ("--resume",)], ids=" ".join
)
def test_processes_that_train_different_things_are_refused(tmp_path, own):
    command = [*TRAIN, "--run-dir", tmp_path / "run"]
    with Launched(command, tmp_path, own={1: own}) as going:
        assert going.wait() == [1, 1]
        assert going.error(0) == going.error(1)
    assert "process 1 was started with another command than process 0" in going.error(0)
    assert f"({' '.join(own)} in process 1)" in going.error(0)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["eval"],
        ["check", "--batches", 1, "--per-decade", 1, "--r-min", 0.05, "--dtypes", "float32"],
        ["inspect", "-n", 64, "--top", 1, "--directions", 1, "--surface", "none"],
    ],
    ids=lambda command: command[0],
)
def test_what_is_measured_of_a_run_does_not_depend_on_the_processes(undisturbed, tmp_path, command):
    name, *options = command
    found = []
    for layout in ("2x2", "1x1"):
        arguments = [name, undisturbed / "run", *options, "--json"]
        done = launch(arguments, tmp_path / layout, **LAYOUTS[layout])
        assert [done.out(index) for index in range(1, len(done.processes))] in ([], [""])
        found.append([*numbers(json.loads(done.out(0)))])
    assert len(found[0]) == len(found[1]) > 3
    for (key, value), (_, other) in zip(*found, strict=True):
        assert value == pytest.approx(other, rel=0.05, abs=1e-5), key


def numbers(value: Any, key: str = "") -> Any:
    """Yield the numbers of a result with their places, but for times and descriptions."""
    if isinstance(value, dict):
        for name, item in value.items():
            if name not in ("elapsed_s", "environment", "residuals", "moved", "worst_moved"):
                yield from numbers(item, f"{key}.{name}")
    elif isinstance(value, list):
        for item in value:
            yield from numbers(item, key)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield key, value


WIDE = (
    *("train", "--set", "model.name=tests.wide:wide", "--set", "data.batch_size=48"),
    *("--set", "optimizer.name=sgd", "--set", "schedule.warmup_epochs=0"),
    *("--set", "gr.strategy=constant", "--set", "train.log_every_steps=1", "--max-steps", 3),
)


def test_a_state_split_over_processes_takes_the_same_steps_and_restores_anywhere(tmp_path):
    for name, shard, layout in (("split", "fsdp", "2x2"), ("whole", "none", "1x4")):
        command = [*WIDE, "--run-dir", tmp_path / name / "run", "--set", f"mesh.shard={shard}"]
        launch(command, tmp_path / name, **LAYOUTS[layout])
    split, whole = log(tmp_path / "split"), log(tmp_path / "whole")
    assert len(split) == 3 + 1
    for record, other in zip(split[:3], whole[:3], strict=True):
        assert record["loss"] == pytest.approx(other["loss"], rel=1e-6)
    # Each session compares all that it restores with the digests of the one before.
    for steps, layout, shard in ((4, "1x1", "none"), (5, "2x2", "fsdp"), (6, "1x4", "fsdp")):
        more = ["resume", tmp_path / "split" / "run", "--max-steps", steps]
        done = launch(
            [*more, "--set", f"mesh.shard={shard}"], tmp_path / "split", **LAYOUTS[layout]
        )
        assert f"from step {steps - 1}" in done.err(0).replace("\n", " ")
        assert "damaged" not in done.err(0)
