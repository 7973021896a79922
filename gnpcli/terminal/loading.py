"""How far the loading of data is, for a person: a bar on a terminal, a line every few seconds
elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text


class LoadingDisplay:
    """Shows what it is called with, as `gnpcli.data.progress.Progress`; a context manager.

    Args:
        name: The data set.
        console: Where a bar goes, if it is a terminal.
        line: Prints a line where it is not one.
        quiet: Show nothing.
    """

    PLAIN_EVERY_S = 2.0
    BAR_EVERY_S = 0.1

    def __init__(
        self, name: str, console: Console, line: Callable[[str], None], *, quiet: bool = False
    ):
        self._name, self._line, self._quiet = name, line, quiet
        self._what: str | None = None
        self._told = 0.0
        self._bar: Progress | None = None
        if console.is_terminal and not quiet:
            self._bar = Progress(
                TextColumn("{task.description}", table_column=Column(no_wrap=True)),
                BarColumn(bar_width=None),
                _Amount(table_column=Column(no_wrap=True)),
                _Rate(table_column=Column(no_wrap=True)),
                TimeRemainingColumn(compact=True),
                console=console,
                expand=True,
                transient=True,
                # Drawn by whoever calls, not by a thread: TFDS replaces Python's import while it is
                # imported itself, and rich imports as it draws.
                auto_refresh=False,
            )

    def __call__(self, done: int, total: int, what: str = "reading", unit: str = "images") -> None:
        """Show where a piece of work stands."""
        if self._quiet:
            return
        is_new, self._what = what != self._what, what
        title = f"{what} {self._name}" if what == "reading" else what
        if self._bar is not None:
            if is_new:
                for task in self._bar.task_ids:
                    self._bar.remove_task(task)
                self._bar.add_task(title, completed=done, total=total or None, unit=unit)
                self._bar.start()
            self._bar.update(self._bar.task_ids[0], completed=done, total=total or None)
            if is_new or done == total or time.monotonic() - self._told > self.BAR_EVERY_S:
                self._told = time.monotonic()
                self._bar.refresh()
        elif is_new or time.monotonic() - self._told > self.PLAIN_EVERY_S:
            self._told = time.monotonic()
            self._line(f"{title}: {_amount(done, total, unit)}")

    def __enter__(self) -> LoadingDisplay:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


class _Amount(ProgressColumn):
    """Units done of those in all."""

    def render(self, task: Task) -> Text:
        return Text(_amount(int(task.completed), int(task.total or 0), task.fields["unit"]))


class _Rate(ProgressColumn):
    """Units a second."""

    def render(self, task: Task) -> Text:
        if task.speed is None:
            return Text("")
        is_bytes = task.fields["unit"] == "bytes"
        return Text(f"{task.speed / 1e6:.1f} MB/s" if is_bytes else f"{task.speed:,.0f} img/s")


def _amount(done: int, total: int, unit: str) -> str:
    if unit == "bytes":
        return f"{done / 1e6:.1f}" + (f"/{total / 1e6:.1f}" if total else "") + " MB"
    return f"{done:,}" + (f"/{total:,}" if total else "") + f" {unit}"
