"""A real Slurm of two nodes: jobs of `gnp launch slurm` that are queued again, fail, and divide."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from gnpcli.errors import TRY_AGAIN
from gnpcli.locks import read_holder
from gnpcli.runs.folder import RunFolder
from tests.commands import FINDS_SMALL, PROGRAM
from tests.conftest import Gnp
from tests.launch import free_port
from tests.slurm import Slurm, missing, slurm
from tests.tables import TINY, records

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(missing()), reason=f"Slurm is not installed: no {', '.join(missing())}"
    ),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Slurm]:
    with slurm() as cluster:
        yield cluster


class Jobs:
    """Jobs of one test."""

    def __init__(self, cluster: Slurm, gnp: Gnp, folder: Path):
        self.cluster, self._gnp, self.folder = cluster, gnp, folder

    def submit(self, options: Sequence[str], command: Sequence[str]) -> str:
        """Submit a command by ``gnp launch slurm``, and return the number of its job."""
        environment = {**self.cluster.environment, **FINDS_SMALL}
        launch = ("launch", "slurm", "--submit", "--logs", "logs", *options, "--")
        done = self._gnp(*launch, *command, env=environment)
        assert done.returncode == 0, done.stderr
        found = re.match(r"submitted job (\d+), ", done.stdout)
        assert found is not None
        return found[1]

    def log(self) -> str:
        """All that jobs have printed."""
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("logs/*")))

    def wait_for_save(self, job: str, run: Path) -> None:
        """Wait until a job has saved a step."""
        self.cluster.wait(job, lambda facts: bool(RunFolder(run).checkpoint_sizes()), 300)


@pytest.fixture
def jobs(cluster: Slurm, gnp: Gnp, tmp_path: Path) -> Jobs:
    return Jobs(cluster, gnp, tmp_path)


def starts(run: Path) -> list[int]:
    """The steps at which the sessions of a run began."""
    return [session["start_step"] for session in RunFolder(run).sessions()]


def one_cell(jobs: Jobs, epochs: int) -> tuple[str, Path]:
    """Submit a table of one cell, and return the number of the job and the folder of the run."""
    (jobs.folder / "tiny.yaml").write_text(TINY.replace("epochs: 2,", f"epochs: {epochs},"))
    table = ("reproduce-table", "tiny.yaml", "--out", "out", "--seeds", "0", "--columns", "adam")
    return jobs.submit((), table), jobs.folder / "out" / "cells" / "nano" / "adam" / "seed0"


@pytest.mark.parametrize("cause", ["time limit", "scontrol requeue"])
def test_a_job_that_is_queued_again_goes_on_by_itself(jobs: Jobs, cause: str):
    job, run = one_cell(jobs, epochs=8)
    jobs.wait_for_save(job, run)
    if cause == "time limit":  # Slurm sends this signal to the script before the limit
        jobs.cluster.run("scancel", "--batch", "--signal=USR1", job)
    else:
        jobs.cluster.run("scontrol", "requeue", job)
    facts = jobs.cluster.end(job, 600)
    assert facts["JobState"] == "COMPLETED", jobs.log()
    assert facts["Restarts"] == "1"
    first, second = starts(run)
    assert first == 0
    assert second > 0
    assert RunFolder(run).summary()["status"] == "finished"
    assert "Traceback" not in jobs.log()


def test_a_task_that_is_killed_fails_the_job(jobs: Jobs):
    job, run = one_cell(jobs, epochs=4000)
    jobs.wait_for_save(job, run)
    holder = read_holder(run.with_name("seed0.claim"))
    assert holder is not None
    os.kill(holder.pid, signal.SIGKILL)
    facts = jobs.cluster.end(job)
    assert (facts["JobState"], facts["ExitCode"]) == ("FAILED", "137:0"), jobs.log()
    assert facts["Restarts"] == "0"


TRAIN = ("train", "--set", "model.name=tests.small:small", "--set", "data.batch_size=256")


def test_a_train_command_is_started_and_resumed(jobs: Jobs):
    options = ("--epochs", "8", "--set", "checkpoint.every_steps=1", "--set", "mesh.devices=1")
    job = jobs.submit((), (*TRAIN, *options, "--run-dir", "run"))
    run = jobs.folder / "run"
    jobs.wait_for_save(job, run)
    jobs.cluster.run("scancel", "--batch", "--signal=USR1", job)
    facts = jobs.cluster.end(job, 600)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), jobs.log()
    first, second = starts(run)
    assert first == 0
    assert second > 0
    assert RunFolder(run).summary()["status"] == "finished"


def test_the_tasks_of_two_nodes_train_one_run(jobs: Jobs, monkeypatch: pytest.MonkeyPatch):
    # The nodes have names that mean nothing here: both are this machine.
    monkeypatch.setenv("GNP_COORDINATOR", f"127.0.0.1:{free_port()}")
    job = jobs.submit(("--nodes", "2"), (*TRAIN, "--max-steps", "3", "--run-dir", "run"))
    facts = jobs.cluster.end(job, 600)
    assert (facts["JobState"], facts["NumNodes"]) == ("COMPLETED", "2"), jobs.log()
    (session,) = RunFolder(jobs.folder / "run").sessions()
    assert len(session["devices"]) == 2
    assert RunFolder(jobs.folder / "run").summary()["step"] == 3


def test_tasks_that_reach_a_limit_are_queued_again_together(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
):
    """The first one that ends makes srun end the other one, and the job has its status."""
    monkeypatch.setenv("GNP_COORDINATOR", f"127.0.0.1:{free_port()}")
    options = ("--max-steps", "5", "--run-dir", "run", "--time-limit", "0.001")
    job = jobs.submit(("--nodes", "2"), (*TRAIN, *options))
    facts = jobs.cluster.end(job, 600)
    run = RunFolder(jobs.folder / "run")
    assert facts["JobState"] == "COMPLETED", jobs.log()
    assert run.summary()["step"] == 5
    begun = starts(run.path)
    assert int(facts["Restarts"]) == len(begun) - 1 > 0
    assert begun == sorted({*begun})
    assert jobs.log().count("stopped by its time limit after step") >= len(begun) - 1
    assert "Terminated" not in jobs.log()


def test_a_run_stops_before_its_job_does(jobs: Jobs):
    """Slurm counts in minutes: of two, the run leaves its margin.

    The job asks for no signal. Slurm may send one up to a minute before it is due.
    """
    options = ("--epochs", "100000", "--run-dir", "run", "--time-limit", "auto")
    command = (sys.executable, "-c", PROGRAM, *TRAIN, *options, "--set", "mesh.devices=1")
    exports = [f"export {name}={shlex.quote(value)}" for name, value in FINDS_SMALL.items()]
    script = ["#!/bin/bash", *exports, f"exec {shlex.join(command)}", ""]
    (jobs.folder / "job.sh").write_text("\n".join(script))
    asked = ("--parsable", "--time=2", "--no-requeue", f"--chdir={jobs.folder}", "--output=log")
    job = jobs.cluster.run("sbatch", *asked, str(jobs.folder / "job.sh")).strip()
    facts = jobs.cluster.end(job)
    run = RunFolder(jobs.folder / "run")
    log = (jobs.folder / "log").read_text()
    assert (facts["JobState"], facts["ExitCode"]) == ("FAILED", f"{TRY_AGAIN}:0"), log
    assert "stopped by its time limit after step" in log
    assert "time limit  none" not in log
    assert run.summary()["status"] == "interrupted"
    assert run.summary()["step"] > 1


def test_an_array_divides_a_table(jobs: Jobs, tmp_path: Path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    table = ("reproduce-table", "tiny.yaml", "--out", "out", "--seeds", "0")
    job = jobs.submit(("--array", "2"), table)
    for index in (0, 1):
        facts = jobs.cluster.end(f"{job}_{index}", 600)
        assert facts["JobState"] == "COMPLETED", jobs.log()
    out = tmp_path / "out"
    assert len(records(out)) == 2
    assert [starts(run) for run in sorted(out.glob("cells/*/*/seed0"))] == [[0], [0]]
    logs = [path.read_text() for path in sorted(tmp_path.glob("logs/*"))]
    assert all("(2 of 2 cells)" in text for text in logs)
    assert [text.count(": running, ") for text in logs] == [1, 1]
