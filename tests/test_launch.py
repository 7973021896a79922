"""`gnp launch slurm`: what is refused, and what the script does with a step that ends in many ways.

Bash runs the script for real; `srun` and `scontrol` are stand-ins. `test_slurm` has the real ones.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from gnpcli.cluster.slurm import SlurmJob, seconds_of
from gnpcli.errors import ConfigError
from gnpcli.recipes.presets import resolve
from gnpcli.runs.folder import RunFolder
from tests.conftest import Gnp, fails

STEP = """\
#!/bin/bash
trap 'exit "$AFTER_USR1"' USR1
printf '%s\\0' "$@" > arguments
[ -n "$AFTER_USR1" ] || exit "$STATUS"
touch started
while :; do sleep 0.05; done
"""
"""Stands for srun: ends at once with a status, or waits for USR1 and then ends with another."""

SCONTROL = """\
#!/bin/bash
echo "$@" >> told
"""


class Batch:
    """Runs a script as Slurm does."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "bin").mkdir()
        for name, text in (("srun", STEP), ("scontrol", SCONTROL)):
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)

    def run(self, job: SlurmJob, status: int = 0, after_usr1: int | None = None) -> int:
        """Return the status of a job whose step ends with `status`, or with another after USR1."""
        (self.folder / "job.sh").write_text(job.script())
        with subprocess.Popen(
            ["bash", "job.sh"],
            cwd=self.folder,
            env={
                "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
                "SLURM_JOB_ID": "17",
                "STATUS": str(status),
                "AFTER_USR1": "" if after_usr1 is None else str(after_usr1),
            },
        ) as process:
            if after_usr1 is not None:
                deadline = time.monotonic() + 60
                while not (self.folder / "started").exists():
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
                process.send_signal(signal.SIGUSR1)
            return process.wait(timeout=60)

    @property
    def told(self) -> list[str]:
        """What scontrol was told."""
        path = self.folder / "told"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    return Batch(tmp_path)


def job(*command: str) -> SlurmJob:
    return SlurmJob(command=command or ("gnp", "train"), name="a job")


def test_a_step_that_is_told_to_stop_and_saves_is_queued_again(batch: Batch):
    assert batch.run(job(), after_usr1=128 + signal.SIGUSR1) == 128 + signal.SIGUSR1
    assert batch.told == ["requeue 17"]


def test_a_step_that_reaches_a_limit_of_its_own_is_queued_again(batch: Batch):
    assert batch.run(job(), status=75) == 75
    assert batch.told == ["requeue 17"]


@pytest.mark.parametrize(
    ("status", "after_usr1"),
    [(0, None), (1, None), (137, None), (143, None), (0, 0), (0, 1)],
    ids=["done", "failed", "killed", "cancelled", "done in time", "failed to save"],
)
def test_every_other_end_is_the_end_of_the_job(batch: Batch, status: int, after_usr1: int | None):
    assert batch.run(job(), status, after_usr1) == (status if after_usr1 is None else after_usr1)
    assert batch.told == []


def test_every_argument_reaches_the_command_as_it_is(batch: Batch):
    odd = ["a b", "it's", '"', "$HOME", "*", "#x", "--set", "a=[1, 2]", "", "\\", "猫"]
    assert batch.run(job("gnp", *odd)) == 0
    arguments = (batch.folder / "arguments").read_text().split("\0")[:-1]
    assert arguments == ["--kill-on-bad-exit=1", "gnp", *odd]


