"""The parts of which progress is shown: a bar's columns, and how often a plain line comes."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from gnpcli.terminal import words


class Amount(ProgressColumn):
    """Units done of those in all; the field `unit` names them."""

    def __init__(self) -> None:
        super().__init__(table_column=Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        """Return the text of a task."""
        return Text(words.amount(int(task.completed), int(task.total or 0), task.fields["unit"]))


class Rate(ProgressColumn):
    """Units a second: the field `rate` where a task has one, else what the bar measures itself."""

    def __init__(self) -> None:
        super().__init__(table_column=Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        """Return the text of a task, which is empty as long as no rate is known."""
        speed = task.fields.get("rate", task.speed)
        if not speed:
            return Text("")
        return Text(words.rate(speed, task.fields["unit"]), style="progress.data.speed")


def make_bar(
    console: Console,
    *columns: ProgressColumn,
    is_transient: bool = False,
    draws_itself: bool = True,
) -> Progress:
    """Return a bar over the whole width, with a title before it and `columns` after it.

    Args:
        console: Where it is drawn.
        columns: What stands after the bar.
        is_transient: Whether it is wiped when it ends.
        draws_itself: Whether a thread draws it; else whoever updates it does.
    """
    return Progress(
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        BarColumn(bar_width=None),
        *columns,
        console=console,
        expand=True,
        transient=is_transient,
        auto_refresh=draws_itself,
    )


def time_left() -> ProgressColumn:
    """Return a column with an estimate of the time left."""
    return TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True))


class Pace:
    """Says when something is due that is told every `every_s` seconds."""

    def __init__(self, every_s: float):
        self._every_s = every_s
        self._last = time.monotonic()

    def is_due(self, *, now: bool = False) -> bool:
        """Return whether the time has come, or it shall be `now`; if so, start to wait again."""
        passed = time.monotonic() - self._last
        if not now and passed < self._every_s:
            return False
        self._last = time.monotonic()
        return True
