"""What a person sees while a run trains."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text


class _Rate(ProgressColumn):
    """Images per second of training alone, as the engine measured it."""

    def render(self, task: Task) -> Text:
        rate = task.fields.get("images_per_s")
        return Text(f"{rate:,.0f} img/s" if rate else "", style="progress.data.speed")


class Screen:
    """Progress for a person, on stderr: a bar on a terminal, plain lines elsewhere, only warnings
    when quiet.
    """

    PLAIN_EVERY_S = 10.0

    def __init__(self, *, quiet: bool = False, console: Console | None = None):
        self.console = console or Console(
            stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty()
        )
        self.is_quiet = quiet
        self._total = 0
        self._last_line = time.monotonic()
        self._progress: Progress | None = None

    @contextmanager
    def progress(self, total_steps: int, start_step: int) -> Iterator[None]:
        """Show a bar up to `total_steps` inside the block, if this is a terminal."""
        self._total = total_steps
        if not self.console.is_terminal or self.is_quiet:
            yield
            return
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:.0f}%"),
            _Rate(table_column=Column(no_wrap=True)),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[values]}"),
            console=self.console,
            expand=True,
        )
        self._bar = self._progress.add_task(
            "starting", total=total_steps, completed=start_step, values="", images_per_s=None
        )
        try:
            with self._progress:
                yield
        finally:
            self._progress = None

    def status(self, text: str) -> None:
        """Say in the bar what is going on now."""
        if self._progress:
            self._progress.update(self._bar, description=text)

    def line(self, text: str, style: str | None = None) -> None:
        """Print a line that stays."""
        if not self.is_quiet or style:
            self.console.print(text, markup=False, style=style)

    def update(
        self, step: int, epoch: str, record: Mapping[str, float], images_per_s: float | None
    ) -> None:
        """Show the values of a finished step; without a terminal, one line every `PLAIN_EVERY_S`
        seconds.
        """
        values = (
            f"loss {record['loss']:.2f} error {100 * record['error_rate']:.1f}%"
            f" r {record['r']:.3g} alpha {record['alpha']:.3g}"
        )
        if self._progress:
            self._progress.update(
                self._bar,
                completed=step,
                description=epoch,
                values=values,
                images_per_s=images_per_s,
            )
        elif not self.is_quiet and time.monotonic() - self._last_line >= self.PLAIN_EVERY_S:
            self._last_line = time.monotonic()
            rate = f"  {images_per_s:,.0f} img/s" if images_per_s else ""
            self.console.print(f"{epoch}  step {step}/{self._total}  {values}{rate}", markup=False)