def test_what_is_asked_of_slurm_stands_in_the_script():
    asked = SlurmJob(
        command=["gnp"],
        name="a job",
        nodes=2,
        tasks_per_node=4,
        array=8,
        save_before_s=300,
        cpus_per_task=6,
        gpus_per_node="a100:4",
        mem="64G",
        time="1-12:00:00",
        partition="gpu",
        account="me",
        logs=Path("my logs"),
        extra=[("qos", "long"), ("exclusive", None)],
    )
    first, *lines = asked.script().splitlines()
    assert first == "#!/bin/bash"
    options = [shlex.split(line)[1] for line in lines if line.startswith("#SBATCH ")]
    assert options == [
        "--job-name=a job",
        "--array=0-7",
        "--nodes=2",
        "--ntasks-per-node=4",
        "--cpus-per-task=6",
        "--gpus-per-node=a100:4",
        "--mem=64G",
        "--time=1-12:00:00",
        "--partition=gpu",
        "--account=me",
        "--output=my logs/%x-%A_%a.out",
        "--open-mode=append",
        "--requeue",
        "--signal=B:USR1@300",
        "--qos=long",
        "--exclusive",
    ]
    assert "srun --kill-on-bad-exit=1 --cpus-per-task=6 gnp &" in lines


@pytest.mark.parametrize(
    "wrong",
    [
        SlurmJob(command=["gnp"], name="two\nlines"),
        SlurmJob(command=["gnp", "a\nb"], name="job"),
        SlurmJob(command=["gnp"], name="job", extra=[("a b", "c")]),
        SlurmJob(command=["gnp"], name="job", extra=[("", None)]),
        *(SlurmJob(command=["gnp"], name="job", mem=mem) for mem in ("", "1\n2")),
        *(SlurmJob(command=["gnp"], name="job", partition=name) for name in ("", "\u202e")),
        *(SlurmJob(command=["gnp"], name="job", time=time) for time in ("", "x", "-5", "1:", " 9")),
    ],
)
def test_what_cannot_stand_in_a_script_is_refused(wrong: SlurmJob):
    with pytest.raises(ConfigError):
        wrong.script()


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("4:00:00", 14400),
        ("2-3", 183600),
        ("2-3:4", 183840),
        ("2-3:4:5", 183845),
        ("0", None),
        ("UNLIMITED", None),
        ("infinite", None),
    ],
)
def test_a_time_is_read_as_slurm_reads_it(time: str, seconds: int | None):
    assert seconds_of(time) == seconds


def test_a_limit_that_would_stop_every_start_is_refused():
    started = replace(job(), time="2:00", save_before_s=59)
    assert "#SBATCH --time=2:00\n" in started.script()
    with pytest.raises(ConfigError, match="--time 2:00 is within the 60 s of --save-before"):
        replace(started, save_before_s=60).script()


@pytest.mark.parametrize("name", ["signal", "no-requeue", "output", "array", "nodes", "ntasks"])
def test_what_the_script_depends_on_is_not_set_beside_it(name: str):
    with pytest.raises(ConfigError, match=f"--sbatch {name}: "):
        replace(job(), extra=[("qos", "long"), (name, "1")]).script()


def srun_line(script: str) -> list[str]:
    (line,) = (line for line in script.splitlines() if line.startswith("srun "))
    return shlex.split(line.removesuffix(" &"))


def test_a_train_command_goes_on_by_itself(gnp: Gnp):
    train = ["train", "--run-dir", "runs/a b", "--set", "optimizer.lr=0.1"]
    done = gnp("launch", "slurm", "--time", "10", "--logs", "logs", "--", *train)
    assert done.returncode == 0, done.stderr
    assert "make the folder logs before" in done.stderr
    program = str(Path(sys.executable).with_name("gnp"))
    assert srun_line(done.stdout) == ["srun", "--kill-on-bad-exit=1", program, *train, "--resume"]
    again = gnp("launch", "slurm", *train, "--resume")
    assert srun_line(again.stdout) == srun_line(done.stdout)
    assert "--job-name='gnp-a b'" in again.stdout


