"""Odd logs, summaries and sessions: read in part with a warning, or refused in one line."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gnpcli.errors import GnpError
from gnpcli.report.plot import plot
from gnpcli.report.run_page import write_report
from gnpcli.runs.compare import compare
from gnpcli.runs.contents import BOUNDS, HIGHEST_COUNT, is_number, is_record
from gnpcli.runs.folder import RunFolder
from gnpcli.runs.history import read_history
from gnpcli.runs.log import MetricsLog
from gnpcli.strict_json import to_json
from tests.odd_logs import RECORDS, SOUND, Case, cases, write_run

CASES = list(cases())


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return two run folders; the first gets the odd file of a case."""
    folder = tmp_path_factory.mktemp("odd")
    odd, sound = folder / "odd", folder / "sound"
    write_run(odd)
    write_run(sound)
    return odd, sound


def each(chosen: list[Case], folder: Path) -> Iterator[Case]:
    """Yield the cases, each while its file is in the folder."""
    for case in chosen:
        (folder / case.file).write_bytes(case.content)
        try:
            yield case
        finally:
            (folder / case.file).write_bytes(SOUND[case.file])


def check_read(case: Case, folder: Path) -> None:
    """Read the folder's files, and check that all that is read is what it should be."""
    told: list[str] = []
    run = RunFolder(folder, told.append)
    records, summary, sessions = run.records(), run.summary(), run.sessions()
    assert len(told) <= 1, case.name
    assert all(case.file in text and len(text) < 500 for text in told), case.name
    for record in records:
        assert is_record(record), case.name
    assert isinstance(summary["status"], str)
    assert isinstance(sessions, list)
    if case.file != "metrics.jsonl":
        assert len(records) == len(RECORDS)


def displays(odd: Path, sound: Path) -> dict[str, Callable[[], Any]]:
    """Return what shows the runs, by name."""
    told: list[str] = []
    picture = odd.parent / "plot.svg"
    options: dict[str, Any] = {"spread": "range", "columns": 3, "warn": told.append}
    return {
        "compare": lambda: json.loads(to_json(compare([odd, sound], told.append))),
        "report": lambda: write_report(odd, odd.parent / "report.html"),
        "plot": lambda: plot([odd, sound], picture, metrics=[], axis="epoch", **options),
        "plot over steps": lambda: plot([odd], picture, metrics=["loss"], axis="step", **options),
        "plot over time": lambda: plot([odd], picture, metrics=["error"], axis="time", **options),
    }


