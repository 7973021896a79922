"""`gnp compare`: what differs, where runs ended, what they cost, and when they do not compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gnpcli.errors import ConfigError
from gnpcli.recipes.presets import resolve
from gnpcli.runs.compare import compare
from gnpcli.runs.folder import RunFolder
from tests.conftest import Gnp, fails


def make_run(folder: Path, *assignments: str, errors: tuple[float, ...] = (0.5, 0.1, 0.2)) -> Path:
    """Write the run folder of 44 steps an epoch, one epoch for each error; a session ended after
    the first.
    """
    RunFolder(folder).create(resolve(None, [f"train.epochs={max(len(errors), 4)}", *assignments]))
    lines: list[dict[str, Any]] = []
    for epoch, error in enumerate(errors, start=1):
        lines += [
            {
                "step": 44 * epoch,
                "epoch": epoch,
                "split": "train",
                "elapsed_s": 5.0 if epoch == 1 else float(epoch),
            },
            {
                "step": 44 * epoch,
                "epoch": epoch,
                "split": "test",
                "error_rate": error,
                "loss": 2 * error,
            },
        ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "summary.json").write_text(
        json.dumps({"status": "stopped", "total_steps": 176, "num_parameters": 7})
    )
    return folder


def test_final_best_and_cost_of_each_run(tmp_path):
    said: list[str] = []
    one = make_run(tmp_path / "a" / "run", "gr.strategy=none")
    two = make_run(
        tmp_path / "b" / "run",
        "gr.strategy=zero-warmup",
        "schedule.warmup_epochs=1",
        errors=(0.3, 0.2),
    )
    result = compare([one, two], said.append)
    first, second = result["runs"]
    assert [first["label"], second["label"]] == ["a/run", "b/run"]
    assert first["final"]["test"] == {"error_rate": 0.2, "loss": 0.4, "step": 132, "epoch": 3}
    assert first["best"]["test"] == {"error_rate": 0.1, "loss": 0.2, "step": 88, "epoch": 2}
    assert first["cost"]["training_time_s"] == 5 + 3
    assert (
        first["cost"]["plain_steps"],
        first["cost"]["gnp_steps"],
        first["cost"]["gradients"],
    ) == (132, 0, 132)
    assert (
        second["cost"]["plain_steps"],
        second["cost"]["gnp_steps"],
        second["cost"]["gradients"],
    ) == (44, 44, 132)
    assert result["differences"]["gr.strategy"] == ["none", "zero-warmup"]
    assert "optimizer.lr" not in result["differences"]
    assert (result["same_data"], said) == (True, [])


def test_runs_of_different_data_and_damaged_logs_are_flagged(tmp_path):
    said: list[str] = []
    one = make_run(tmp_path / "a")
    two = make_run(tmp_path / "b", "data.validation_fraction=0.1")
    with open(two / "metrics.jsonl", "a") as file:
        file.write('{"step": 1')
    result = compare([one, two], said.append)
    assert not result["same_data"]
    assert "line 7" in said[0]
    assert "is cut short" in said[0]
    assert said[1].startswith(
        "these runs are not on the same data (data.validation_fraction: 0.0, 0.1)"
    )


def test_a_run_that_has_logged_nothing_has_cost_nothing(tmp_path):
    one, two = make_run(tmp_path / "a"), make_run(tmp_path / "b", "train.seed=1", errors=())
    (two / "summary.json").unlink()
    _, empty = compare([one, two], lambda text: None)["runs"]
    assert (empty["status"], empty["step"], empty["final"], empty["cost"]["gradients"]) == (
        "unfinished",
        0,
        {},
        0,
    )


def test_what_cannot_be_compared_is_refused(tmp_path):
    one = make_run(tmp_path / "a")
    with pytest.raises(ConfigError, match="comparing takes two runs at least"):
        compare([one], lambda text: None)
    with pytest.raises(ConfigError, match="is given twice"):
        compare([one, tmp_path / "b" / ".." / "a"], lambda text: None)
    with pytest.raises(ConfigError, match="is not a run folder"):
        compare([one, tmp_path], lambda text: None)


def test_the_command_prints_a_column_for_each_run(gnp: Gnp, tmp_path: Path):
    make_run(tmp_path / "a", "gr.strategy=none")
    make_run(tmp_path / "b", "data.augment=basic")
    done = gnp("compare", "a", "b")
    assert done.returncode == 0, done.stderr
    lines = {line.split("  ")[0].strip(): line.split() for line in done.stdout.splitlines()}
    assert lines["gr.strategy"][1:] == ["none", "zero-warmup"]
    assert lines["test error"][2:] == ["20.00", "%", "20.00", "%"]
    assert lines["best test error"][3:5] == ["10.00", "%"]
    assert json.loads(gnp("compare", "a", "b", "--json").stdout)["same_data"]
    fails(gnp("compare", "a", "nowhere"), "nowhere is not a run folder")