def test_a_folder_of_another_run_is_refused_before_the_job(gnp: Gnp, tmp_path: Path):
    RunFolder(tmp_path / "run").create(resolve(None))
    launch = ("launch", "slurm", "--", "train", "--run-dir", "run")
    assert gnp(*launch).returncode == 0
    fails(
        gnp(*launch, "--seed", "3"),
        "run holds a run with another configuration (train.seed: 0 -> 3)",
    )
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    fails(gnp(*launch[:-1], "other"), "other is not empty and is not a run folder")


def test_a_table_is_joined_by_the_jobs_of_an_array(gnp: Gnp):
    table = ["reproduce-table", "adam-vs-gr-digits", "--out", "out"]
    done = gnp("launch", "slurm", "--array", "3", "--", *table)
    assert done.returncode == 0, done.stderr
    # A worker that stops or fails does not end the other ones, whatever a cluster's defaults are.
    options = ["srun", "--kill-on-bad-exit=0", "--wait=0"]
    program = str(Path(sys.executable).with_name("gnp"))
    assert srun_line(done.stdout) == [*options, program, *table, "--join"]
    assert "#SBATCH --array=0-2" in done.stdout
    assert done.stderr == ""


TABLE = ("reproduce-table", "adam-vs-gr-digits")
RUN = ("train", "--run-dir", "run")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--", "eval", "run"], "'eval' is not one of train, reproduce-table"),
        (["--", "train"], "give train a --run-dir"),
        (["--array", "2", "--", "train", "--run-dir", "run"], "an array divides a table"),
        (["--", *RUN, "--process-id", "1"], "--process-id is the same in every task"),
        (["--", *RUN, "--processes", "2"], "--processes is the same in every task"),
        (["--", *TABLE, "--epoch", "3"], "No such option: --epoch"),
        (["--", *TABLE, "--dry-run"], "--dry-run trains nothing"),
        (["--", *TABLE, "--render"], "--render trains nothing"),
        (["--", *TABLE, "--seeds", "x"], "'x' is not a seed"),
    ],
)
def test_a_command_that_a_job_cannot_run_is_wrong_usage(
    gnp: Gnp, tmp_path: Path, arguments: list[str], said: str
):
    done = gnp("launch", "slurm", *arguments)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.replace("│", " ").split())
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_command_is_refused_as_it_would_be_in_the_job(gnp: Gnp, tmp_path: Path):
    launch = ("launch", "slurm", "--submit", "--")
    fails(gnp(*launch, *TABLE, "--set", "optimizer.lrr=1"), "unknown key 'optimizer.lrr'")
    fails(gnp(*launch, "reproduce-table", "adam-vs-g"), "unknown table 'adam-vs-g'")
    fails(gnp(*launch, "reproduce-table", "adam-vs-gr", "--epochs", "0"), "out of range")
    assert list(tmp_path.iterdir()) == []


def test_what_sbatch_says_is_told_in_a_line(gnp: Gnp, tmp_path: Path):
    sbatch = tmp_path / "bin" / "sbatch"
    launch = ("launch", "slurm", "--submit", "--partition", "x", "--", *TABLE)
    fails(gnp(*launch, env={"PATH": str(sbatch.parent)}), "there is no sbatch here", "--submit")
    sbatch.parent.mkdir()
    text = "sbatch: error: invalid partition specified: x\nsbatch: error: Batch job failed\n"
    sbatch.write_text(f"#!/bin/bash\nprintf {shlex.quote(text)} >&2\nexit 1\n")
    sbatch.chmod(0o755)
    done = gnp(*launch, env={"PATH": f"{sbatch.parent}{os.pathsep}{os.environ['PATH']}"})
    fails(done, "sbatch refused the job: invalid partition specified: x; Batch job failed")
    sbatch.write_text("#!/bin/bash\necho '17;cluster'\ncat > script\n")
    done = gnp(*launch, env={"PATH": f"{sbatch.parent}{os.pathsep}{os.environ['PATH']}"})
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"submitted job 17, which prints into {tmp_path}\n"
    assert srun_line((tmp_path / "script").read_text())[-1] == "--join"
