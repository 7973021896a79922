"""What is shown of a table while its cells run, and how long they still take."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from gnpcli.tables.cells import Cell, make_cells
from gnpcli.tables.display import TableDisplay
from gnpcli.tables.runner import CellProgress
from gnpcli.tables.spec import Table
from gnpcli.tables.time_left import TimeLeft, work
from gnpcli.terminal.screen import Screen
from gnpcli.terminal.words import duration
from tests.tables import NO_CHANGES, write


def some_progress(table: Table) -> list[CellProgress]:
    cells = make_cells(table, ["nano"], ["adam", "zero"], [0, 1], NO_CHANGES, Path("out"))
    return [
        CellProgress(cells[0], "kept", value=4.0),
        CellProgress(cells[1], "running", epoch=3.0, value=55.0),
        CellProgress(cells[2], "finished", value=5.0),
        CellProgress(cells[3], "failed", problem="step 1: the loss is nan"),
    ]


def shown_on(console: Console) -> str:
    """All that a console has written so far."""
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_terminal_shows_a_table_that_fills_in(tmp_path):
    table = write(tmp_path)
    console = Console(file=io.StringIO(), force_terminal=True, width=110)
    with TableDisplay(table, Screen(console=console)) as display:
        display(some_progress(table))
    shown = shown_on(console)
    for part in (
        "2 of 4 cells, 1 failed",
        "4.50 ± 0.71 (2 of 2)",
        "seed 0 epoch 3/16 55.00 %",
        "seed 1 failed",
    ):
        assert part in shown


def test_without_a_terminal_a_line_is_told_once(tmp_path):
    table = write(tmp_path)
    console = Console(file=io.StringIO(), width=200)
    with TableDisplay(table, Screen(console=console)) as display:
        display(some_progress(table))
        display(some_progress(table))
    assert shown_on(console).splitlines() == [
        "nano adam seed 0: finished before, 4.00 %",
        "nano zero seed 0: running, out/cells/nano/zero/seed0.log tells more",
        "nano adam seed 1: 5.00 % (2 of 4 cells)",
        "nano zero seed 1: failed: step 1: the loss is nan",
    ]
    silent = Console(file=io.StringIO())
    with TableDisplay(table, Screen(console=silent, quiet=True)) as display:
        display(some_progress(table))
    assert shown_on(silent) == ""


# --- how long they still take


def small_cells(tmp_path: Path, columns: list[str], seeds: list[int]) -> list[Cell]:
    return make_cells(write(tmp_path), ["nano"], columns, seeds, NO_CHANGES, Path("out"))


def with_model(cell: Cell, name: str) -> Cell:
    config = cell.config.model_copy(
        update={"model": cell.config.model.model_copy(update={"name": name})}
    )
    return replace(cell, row=name, config=config)


def test_work_counts_two_gradients_of_a_penalised_step_and_the_size_of_the_model(tmp_path):
    adam, zero = small_cells(tmp_path, ["adam", "zero"], [0])
    share = (
        zero.config.schedule.warmup_epochs / zero.config.train.epochs
    )  # of zero-warmup that is plain
    assert 0 < share < 1
    assert work(zero.on_one_device) == pytest.approx(work(adam.on_one_device) * (2 - share))
    assert work(with_model(adam, "vit-ti").on_one_device) == pytest.approx(
        work(adam.on_one_device) * 0.689 / 0.00222, rel=1e-6
    )


def test_time_left_is_told_from_the_work_done_since_the_start(tmp_path):
    cells = small_cells(tmp_path, ["adam"], [0, 1, 2, 3])
    kept, resumed, running, waiting = (CellProgress(cell) for cell in cells)
    kept.status, resumed.epoch = "kept", 8.0  # of 16, in an earlier session
    items = [kept, resumed, running, waiting]
    left = TimeLeft(start=100.0)
    assert left(items, now=101.0) is None  # nothing was done in this session
    resumed.status, resumed.epoch = "running", 12.0  # 4 epochs in 10 s, 4 + 16 + 16 to go
    assert left(items, now=110.0) == pytest.approx(90)
    resumed.status, running.status, running.epoch = (
        "finished",
        "running",
        8.0,
    )  # 16 in 30 s, 8 + 16 to go
    assert left(items, now=130.0) == pytest.approx(45)
    running.status = "failed"  # 8 epochs of it were done, none are to come
    assert left(items, now=130.0) == pytest.approx(30)
    waiting.status = "finished"
    assert left(items, now=160.0) == 0


def test_a_cell_of_a_larger_model_has_more_left(tmp_path):
    (small,) = small_cells(tmp_path, ["adam"], [0])
    items = [CellProgress(small), CellProgress(with_model(small, "vit-ti"))]
    left = TimeLeft(start=0.0)
    left(items, now=0.0)
    items[0].status = "finished"
    assert left(items, now=1.0) == pytest.approx(0.689 / 0.00222, rel=1e-6)


def test_a_terminal_tells_the_time_left(tmp_path):
    items = [
        CellProgress(cell, "running", epoch=0.0) for cell in small_cells(tmp_path, ["adam"], [0, 1])
    ]
    console = Console(file=io.StringIO(), force_terminal=True, width=150)
    times = iter([0.0, 1.0, 10.0])  # of the start and of each call
    screen = Screen(console=console)
    with TableDisplay(write(tmp_path), screen, now=lambda: next(times)) as display:
        display(items)
        assert "left" not in shown_on(console)
        items[0].epoch = 1.0  # one epoch of 32 in 10 s
        display(items)
    assert "about 5.2 min left; Ctrl-C" in shown_on(console)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59, "59 s"), (90, "1.5 min"), (5400, "1.5 h"), (216000, "2.5 days")],
)
def test_a_duration_is_told_in_its_largest_unit(seconds, text):
    assert duration(seconds) == text