def check_shown(case: Case, name: str, show: Callable[[], Any]) -> None:
    """Show a run; only our own error of one line may come of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            show()
        except GnpError as error:
            if "\n" in str(error):
                pytest.fail(f"{name} of {case.name!r} says several lines: {error}")
        except Exception as error:
            raise AssertionError(f"{name} of {case.name!r}") from error


def test_every_odd_file_is_read_as_what_it_should_be(two: tuple[Path, Path]):
    for case in each(CASES[::11], two[0]):
        check_read(case, two[0])


def test_odd_files_are_shown(two: tuple[Path, Path]):
    for index, case in enumerate(each(CASES[::121], two[0])):
        ways = list(displays(*two).items())
        check_shown(case, *ways[0])
        if index % 4 == 0:
            check_shown(case, *ways[1 + index // 4 % 4])


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_all_odd_files_are_read_and_most_are_shown(two: tuple[Path, Path], part: int):
    for index, case in enumerate(each(CASES[part::4], two[0])):
        check_read(case, two[0])
        if index % 4 == 0:
            ways = list(displays(*two).items())
            check_shown(case, *ways[index // 4 % len(ways)])


SOUND_RECORD = RECORDS[1]


@pytest.mark.parametrize("key", BOUNDS)
@pytest.mark.parametrize("value", [-1e20, 1e20, 1e300, 2**63, True, "0.5", [0.5], {"a": 1}])
def test_a_number_outside_its_bounds_is_no_record(key: str, value: object):
    assert is_record({**SOUND_RECORD, key: BOUNDS[key][1]})
    assert not is_record({**SOUND_RECORD, key: value})


@pytest.mark.parametrize("step", [-1, True, 1.0, "1", None, HIGHEST_COUNT + 1, 10**400, [1]])
def test_a_step_is_a_whole_number(step: object):
    assert not is_record({**SOUND_RECORD, "step": step})


@pytest.mark.parametrize(
    "name", ["", "\0", "a\nb", "\x1b[2J", "\ud800", "\u202e", "x" * 201], ids=ascii
)
@pytest.mark.parametrize("place", ["split", "weights", "non_finite", "key"])
def test_a_name_is_short_and_printable(name: str, place: str):
    values: dict[str, object] = {"non_finite": [name], "split": name, "weights": name}
    assert not is_record({**SOUND_RECORD, name if place == "key" else place: values.get(place, 1)})


def test_what_a_run_may_log_is_a_record(tmp_path: Path):
    log = MetricsLog(tmp_path, 0)
    values = {"error_rate": 1.0000001, "loss": 3e38, "猫 1": -1, "nan": float("nan"), "far": 1e300}
    with log:
        log.write({"step": 0, "split": "test", "epoch": 0.0, **values})
    (record,) = RunFolder(tmp_path).records()
    assert record["non_finite"] == ["nan", "far"]
    assert all(is_number(record[key]) for key in ("error_rate", "loss", "猫 1"))


@pytest.mark.parametrize("file", SOUND)
def test_a_pipe_in_the_place_of_a_file_is_left_out(tmp_path: Path, file: str):
    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes here")
    write_run(tmp_path / "run")
    (tmp_path / "run" / file).unlink()
    os.mkfifo(tmp_path / "run" / file)
    told: list[str] = []
    run = RunFolder(tmp_path / "run", told.append)
    run.records(), run.summary(), run.sessions()
    assert told == [f"{tmp_path / 'run' / file} is damaged (not a file): it is left out"]


def with_log(folder: Path, *records: dict[str, Any]) -> Path:
    write_run(folder)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(lines)
    return folder


def test_gradients_are_counted_where_the_epoch_is_rounded_to_0(tmp_path: Path):
    early = {"step": 3, "split": "train", "epoch": 0.0}
    odd = with_log(tmp_path / "odd", early)
    write_run(tmp_path / "sound")
    first, second = compare([odd, tmp_path / "sound"], print)["runs"]
    assert first["cost"]["gradients"] >= 3
    assert second["cost"]["plain_steps"] + second["cost"]["gnp_steps"] == 88
    (odd / "summary.json").unlink()
    first, _ = compare([odd, tmp_path / "sound"], print)["runs"]
    assert first["cost"]["gradients"] == 0


def test_too_many_metrics_are_not_all_drawn(tmp_path: Path):
    many = {f"key {index}": 0.5 for index in range(200)}
    odd = with_log(tmp_path / "odd", {"step": 1, "split": "train", "epoch": 1.0, **many})
    page = write_report(odd, None).read_text()
    assert "164 more metrics are logged and not drawn" in page
    assert page.count('<figure class="chart">') == 36


def test_names_are_neither_markup_nor_mathematics(tmp_path: Path):
    names = ["<script>alert(1)</script>", "$\\frac{$", "</svg><b>"]
    values = dict.fromkeys(names, 0.5)
    odd = with_log(tmp_path / "$x^{$", {"step": 1, "split": "train", "epoch": 1.0, **values})
    page = write_report(odd, None).read_text()
    assert "<script>alert" not in page
    assert "</svg><b>" not in page
    told: list[str] = []
    options: dict[str, Any] = {"axis": "step", "spread": "range", "columns": 2}
    drawn = plot([odd], tmp_path / "p.svg", metrics=names, warn=told.append, **options)
    assert drawn[1:] == [f"  $x^{{$: {odd}"]
    assert "frac{" in (tmp_path / "p.svg").read_text()


def test_curves_of_steps_that_fall_are_those_of_steps_that_rise(tmp_path: Path):
    records = [
        {"step": step, "split": "train", "epoch": step / 10, "loss": loss, "elapsed_s": elapsed}
        for step, loss, elapsed in ((30, 3.0, 1.0), (10, 9.0, 2.0), (20, 2.0, 3.0), (10, 1.0, 4.0))
    ]
    history = read_history(with_log(tmp_path / "odd", *records))
    steps, x, y = history.series("train", "loss", "step")
    assert (steps.tolist(), x.tolist(), y.tolist()) == ([10, 20, 30], [10, 20, 30], [1, 2, 3])
    assert history.series("train", "loss", "epoch")[1].tolist() == [1, 2, 3]
    assert np.isfinite(history.series("train", "loss", "time")[1]).all()
