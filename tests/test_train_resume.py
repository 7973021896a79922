"""``gnp train ... --run-dir FOLDER --resume``: one command starts a run and goes on with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gnpcli.runs.folder import RunFolder
from gnpcli.runs.log import read_metrics
from tests.commands import FINDS_SMALL, PROGRAM
from tests.conftest import Gnp, fails

SMALL = ("train", "--gr", "none", "--epochs", "2", "--set", "model.name=tests.small:small")
HERE = ("--run-dir", "run", "--resume")
CLOCK = ("elapsed_s", "images_per_s")


def test_it_needs_the_folder_of_the_run(gnp: Gnp):
    done = gnp(*SMALL, "--resume")
    assert done.returncode == 2
    assert "it needs the folder of the run: --run-dir" in done.stderr


def test_the_same_command_starts_goes_on_and_does_nothing_at_the_end(gnp: Gnp, tmp_path: Path):
    dry = (*SMALL, *HERE, "--dry-run", "--json")
    assert json.loads(gnp(*dry).stdout)["plan"][-1] == "run          run begins"
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.yaml.0123456789ab.tmp").write_text("of a start that was killed")
    started = gnp(*SMALL, *HERE, "--max-steps", 3, "--json")
    assert json.loads(started.stdout)["status"] == "stopped", started.stderr
    assert json.loads(gnp(*dry).stdout)["plan"][-1] == (
        "run          run goes on from step 3, its last checkpoint"
    )
    finished = gnp(*SMALL, *HERE, "--json")
    assert json.loads(finished.stdout)["status"] == "finished", finished.stderr
    again = gnp(*SMALL, *HERE, "--json", env={"GNP_DATA_DIR": "/nowhere"})
    assert again.returncode == 0
    assert json.loads(again.stdout) == json.loads(finished.stdout)
    step = json.loads(finished.stdout)["step"]
    assert f"run is already at step {step}: nothing to do" in again.stderr
    assert len(RunFolder(tmp_path / "run").sessions()) == 2
    last = json.loads(gnp(*dry).stdout)["plan"][-1]
    assert last == f"run          run is already at step {step}: nothing to do"


@pytest.fixture
def begun(gnp: Gnp, tmp_path: Path) -> Path:
    assert gnp(*SMALL, "--run-dir", "run", "--max-steps", 3).returncode == 0
    return tmp_path / "run"


@pytest.mark.slow
def test_another_configuration_is_refused_with_its_keys(gnp: Gnp, begun: Path):
    before = sorted((path, path.stat().st_mtime_ns) for path in begun.rglob("*"))
    others = ("--seed", 3, "--set", "mesh.devices=1")
    for more in ((), ("--dry-run",)):
        line = fails(gnp(*SMALL, *HERE, *others, *more), "another configuration")
        assert "(train.seed: 0 -> 3)" in line
    assert before == sorted((path, path.stat().st_mtime_ns) for path in begun.rglob("*"))
    done = gnp(*SMALL, *HERE, "--set", "mesh.devices=1")
    assert done.returncode == 0, done.stderr
    *_, last = RunFolder(begun).sessions()
    assert last["computed_otherwise"] == ["mesh.devices: None -> 1"]


@pytest.mark.slow
def test_a_folder_of_other_files_and_one_that_is_in_use_are_refused(
    gnp: Gnp, begun: Path, tmp_path: Path
):
    with RunFolder(begun).claimed():
        fails(gnp(*SMALL, *HERE), f"is in use by process {os.getpid()} on ")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("...")
    other = (*SMALL, "--run-dir", "thesis", "--resume")
    fails(gnp(*other), "not empty and is not a run folder")
    fails(gnp(*other, "--dry-run"), "not empty and is not a run folder")


@pytest.mark.slow
def test_groups_per_device_are_those_of_the_start(gnp: Gnp, tmp_path: Path):
    command = (*SMALL, *HERE, "--set", "gr.groups=per-device")
    two = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    started = gnp(*command, "--max-steps", 3, env=two)
    assert started.returncode == 0, started.stderr
    on_one = gnp(*command, "--set", "mesh.devices=1", "--max-steps", 5, env=two)
    assert on_one.returncode == 0, on_one.stderr
    done = gnp(*command)
    assert done.returncode == 0, done.stderr
    run = RunFolder(tmp_path / "run")
    assert run.config().gr.groups == 2
    assert [session["start_step"] for session in run.sessions()] == [0, 3, 5]
    fails(gnp(*SMALL, *HERE, "--set", "gr.groups=1"), "(gr.groups: 2 -> 1)")


def log(folder: Path) -> list[dict[str, object]]:
    return [
        {key: value for key, value in record.items() if key not in CLOCK}
        for record in read_metrics(folder / "metrics.jsonl")
    ]


@pytest.mark.slow
def test_killed_again_and_again_it_ends_as_an_undisturbed_run(gnp: Gnp, tmp_path: Path):
    often = ("--set", "checkpoint.every_steps=2", "--set", "train.log_every_steps=1")
    assert gnp(*SMALL, *often, "--run-dir", "whole").returncode == 0
    command = [sys.executable, "-c", PROGRAM, *SMALL, *often, *HERE, "--quiet"]
    environment = {**os.environ, **FINDS_SMALL}
    run, kills = tmp_path / "run", 0
    signs = [
        lambda: (run / "config.yaml").exists(),
        lambda: (run / "environment.json").exists(),
        lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size > 0,
        lambda: (run / "checkpoints" / "2").exists(),
        lambda: (run / "checkpoints" / "8").exists(),
    ]
    for is_time in signs:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE
        )
        deadline = time.monotonic() + 120
        while process.poll() is None and not is_time() and time.monotonic() < deadline:
            time.sleep(0.002)
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    assert kills == len(signs)
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert RunFolder(run).summary()["status"] == "finished"
    assert log(run) == log(tmp_path / "whole")
