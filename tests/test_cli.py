"""The real commands in subprocesses: what they print, how they fail, and that nothing is lost when
they do.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image

from gnpcli.recipes.presets import preset_names, resolve
from gnpcli.runs.log import read_metrics
from tests.commands import FINDS_SMALL, CommandServer
from tests.conftest import Gnp, fails

QUICK = [
    "--epochs",
    "4",
    "--set",
    "data.batch_size=256",
    "--set",
    "schedule.warmup_epochs=1",
    "--set",
    "mesh.devices=1",
    "--set",
    "checkpoint.every_epochs=1",
    "--set",
    "model.name=tests.small:small",
]
"""5 steps an epoch on the digits, 20 in all."""


def tree(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def folder_dataset(root: Path, *, classes: int = 2, per_class: int = 4, size: int = 8) -> Path:
    for split in ("train", "test"):
        for label in range(classes):
            where = root / split / f"class {label}"
            where.mkdir(parents=True)
            for number in range(per_class):
                Image.new("RGB", (size, size), (60 * label, 10 * number, 200)).save(
                    where / f"{number}.png"
                )
    return root


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, command_server: CommandServer) -> Path:
    """A finished run made by the command line, and what it printed."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    done = command_server.run(
        ["train", *QUICK, "--run-dir", str(folder)],
        cwd=folder.parent,
        env={**os.environ, **FINDS_SMALL},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "finished after" in done.stdout
    assert (
        "objective  L + 0.04 ||grad L||  (alpha 0.8, r 0.05, finite-difference), plain for the "
        "first 1 epochs" in done.stderr
    )
    assert "epoch 4/4  step 20  test error" in done.stderr
    return folder


# --- what works


def test_help_names_every_strategy_and_command(gnp: Gnp):
    from gnpcli.config.strategies import Strategy

    text = gnp("train", "--help").stdout
    for strategy in get_args(Strategy):
        assert strategy in text
    text = gnp("--help").stdout
    for command in ("train", "resume", "eval", "bench", "presets"):
        assert command in text
    assert gnp("--version").stdout.startswith("gnp 0.")


def test_presets_list_as_a_table_and_as_json(gnp: Gnp):
    rows = json.loads(gnp("presets", "list", "--json").stdout)
    assert [row["name"] for row in rows] == preset_names()
    assert {"name", "model", "dataset", "gr", "epochs"} <= set(rows[0])
    lines = gnp("presets", "list").stdout.splitlines()
    assert len(lines) == len(rows) + 1
    for row, line in zip(rows, lines[1:], strict=True):
        assert all(str(value) in line for value in row.values())


@pytest.mark.parametrize("name", preset_names())
def test_what_presets_show_prints_is_that_preset(gnp: Gnp, tmp_path: Path, name: str):
    (tmp_path / "shown.yaml").write_text(gnp("presets", "show", name).stdout)
    assert resolve(str(tmp_path / "shown.yaml")) == resolve(name)


def test_a_dry_run_says_what_would_happen_and_does_nothing(gnp: Gnp, tmp_path: Path):
    done = gnp(
        "train",
        "--preset",
        "vit-s-cifar10",
        "--gr",
        "zero-warmup",
        "--dry-run",
        "--run-dir",
        "here",
    )
    assert done.returncode == 0, done.stderr
    for part in (
        "# objective    L + 0.08 ||grad L||  (alpha 0.8, r 0.1, finite-difference), plain for the "
        "first 40 epochs",
        "# parameters   21,342,346 (vit-s, float32)",
        "# steps        58,500 (195 an epoch, 300 epochs), of them 7,800 plain: 1.87 times",
        "# checkpoints  here/checkpoints, every 5 epoch(s), keeping the last 3 and the best",
    ):
        assert part in done.stdout, done.stdout
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "printed.yaml").write_text(done.stdout)
    assert resolve(str(tmp_path / "printed.yaml")) == resolve(
        "vit-s-cifar10", ["gr.strategy=zero-warmup"]
    )


