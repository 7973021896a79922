"""How far the loading of data is: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import Progress

from gnpcli.terminal import words
from gnpcli.terminal.progress import Amount, Pace, Rate, make_bar, time_left


class LoadingDisplay:
    """Shows how far a `gnpcli.data.progress.ProgressListener` is told to be; a context manager.

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
        self._bar: Progress | None = None
        if console.is_terminal and not quiet:
            # Whoever calls draws, no thread does: TFDS replaces Python's import while it is
            # imported itself, and rich imports as it draws.
            self._bar = make_bar(
                console, Amount(), Rate(), time_left(), is_transient=True, draws_itself=False
            )
        self._pace = Pace(self.PLAIN_EVERY_S if self._bar is None else self.BAR_EVERY_S)

    def __call__(self, done: int, total: int, what: str = "reading", unit: str = "images") -> None:
        """Show where a piece of work stands."""
        if self._quiet:
            return
        is_new, self._what = what != self._what, what
        title = words.readable(f"{what} {self._name}" if what == "reading" else what)
        if self._bar is not None:
            self._draw(self._bar, title, done, total, unit, is_new)
        elif self._pace.is_due(now=is_new):
            self._line(f"{title}: {words.amount(done, total, unit)}")

    def _draw(
        self, bar: Progress, title: str, done: int, total: int, unit: str, is_new: bool
    ) -> None:
        if is_new:
            for task in bar.task_ids:
                bar.remove_task(task)
            bar.add_task(title, completed=done, total=total or None, unit=unit)
            bar.start()
        bar.update(bar.task_ids[0], completed=done, total=total or None)
        if self._pace.is_due(now=is_new or done == total):
            bar.refresh()

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
