"""`gnp reproduce-table` for real: cells in processes, killed, failed, refused, told again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from gnpcli.runs.folder import RunFolder
from tests.conftest import Gnp, fails
from tests.tables import TINY, children, command, has_step, records, wait_for

FAILING = f"""{TINY}  wild:
    set:
      gr: {{strategy: constant, r: 1.0e+38}}
"""


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table that ran without anything happening to it."""
    folder = tmp_path_factory.mktemp("table")
    (folder / "tiny.yaml").write_text(TINY)
    done = subprocess.run(
        command("tiny.yaml", "--out", "out"), cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "nano adam seed 0: running" in done.stderr
    assert "(4 of 4 cells)" in done.stderr
    assert "ViT-nano" in done.stdout
    assert "zero-warmup" in done.stdout
    return folder


@pytest.mark.slow
def test_a_table_is_ordinary_run_folders_and_files_that_tell_them(gnp: Gnp, whole: Path):
    out = whole / "out"
    assert {path.name for path in out.iterdir()} >= {
        "cells",
        "table.md",
        "table.csv",
        "runs.csv",
        "table.tex",
        "table.json",
        "table.html",
    }
    assert len(records(out)) == 4
    result = json.loads((out / "table.json").read_text())
    values = {
        (cell["column"], run["seed"]): run["value"]
        for cell in result["cells"]
        for run in cell["runs"]
    }
    for (column, seed), value in values.items():
        summary = json.loads(
            (out / "cells" / "nano" / column / f"seed{seed}" / "summary.json").read_text()
        )
        assert value == pytest.approx(100 * summary["test"]["error_rate"])
    (comparison,) = result["comparisons"]
    mean = sum(values["zero", seed] - values["adam", seed] for seed in (0, 1)) / 2
    assert comparison["difference"]["mean"] == pytest.approx(mean)
    evaluated = json.loads(gnp("eval", out / "cells" / "nano" / "adam" / "seed1", "--json").stdout)
    assert 100 * evaluated["error_rate"] == pytest.approx(values["adam", 1])


@pytest.mark.slow
def test_finished_cells_are_kept_and_told_again(gnp: Gnp, whole: Path):
    before = {path: path.stat().st_mtime_ns for path in whole.glob("out/cells/**/*")}
    done = gnp("reproduce-table", whole / "tiny.yaml", "--out", whole / "out", "--json")
    assert done.returncode == 0, done.stderr
    assert "finished before" in done.stderr
    part = gnp(
        "reproduce-table",
        whole / "tiny.yaml",
        "--out",
        whole / "out",
        "--columns",
        "zero",
        "--json",
    )
    assert json.loads(part.stdout) == json.loads(
        done.stdout
    )  # files tell the whole folder, whatever was run last
    part = gnp(
        "reproduce-table",
        whole / "tiny.yaml",
        "--out",
        whole / "out",
        "--render",
        "--json",
        "--seeds",
        "1",
    )
    assert [cell["n"] for cell in json.loads(part.stdout)["cells"]] == [1, 1]
    rendered = gnp(
        "reproduce-table", whole / "tiny.yaml", "--out", whole / "out", "--render", "--json"
    )
    assert json.loads(rendered.stdout) == json.loads(done.stdout)
    assert {path: path.stat().st_mtime_ns for path in whole.glob("out/cells/**/*")} == before


@pytest.mark.slow
def test_another_configuration_is_refused_before_anything_runs(gnp: Gnp, whole: Path):
    before = {path: path.stat().st_mtime_ns for path in whole.glob("out/**/*")}
    done = gnp(
        "reproduce-table", whole / "tiny.yaml", "--out", whole / "out", "--set", "optimizer.lr=0.5"
    )
    fails(
        done,
        "nano/adam/seed0 holds a run with another configuration (optimizer.lr: 0.002 -> 0.5)",
        "--out",
    )
    assert {path: path.stat().st_mtime_ns for path in whole.glob("out/**/*")} == before


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["table", "cell"])
def test_kill_9_in_the_middle_and_the_same_command_again_change_nothing(
    gnp: Gnp, whole: Path, tmp_path: Path, victim: str
):
    (tmp_path / "tiny.yaml").write_text(TINY)
    process = subprocess.Popen(
        command("tiny.yaml", "--out", "out"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    second = tmp_path / "out" / "cells" / "nano" / "zero" / "seed0"
    wait_for(lambda: has_step(second, 3), process)
    (worker,) = children(process)
    if victim == "table":
        process.kill()
        process.communicate()
        deadline = time.monotonic() + 60  # the worker finds itself alone, saves and stops
        while os.path.exists(f"/proc/{worker}") and time.monotonic() < deadline:
            time.sleep(0.05)
        assert json.loads((second / "summary.json").read_text())["status"] in (
            "interrupted",
            "finished",
        )
        assert len(records(tmp_path / "out")) == 2
    else:
        os.kill(worker, signal.SIGKILL)
        _, told = process.communicate(timeout=300)
        assert process.returncode == 1
        assert "nano zero seed 0: failed: killed by SIGKILL" in told
        assert len(records(tmp_path / "out")) == 4  # the rest went on
    done = gnp("reproduce-table", "tiny.yaml", "--out", "out")
    assert done.returncode == 0, done.stderr
    assert records(tmp_path / "out") == records(whole / "out")
    ours, theirs = (
        json.loads((folder / "out" / "table.json").read_text()) for folder in (tmp_path, whole)
    )
    assert ours["comparisons"] == theirs["comparisons"]


@pytest.mark.slow
def test_a_cell_that_another_process_works_on_waits_for_it(gnp: Gnp, tmp_path: Path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    folder = tmp_path / "out" / "cells" / "nano" / "adam" / "seed0"
    with RunFolder(folder).claimed("if missing"):
        process = subprocess.Popen(
            command("tiny.yaml", "--out", "out", "--columns", "adam", "--seeds", "0"),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        log = folder.with_name("seed0.log")
        wait_for(lambda: log.exists() and "waiting: " in log.read_text(), process)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    assert f"is in use by process {os.getpid()} on " in log.read_text()
    assert RunFolder(folder).summary()["status"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_the_running_cell_and_tells_what_there_is(
    whole: Path, tmp_path: Path, number: signal.Signals
):
    (tmp_path / "tiny.yaml").write_text(TINY.replace("epochs: 2,", "epochs: 4000,"))
    process = subprocess.Popen(
        command("tiny.yaml", "--out", "out"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    first = tmp_path / "out" / "cells" / "nano" / "adam" / "seed0"
    wait_for(lambda: has_step(first, 3), process)
    process.send_signal(number)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 128 + number, told
    assert "Traceback" not in told + first.with_name("seed0.log").read_text()
    assert f"{number.name}: stopping, every running cell saves; Ctrl-C once more" in told
    assert f"error: stopped by {number.name} with 0 of 4 cells finished" in told
    summary = json.loads((first / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert (first / "checkpoints" / str(summary["step"])).is_dir()
    assert "ViT-nano Adam seed 0: interrupted" in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.slow
def test_a_cell_that_fails_is_told_in_a_line_and_the_rest_goes_on(gnp: Gnp, tmp_path: Path):
    (tmp_path / "tiny.yaml").write_text(FAILING)
    done = gnp(
        "reproduce-table", "tiny.yaml", "--out", "out", "--columns", "wild,zero", "--seeds", "0"
    )
    line = fails(
        done,
        "1 of 2 cells failed, the first is nano wild seed 0: step 1: ",
        "of the perturbed pass is",
    )
    assert "Traceback" not in line
    result = json.loads((tmp_path / "out" / "table.json").read_text())
    statuses = {cell["column"]: [run["status"] for run in cell["runs"]] for cell in result["cells"]}
    assert statuses == {"zero": ["finished"], "wild": ["diverged"]}


@pytest.mark.slow
def test_a_table_whose_data_is_missing_says_what_to_do(gnp: Gnp, tmp_path: Path):
    arguments = [
        "--models",
        "vit-ti",
        "--columns",
        "adam",
        "--seeds",
        "0",
        "--data-dir",
        "nowhere",
        "--out",
        "out",
    ]
    done = gnp("reproduce-table", "adam-vs-gr", *arguments)
    fails(
        done,
        "1 of 1 cells failed, the first is vit-ti adam seed 0: ",
        "cifar",
        "the same command tries them again",
    )
    assert not (tmp_path / "out" / "table.md").exists()


@pytest.mark.slow
def test_a_dry_run_times_steps_where_it_is_asked_to_and_runs_nothing(gnp: Gnp, tmp_path: Path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    command = ("reproduce-table", "tiny.yaml", "--out", "out", "--dry-run", "--measure", "--json")
    done = gnp(*command, timeout=900)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    steps = {cell["column"]: (cell["plain_steps"], cell["gnp_steps"]) for cell in result["cells"]}
    assert steps == {"adam": (10, 0), "zero": (5, 5)}
    assert all(
        cell["state"] == "absent"
        and cell["left_s"] == cell["whole_s"] > 0
        and cell["from"] == "measured now"
        for cell in result["cells"]
    )
    assert result["left_s"] > sum(cell["whole_s"] for cell in result["cells"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.yaml"]


@pytest.mark.slow
def test_two_jobs_share_the_cores_and_give_the_same_table(gnp: Gnp, whole: Path, tmp_path: Path):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core only")
    (tmp_path / "tiny.yaml").write_text(TINY)
    done = gnp("reproduce-table", "tiny.yaml", "--out", "out", "--jobs", "2", "--json", timeout=900)
    assert done.returncode == 0, done.stderr
    ours, theirs = json.loads(done.stdout), json.loads((whole / "out" / "table.json").read_text())
    assert (
        [cell["n"] for cell in ours["cells"]] == [cell["n"] for cell in theirs["cells"]] == [2, 2]
    )
    for mine, other in zip(
        ours["cells"], theirs["cells"], strict=True
    ):  # sums of floats in another order
        assert mine["mean"] == pytest.approx(other["mean"], abs=2)


@pytest.mark.parametrize(
    ("arguments", "parts", "status"),
    [
        (["adam-vs-g"], ["unknown table 'adam-vs-g' - did you mean 'adam-vs-gr'"], 1),
        (["nowhere.yaml"], ["cannot read nowhere.yaml"], 1),
        (
            ["adam-vs-gr", "--models", "vit-x"],
            ["--models: table adam-vs-gr has no row 'vit-x' - did you mean"],
            1,
        ),
        (
            ["adam-vs-gr", "--columns", "zero-warmpu"],
            ["no column 'zero-warmpu' - did you mean 'zero-warmup'"],
            1,
        ),
        (
            ["adam-vs-gr", "--variant", "upstream"],
            ["no variant 'upstream' - did you mean 'upstream-compat'"],
            1,
        ),
        (["adam-vs-gr", "--set", "optimizer.lrr=1"], ["--set: unknown key 'optimizer.lrr'"], 1),
        (["adam-vs-gr", "--epochs", "0"], ["--epochs: train.epochs: 0 is out of range"], 1),
        (["adam-vs-gr", "--dataset", "digitz"], ["--dataset: unknown data set 'digitz'"], 1),
        (
            ["adam-vs-gr", "--render"],
            ["tables/adam-vs-gr holds no cell of table adam-vs-gr yet"],
            1,
        ),
        (["adam-vs-gr-digits", "--jobs", "500"], ["--jobs 500, but there are"], 1),
        (["adam-vs-gr", "--seeds", "one"], [], 2),
        (["adam-vs-gr", "--seeds", "1,1"], [], 2),
        (["adam-vs-gr", "--render", "--dry-run"], [], 2),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(
    gnp: Gnp, tmp_path: Path, arguments: list[str], parts: list[str], status: int
):
    done = gnp("reproduce-table", *arguments)
    if status == 1:
        fails(done, *parts)
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_tables_are_listed_and_shown(gnp: Gnp):
    rows = json.loads(gnp("tables", "list", "--json").stdout)
    assert {"adam-vs-gr", "gr-warmups", "sam-vs-gnp", "augmentation", "adam-vs-gr-digits"} <= {
        r["name"] for r in rows
    }
    shown = gnp("tables", "show", "adam-vs-gr").stdout
    assert "zero-warmup (Adam + GR + zero-warmup): preset vit-ti-cifar10, published 13.61" in shown
    assert "gr.mix: raw -> unit" in shown
    assert "not known: on how many devices it ran" in shown
