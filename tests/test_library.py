"""The engine as a library: what docs/library.md shows runs; given data, hooks, and resuming."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest

from gnpcli.config.resolved import Resolved
from gnpcli.data.base import Dataset
from gnpcli.engine.hooks import AfterStep, BeforeStep, Hook, Hooks, OnRecord, StepView
from gnpcli.engine.train import resume, train
from gnpcli.errors import CheckpointError, ConfigError, DataError, GnpError
from gnpcli.recipes.presets import resolve
from gnpcli.runs.contents import Record
from gnpcli.runs.folder import RunFolder
from gnpcli.runs.log import MetricsLog, read_metrics
from tests.commands import REPOSITORY

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of Orbax, about itself
    pytest.mark.usefixtures("shared_programs"),
]

TRANSFORM, ARRAYS, WATCHING = re.findall(
    r"```python\n(.*?)```", (REPOSITORY / "docs" / "library.md").read_text(), re.S
)
SMALL = ["model.name=tests.small:small", "data.batch_size=16", "mesh.devices=1"]


@pytest.fixture(autouse=True)
def _optax_mixes_types() -> Iterator[None]:
    with jax.numpy_dtype_promotion("standard"):
        yield


def config(*changes: str) -> Resolved:
    keys = ["train.epochs=2", "train.log_every_steps=1", "schedule.warmup_epochs=0"]
    keys += ["gr.strategy=constant", "gr.r=0.1", "gr.alpha=0.8"]
    return resolve(None, [*SMALL, *keys, *changes])


def labelled(count: int, seed: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    images = rng.integers(0, 128, (count, 8, 8, 1)) + 100 * labels[:, None, None, None]
    return images.astype(np.uint8), labels


def given(seed: int = 0) -> Dataset:
    """Two classes that brightness tells apart: 4 steps an epoch."""
    return Dataset.from_arrays(train=labelled(64, seed), test=labelled(20, seed + 1))


def run_script(script: str, folder: Path, batch_size: int) -> str:
    """Run a script of the document in a folder, with a network that compiles in a second."""
    keys = ["model.name=tests.small:small", f"data.batch_size={batch_size}"]
    script = script.replace("resolve(None, [", f"resolve(None, [*{keys!r}, ")
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_of_the_transform_fits_its_line(capsys):
    names: dict[str, Any] = {}
    exec(TRANSFORM, names)
    loss, perturbed_loss, bias = map(float, capsys.readouterr().out.split())
    assert loss < perturbed_loss < 0.1
    assert bias == pytest.approx(1, abs=0.05)
    assert names["train_step"]._cache_size() == 1


@pytest.mark.slow
def test_the_example_trains_on_arrays(tmp_path):
    status, error_rate = run_script(ARRAYS, tmp_path, 20).split()
    assert status == "finished"
    assert float(error_rate) < 0.2
    assert "name: arrays:mine" in (tmp_path / "my-run" / "config.yaml").read_text()


@pytest.mark.slow
def test_the_example_of_a_hook_prints_and_stops(tmp_path):
    told = run_script(WATCHING, tmp_path, 256).splitlines()
    assert told[0].startswith("step 1: loss ")
    assert told[-1].startswith(("stopped after", "finished after"))


def test_arrays_train_and_resume_as_a_run_without_a_stop(tmp_path):
    whole = train(config(), tmp_path / "whole", data=given(), quiet=True)
    assert (whole["status"], whole["step"]) == ("finished", 8)
    train(config(), tmp_path / "parts", data=given(), max_steps=3, quiet=True)
    parts = resume(tmp_path / "parts", data=given(), quiet=True)
    assert parts["test"]["loss"] == whole["test"]["loss"]
    with pytest.raises(CheckpointError, match="of other images than the arrays of `data`"):
        resume(tmp_path / "whole", data=given(seed=5), quiet=True)
    with pytest.raises(DataError, match="arrays:mine was given to"):
        resume(tmp_path / "whole", quiet=True)


def test_the_data_section_acts_on_given_images(tmp_path):
    summary = train(
        config("data.validation_fraction=0.25"), tmp_path / "run", data=given(), quiet=True
    )
    assert summary["val"]["num_examples"] == 16
    assert summary["total_steps"] == 6
    with pytest.raises(ConfigError, match=r"data\.batch_size 128 is more than the 64"):
        train(config("data.batch_size=128"), tmp_path / "other", data=given(), quiet=True)
    assert not (tmp_path / "other").exists()


def test_hooks_see_each_moment_and_leave_the_run_as_it_is(tmp_path):
    begun: list[int] = []
    records: list[Record] = []

    def before(view: StepView) -> None:
        assert int(view.state.step) == view.step
        assert set(view.source) == {"images", "labels", "order"}
        begun.append(view.step)

    def after(view: StepView) -> dict[str, jax.Array]:
        assert view.kind == "gnp"
        return {"largest": jnp.max(jnp.abs(view.state.params["head"]["kernel"]))}

    hooks: list[Hook] = [BeforeStep(3, before), AfterStep(4, after), OnRecord(4, records.append)]
    watched = train(config(), tmp_path / "watched", data=given(), hooks=hooks, quiet=True)
    alone = train(config(), tmp_path / "alone", data=given(), quiet=True)
    assert watched["test"]["loss"] == alone["test"]["loss"]
    assert begun == [0, 1, 3, 6]
    steps = [(record["split"], record["step"]) for record in records]
    assert steps == [("train", 1), ("train", 4), ("test", 4), ("train", 8), ("test", 8)]
    logged = read_metrics(tmp_path / "watched" / "metrics.jsonl")
    told = {record["step"] for record in logged if "largest" in record}
    assert told == {1, 4, 8}


def test_what_is_no_hook_is_refused():
    with pytest.raises(TypeError, match=r"a hook is BeforeStep, AfterStep or OnRecord, not \(5, "):
        Hooks([(5, print)], 8)  # type: ignore[list-item]


def test_a_hook_stops_a_run_that_goes_on_from_there(tmp_path):
    def at_step_3(record: Record) -> bool:
        return record["split"] == "train" and record["step"] == 3

    run = tmp_path / "run"
    stopped = train(config(), run, data=given(), hooks=[OnRecord(1, at_step_3)], quiet=True)
    assert stopped["status"] == "stopped"
    assert 3 <= stopped["step"] < 8
    assert stopped["test"]["step"] == stopped["step"]
    assert RunFolder(run).summary() == stopped
    whole = train(config(), tmp_path / "whole", data=given(), quiet=True)
    assert resume(run, data=given(), quiet=True)["test"]["loss"] == whole["test"]["loss"]


def test_a_hook_that_stops_at_an_evaluation_has_it_once(tmp_path):
    def at_evaluation(record: Record) -> Any:
        return record["split"] == "test"

    run = tmp_path / "run"
    stopped = train(
        config("checkpoint.every_epochs=null", "checkpoint.every_steps=100"),
        run,
        data=given(),
        hooks=[OnRecord(1, at_evaluation)],
        quiet=True,
    )
    assert (stopped["status"], stopped["step"], stopped["best_step"]) == ("stopped", 4, 4)
    records = read_metrics(run / "metrics.jsonl")
    assert [record["step"] for record in records if record["split"] == "test"] == [4]


def test_an_error_of_a_hook_is_told_as_it_is(tmp_path):
    def full(record: Record) -> None:
        raise OSError(28, "No space left on device", "mine.csv")

    with pytest.raises(OSError, match=r"No space left on device: 'mine\.csv'"):
        train(config(), tmp_path / "run", data=given(), hooks=[OnRecord(1, full)], quiet=True)


def test_a_full_disk_is_told_with_the_run_and_its_last_good_checkpoint(tmp_path, monkeypatch):
    def open_full(folder: RunFolder, start_step: int, **options: Any) -> MetricsLog:
        log = MetricsLog(folder.path, start_step, **options)
        log._file.close()
        log._file = open("/dev/full", "a", buffering=1)  # noqa: SIM115 - the log closes it
        return log

    run = tmp_path / "run"
    train(config(), run, data=given(), max_steps=4, quiet=True)
    monkeypatch.setattr(RunFolder, "open_log", open_full)
    said = r"cannot write to .*run: No space left on device; the last good checkpoint is step 4"
    with pytest.raises(GnpError, match=said):
        resume(run, data=given(), quiet=True)


def test_a_hook_is_due_every_step_or_more():
    with pytest.raises(ValueError, match="every 1 or more steps, not every 0"):
        OnRecord(0, print)
