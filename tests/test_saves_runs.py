"""Whole runs of whose saves one is damaged, foreign or lost: they go on from the one before."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from gnpcli.engine.hooks import AfterStep, StepView
from gnpcli.engine.train import resume, train
from gnpcli.errors import CheckpointError
from gnpcli.files import read_file
from gnpcli.recipes.presets import resolve
from gnpcli.runs import reading
from gnpcli.runs.folder import RunFolder
from gnpcli.runs.location import locate
from gnpcli.runs.reading import RunReadError
from gnpcli.runs.saves import DamagedCheckpoint, Saves
from gnpcli.runs.trained import open_trained
from gnpcli.terminal.screen import Screen
from tests.commands import FINDS_SMALL, PROGRAM
from tests.conftest import Gnp, fails
from tests.once import Programs
from tests.test_saves import CHANGES, files, flip

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of Orbax, about itself
    # `gnpcli.runs.saves` ignores it as well; pytest has filters of its own
    pytest.mark.filterwarnings("ignore:coroutine '_read_.*' was never awaited:RuntimeWarning"),
    pytest.mark.usefixtures("shared_programs"),
]

SETTINGS = [
    "model.name=tests.small:small",
    "data.batch_size=256",
    "mesh.devices=1",
    "checkpoint.every_steps=1",
]


@pytest.fixture(scope="module", autouse=True)
def standard_promotion() -> Iterator[None]:
    with jax.numpy_dtype_promotion("standard"):  # optax mixes types
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, programs: Programs) -> Path:
    """A run with saves at 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    with programs.shared(), jax.numpy_dtype_promotion("standard"):
        train(resolve(None, SETTINGS), folder, max_steps=3, quiet=True)
    return folder


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with another seed."""
    folder = tmp_path_factory.mktemp("other") / "run"
    with jax.numpy_dtype_promotion("standard"):
        train(resolve(None, [*SETTINGS, "train.seed=1"]), str(folder), max_steps=3, quiet=True)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def opened(path: Path) -> int:
    return open_trained(locate(path), step=None, best=False, screen=Screen(quiet=True)).step


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in files(folder)}


def copy_save(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


FOREIGN: dict[str, Callable[[Path, Path], object]] = {
    "another seed": lambda run, other: copy_save(other / "3", run / "3"),
    "swapped model": lambda run, other: copy_save(other / "3" / "model", run / "3" / "model"),
    "swapped manifest": lambda run, other: copy_save(
        run / "2" / "manifest", run / "3" / "manifest"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN)
def test_a_save_of_another_run_is_not_taken(trained, run, other, capsys, change):
    change(run / "checkpoints", other / "checkpoints")
    goes_on_from_2(trained, run, capsys, "3")


def test_a_save_of_another_step_is_not_taken(trained, run, capsys):
    (run / "checkpoints" / "3").rename(run / "checkpoints" / "4")
    goes_on_from_2(trained, run, capsys, "4")


def goes_on_from_2(
    trained: Path, run: Path, capsys: pytest.CaptureFixture[str], damaged: str
) -> None:
    assert opened(run) == 2
    assert f"the checkpoint of step {damaged} in" in capsys.readouterr().err
    (run / "summary.json").unlink()  # it says that there is nothing to do
    assert resume(run, max_steps=3, quiet=True)["step"] == 3
    assert f"moved to {damaged}.damaged" in capsys.readouterr().err
    made, wanted = (Saves(path / "checkpoints").manifest(3) for path in (run, trained))
    assert made.digests == wanted.digests


def test_a_run_may_be_moved_and_a_checkpoint_stands_alone(run, tmp_path):
    moved = run.rename(tmp_path / "elsewhere")
    assert opened(moved) == 3
    shutil.copytree(moved / "checkpoints" / "2", tmp_path / "alone" / "2")
    assert opened(tmp_path / "alone" / "2") == 2
    (tmp_path / "alone" / "2").rename(tmp_path / "alone" / "5")
    with pytest.raises(DamagedCheckpoint, match="it is of step 2"):
        opened(tmp_path / "alone" / "5")


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_run_knows_its_saves_without_its_name(run, change):
    name = RunFolder(run).run_id()
    change(run / "run.json")
    assert opened(run) == 3
    assert resume(run, max_steps=3, quiet=True)["step"] == 3
    assert RunFolder(run).run_id() == name


@pytest.mark.parametrize("item", ["manifest", "model"])
def test_a_damaged_save_cannot_be_the_best(run, capsys, item):
    def best() -> int:
        return open_trained(locate(run), step=None, best=True, screen=Screen(quiet=True)).step

    assert best() == 3  # the only one that was evaluated
    data = max(files(run / "checkpoints" / "3" / item), key=lambda path: path.stat().st_size)
    flip(data)
    with pytest.raises(CheckpointError, match="has an error rate to be the best by"):
        best()
    told = capsys.readouterr().err
    assert "the checkpoint of step 3 in" in told
    assert "it cannot be the best" in told


def test_damage_of_older_saves_is_set_aside_as_well(run, capsys):
    flip(run / "checkpoints" / "1" / "manifest" / "manifest")
    assert resume(run, max_steps=3, quiet=True)["step"] == 3
    assert "moved to 1.damaged" in capsys.readouterr().err


def test_where_no_save_is_good_a_run_starts_anew_only_when_asked(run, capsys):
    before = tree(run)
    for step in (1, 2, 3):
        flip(run / "checkpoints" / str(step) / "manifest" / "manifest")
    damaged = tree(run)
    message = r"no checkpoint in .* can be used \(steps 3, 2, 1\); .* --restart"
    with pytest.raises(CheckpointError, match=message):
        resume(run, max_steps=3, quiet=True)
    assert tree(run) == damaged
    assert capsys.readouterr().err.count("is damaged: ") == 3
    assert resume(run, max_steps=3, quiet=True, restart=True)["step"] == 3
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["1", "1.damaged", "2", "2.damaged", "3", "3.damaged"]
    log = "metrics.jsonl"
    assert len(tree(run)[log].splitlines()) == len(before[log].splitlines())


def test_asking_to_start_anew_keeps_good_saves(run, capsys):
    before = tree(run / "checkpoints")
    assert resume(run, max_steps=3, quiet=True, restart=True)["step"] == 3
    assert tree(run / "checkpoints") == before
    assert "--restart is not needed: the checkpoint of step 3 is good" in capsys.readouterr().err


@pytest.mark.parametrize("empty", [False, True])
def test_where_the_saves_were_deleted_a_run_starts_anew_only_when_asked(run, empty):
    shutil.rmtree(run / "checkpoints")
    if empty:
        (run / "checkpoints").mkdir()
    before = tree(run)
    with pytest.raises(CheckpointError, match=r"was saved at step 3, .* holds no checkpoint"):
        resume(run, max_steps=3, quiet=True)
    assert tree(run) == before
    killed = [AfterStep(1, stop_by_error)]
    with pytest.raises(ZeroDivisionError):
        resume(run, max_steps=3, quiet=True, restart=True, hooks=killed)
    assert RunFolder(run).summary()["status"] == "unfinished"
    assert resume(str(run), max_steps=1, quiet=True)["step"] == 1


def stop_by_error(view: StepView) -> dict[str, Any]:
    raise ZeroDivisionError


@pytest.mark.parametrize("name", ["run.json", "summary.json", "environment.json", "metrics.jsonl"])
def test_a_read_error_of_a_file_of_the_run_changes_nothing(run, monkeypatch, name):
    for path in ("summary.json", "environment.json"):
        (run / path).write_text("junk")
    before = tree(run)
    read = read_file

    def fail(path: Path) -> bytes:
        if path.name == name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(reading, "read_file", fail)
        with pytest.raises(RunReadError, match=rf"cannot read .*{name}: Input/output error"):
            resume(run, max_steps=4, quiet=True)
    assert tree(run) == before


@pytest.mark.parametrize(
    ("pattern", "error"),
    [
        ("manifest.ocdbt", "EIO"),
        pytest.param("manifest", "EACCES", marks=pytest.mark.slow),
        pytest.param("d/*", "ENOMEM", marks=pytest.mark.slow),
        pytest.param("d/*", "ESTALE", marks=pytest.mark.slow),
        pytest.param("manifest.ocdbt", "EMFILE", marks=pytest.mark.slow),
    ],
)
def test_a_failing_disk_ends_resume_and_changes_nothing(run, pattern, error):
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    paths = [str(path) for path in run.rglob(f"checkpoints/**/{pattern}") if path.is_file()]
    assert paths
    chosen = [word for path in paths for word in ("-P", path)]
    before = tree(run)
    fault = f"inject=open,openat:error={error}"
    command = [sys.executable, "-c", PROGRAM, "resume", "--quiet", str(run)]
    done = subprocess.run(
        [strace, "-f", "-qq", "-o", os.devnull, *chosen, "-e", fault, *command],
        env={**os.environ, **FINDS_SMALL},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if "strace:" in done.stderr:
        pytest.skip(f"strace may not trace here: {done.stderr.splitlines()[0]}")
    line = fails(done, "cannot read ", os.strerror(getattr(errno, error)))
    assert done.stderr.strip() == line
    assert any(path in line for path in paths)
    assert tree(run) == before


def test_commands_name_a_save_that_cannot_be_trusted(run, gnp: Gnp):
    data = max(files(run / "checkpoints" / "3" / "model"), key=lambda path: path.stat().st_size)
    flip(data)
    done = gnp("eval", run, "--json")
    assert done.returncode == 0
    assert "the checkpoint of step 3 in" in done.stderr
    assert '"step": 2' in done.stdout
    for command in ("eval", "inspect"):
        fails(gnp(command, run, "--step", 3), "the checkpoint of step 3 in", "is damaged: ")
    for step in (1, 2):
        flip(run / "checkpoints" / str(step) / "manifest" / "manifest")
    fails(gnp("resume", run), "can be used (steps 3, 2, 1)", f"`gnp resume {run} --restart`")