def test_eval_prints_a_line_and_json(gnp: Gnp, run: Path):
    last = [record for record in read_metrics(run / "metrics.jsonl") if record["split"] == "test"][
        -1
    ]
    done = gnp("eval", run)
    assert done.returncode == 0, done.stderr
    assert f"digits test: error {100 * last['error_rate']:.2f} %  top-5 error" in done.stdout
    result = json.loads(gnp("eval", run / "checkpoints" / "20", "--json").stdout)
    assert result["error_rate"] == last["error_rate"]
    assert {"error_rate", "loss", "num_examples", "top5_error_rate"} <= set(result)
    assert json.loads(gnp("eval", run, "--split", "train", "--json").stdout)["num_examples"] == 1437


def test_a_checkpoint_carries_its_configuration_wherever_it_is_moved(
    gnp: Gnp, run: Path, tmp_path: Path
):
    shutil.copytree(run / "checkpoints" / "20", tmp_path / "elsewhere" / "20")
    moved = json.loads(gnp("eval", "elsewhere/20", "--json").stdout)
    assert moved == json.loads(gnp("eval", run, "--json").stdout)


def test_resuming_a_finished_run_says_so(gnp: Gnp, run: Path):
    before = tree(run)
    done = gnp("resume", run)
    assert done.returncode == 0
    assert "already at step 20: nothing to do" in done.stderr
    assert tree(run) == before


def test_a_relative_run_folder_and_a_config_file_as_preset(gnp: Gnp, run: Path, tmp_path: Path):
    done = gnp(
        "train",
        "--preset",
        run / "config.yaml",
        "--run-dir",
        "sub/again",
        "--max-steps",
        "1",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["status"], summary["step"]) == ("stopped", 1)
    assert (tmp_path / "sub" / "again" / "checkpoints" / "1").is_dir()
    assert (tmp_path / "sub" / "again" / "config.yaml").read_text() == (
        run / "config.yaml"
    ).read_text()


def test_kill_9_and_resume_equals_an_uninterrupted_run(gnp: Gnp, run: Path, tmp_path: Path):
    command = [
        sys.executable,
        "-c",
        "from gnpcli.cli import main; main()",
        "train",
        *QUICK,
        "--run-dir",
        "killed",
    ]
    slow = ["--set", "checkpoint.every_steps=1", "--set", "checkpoint.keep=1"]
    process = subprocess.Popen(
        [*command, *slow],
        cwd=tmp_path,
        env={**os.environ, **FINDS_SMALL},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    checkpoints = tmp_path / "killed" / "checkpoints"
    while time.monotonic() < deadline and process.poll() is None:
        steps = (
            [int(p.name) for p in checkpoints.glob("*") if p.name.isdecimal()]
            if checkpoints.is_dir()
            else []
        )
        if steps and max(steps) >= 7:  # in the middle of the second epoch, a save under way
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = gnp("resume", "killed", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == 20
    clock = ("elapsed_s", "images_per_s")
    ours, whole = (
        [
            {k: v for k, v in record.items() if k not in clock}
            for record in read_metrics(folder / "metrics.jsonl")
        ]
        for folder in (tmp_path / "killed", run)
    )
    assert ours == whole
    (evaluated,) = {gnp("eval", folder, "--json").stdout for folder in (tmp_path / "killed", run)}
    assert json.loads(evaluated)["step"] == 20


def test_ctrl_c_saves_and_prints_the_resume_command(gnp: Gnp, tmp_path: Path):
    command = [
        sys.executable,
        "-c",
        "from gnpcli.cli import main; main()",
        "train",
        *QUICK,
        "--run-dir",
        "stopped",
    ]
    process = subprocess.Popen(
        [*command, "--epochs", "4000"],
        cwd=tmp_path,
        env={**os.environ, **FINDS_SMALL},
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.exists() and len(read_metrics(metrics)) > 2):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in told
    (line,) = [line for line in told.splitlines() if line.startswith("error: ")]
    assert "stopped by SIGINT after step" in line
    assert f"gnp resume {(tmp_path / 'stopped').resolve()}" in line
    step = json.loads((tmp_path / "stopped" / "summary.json").read_text())["step"]
    assert (tmp_path / "stopped" / "checkpoints" / str(step)).is_dir()


def test_the_harmful_configuration_warns_and_trains(gnp: Gnp):
    done = gnp("train", *QUICK, "--gr", "constant", "--max-steps", "1")
    assert done.returncode == 0, done.stderr
    assert (
        "warning: gr.strategy=constant is at full strength during the learning-rate warmup"
        in done.stderr
    )
    assert "try --gr zero-warmup" in done.stderr


def test_an_image_folder_trains_and_evaluates(gnp: Gnp, tmp_path: Path):
    folder_dataset(tmp_path / "my données")
    arguments = [
        "--dataset",
        "folder:my données",
        "--set",
        "data.batch_size=4",
        "--set",
        "model.name=tests.small:small",
        "--epochs",
        "1",
    ]
    done = gnp("train", *arguments, "--gr", "none", "--run-dir", "run", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["test"]["num_examples"] == 8
    result = json.loads(gnp("eval", "run", "--json").stdout)
    assert result["num_examples"] == 8
    assert "top5_error_rate" not in result  # two classes


@pytest.mark.slow
def test_bench_measures_both_steps(gnp: Gnp):
    small = ["--set", "model.name=tests.small:small"]
    done = gnp("bench", "--rounds", "1", "--steps", "1", "--json", *small)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    plain, full = result["measurements"]
    assert (plain["name"], full["name"]) == ("plain", "gnp")
    for row in (plain, full):
        for key in (
            "images_per_s",
            "step_ms",
            "compile_s",
            "peak_bytes",
            "flops_per_step",
            "gnp_over_plain",
        ):
            assert row[key] > 0, key
    assert 1.5 < full["flops_per_step"] / plain["flops_per_step"] < 2.5


# --- what fails


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (
            ["train", "--preset", "vit-s-cifar01"],
            ["unknown preset 'vit-s-cifar01'", "'vit-s-cifar10'"],
        ),
        (
            ["train", "--set", "optimizer.learning_rate=1"],
            [("--set: unknown key 'optimizer.learning_rate'")],
        ),
        (["train", "--set", "model.name=vit-nanno"], ["vit-nanno", "'vit-nano'"]),
        (["train", "--dataset", "digit"], ["--dataset: ", "'digit'", "'digits'"]),
        (["train", "--set", "optimizer.name=adam"], ["unknown optimizer 'adam'", "'adamw'"]),
        (["train", "--gr", "zero-warm-up"], ["--gr: gr.strategy", "'zero-warmup'"]),
        (["train", "--set", "gr.r=-1"], ["--set: gr.r: -1 is out of range (must be >= 0)"]),
        (["train", "--set", "gr.r=0"], ["gr.alpha = 0.8 needs a radius"]),
        (["train", "--seed", "-1"], ["--seed: train.seed: -1 is out of range"]),
        (["train", "--epochs", "0"], ["--epochs: train.epochs: 0 is out of range"]),
        (
            ["train", "--set", "data.batch_size=2000"],
            ["data.batch_size 2000 is more than the 1437"],
        ),
        (
            ["train", "--set", "data.batch_size=255"],
            [("data.batch_size = 255 is not divisible by the 2 devices"), "254"],
        ),
        (["train", "--set", "mesh.devices=3"], ["mesh.devices = 3, but this machine has 2"]),
        (["train", "--set", "model.patch_size=3"], ["3", "8"]),
        (["train", "--preset", "vit-ti-cifar10", "--data-dir", "nowhere"], ["nowhere"]),
        (["train", "--preset", "vit-ti-cifar10"], ["cifar10", "--data-dir"]),
        (["train", "--dataset", "folder:nowhere"], ["nowhere"]),
        (["train", "--preset", "mine.yaml"], ["cannot read mine.yaml: No such file"]),
        (["train", "--dry-run", "--set", "model.patch_size=3"], ["3", "8"]),
        (["presets", "show", "nothing"], ["unknown preset 'nothing'"]),
        (["resume", "nowhere"], ["nowhere is not a run folder (it has no config.yaml)"]),
        (["eval", "nowhere"], ["nowhere: no such folder"]),
        (["eval", "."], ["is neither a run folder", "nor a checkpoint"]),
        (["bench", "--preset", "nothing"], ["unknown preset"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(
    gnp: Gnp, tmp_path: Path, arguments: list[str], parts: list[str]
):
    done = gnp(*arguments, env={"XLA_FLAGS": "--xla_force_host_platform_device_count=2"})
    fails(done, *parts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--set", "nonsense"],
        ["train", "--set", "=1"],
        ["train", "--epochs", "two"],
        ["train", "extra"],
        ["train", "--max-steps", "-1"],
        ["trian"],
        ["resume"],
        ["eval"],
        ["eval", "x", "--split", "tset"],
        ["eval", "x", "--best", "--step", "1"],
    ],
)
def test_usage_errors_exit_with_2(gnp: Gnp, arguments: list[str]):
    done = gnp(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback(gnp: Gnp):
    done = gnp("--debug", "train", "--preset", "nothing")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_bad_folders_are_named(gnp: Gnp, tmp_path: Path):
    data = folder_dataset(tmp_path / "data")
    arguments = [
        "train",
        "--dataset",
        "folder:data",
        "--set",
        "data.batch_size=4",
        "--set",
        "model.patch_size=4",
    ]
    (data / "train" / "empty class").mkdir()
    fails(gnp(*arguments), "empty class")
    (data / "train" / "empty class").rmdir()
    corrupt = data / "train" / "class 1" / "2.png"
    good = corrupt.read_bytes()
    corrupt.write_bytes(good[: len(good) // 2])
    fails(gnp(*arguments), str(Path("train") / "class 1" / "2.png"))
    corrupt.write_bytes(b"this is no image")
    fails(gnp(*arguments), str(Path("train") / "class 1" / "2.png"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_a_model_that_does_not_fit_the_data_is_refused_with_both_numbers(
    gnp: Gnp, run: Path, tmp_path: Path
):
    folder_dataset(tmp_path / "data")
    fails(gnp("eval", run, "--dataset", "folder:data"), "folder:data has 2 classes", "with 10")
    fails(gnp("eval", run, "--split", "val"), "digits has no val split")
    fails(gnp("eval", run, "--step", "13"), "no checkpoint of step 13")
    fails(gnp("eval", run, "--dataset", "digitz"), "'digits'")


def test_a_run_folder_with_another_configuration_is_refused(gnp: Gnp, run: Path):
    before = tree(run)
    fails(
        gnp("train", *QUICK, "--seed", "3", "--run-dir", run),
        "another configuration (train.seed: 0 -> 3)",
        "--run-dir",
    )
    fails(gnp("train", *QUICK, "--run-dir", run), f"gnp resume {run}")
    assert tree(run) == before


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    gnp: Gnp, run: Path, tmp_path: Path
):
    shutil.copytree(run, tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints" / "20").rglob("*"):
        if path.is_file() and path.stat().st_size > 200:
            path.write_bytes(path.read_bytes()[:100])
    done = gnp("eval", "run", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == 15
    assert "warning: the checkpoint of step 20 in" in done.stderr
    assert "falling back to the one before" in done.stderr
    fails(gnp("eval", "run", "--step", "20"), "the checkpoint of step 20 in", "is damaged")
    done = gnp("resume", "run", "--json")
    assert done.returncode == 0, done.stderr
    assert "moved to 20.damaged" in done.stderr
    assert (tmp_path / "run" / "checkpoints" / "20.damaged").is_dir()
    assert json.loads(gnp("eval", "run", "--json").stdout) == json.loads(
        gnp("eval", run, "--json").stdout
    )


def test_a_run_whose_only_checkpoint_is_damaged_cannot_be_evaluated(
    gnp: Gnp, run: Path, tmp_path: Path
):
    shutil.copytree(run, tmp_path / "run")
    for step in (tmp_path / "run" / "checkpoints").iterdir():
        shutil.rmtree(step / "model")
    fails(gnp("eval", "run"), "no usable checkpoint in")


def test_a_checkpoint_of_another_model_is_refused(gnp: Gnp, run: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    path.write_text(path.read_text().replace("dropout: 0.1", "dropout: 0.2"))
    fails(gnp("eval", "run"), "the checkpoint of step 20", "model.dropout: 0.1 -> 0.2")
    before = tree(tmp_path / "run")
    fails(
        gnp("resume", "run"),
        "the checkpoint of step 20",
        "another configuration",
        "model.dropout: 0.1 -> 0.2",
    )
    assert tree(tmp_path / "run") == before


def test_a_loss_that_is_not_finite_stops_with_step_pass_and_checkpoint(gnp: Gnp):
    done = gnp("train", *QUICK, "--gr", "constant", "--set", "gr.r=1e38", "--run-dir", "run")
    fails(done, "step 1: the", "of the perturbed pass is", "there is no checkpoint yet")


def test_a_run_folder_that_cannot_be_written_is_named(gnp: Gnp, tmp_path: Path):
    (tmp_path / "file").write_text("")
    fails(gnp("train", *QUICK, "--run-dir", "file/run"), "Not a directory", "file/run")


@pytest.fixture
def read_only_run(run: Path, tmp_path: Path):
    """A copy of a run, stopped early, on a file system mounted read-only: permission bits would not
    bind root.
    """
    shutil.copytree(run, tmp_path / "source")
    shutil.rmtree(tmp_path / "source" / "checkpoints" / "20")
    (tmp_path / "source" / "summary.json").unlink()
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    bound = (
        os.geteuid() == 0
        and subprocess.run(["mount", "--bind", tmp_path / "source", mounted]).returncode == 0
    )
    if not bound:
        pytest.skip("mounting read-only needs root")
    subprocess.run(["mount", "-o", "remount,ro,bind", mounted], check=True)
    yield mounted
    subprocess.run(["umount", mounted], check=True)


def test_a_read_only_run_evaluates_and_refuses_to_resume(
    gnp: Gnp, read_only_run: Path, tmp_path: Path
):
    done = gnp("eval", read_only_run, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == 15
    before = tree(tmp_path / "source")
    fails(gnp("resume", read_only_run), "Read-only file system")
    fails(gnp("report", read_only_run), "report.html: Read-only file system: take another --out")
    fails(
        gnp("train", *QUICK, "--run-dir", read_only_run / "inner"), "Read-only file system", "inner"
    )
    assert tree(tmp_path / "source") == before


def test_a_disk_that_fills_up_while_saving_keeps_what_was_saved(gnp: Gnp, tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk]).returncode
    ):
        pytest.skip("mounting a small file system needs root")
    try:
        keep_all = ["--set", "checkpoint.every_steps=1", "--set", "checkpoint.keep=100"]
        done = gnp("train", *QUICK, *keep_all, "--run-dir", "disk/run")
        line = fails(done, "No space left on device")
        step = int(line.split("the last good checkpoint is step ")[1].split()[0].strip(";"))
        assert json.loads(gnp("eval", "disk/run", "--json").stdout)["step"] == step
    finally:
        subprocess.run(["umount", disk], check=True)
