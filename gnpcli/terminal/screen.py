"""What a person sees while a run trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.table import Column

from gnpcli.terminal import words
from gnpcli.terminal.console import messages
from gnpcli.terminal.progress import Pace, Rate, make_bar, time_left


class Screen:
    """Progress on stderr: a bar on a terminal, plain lines elsewhere, only warnings when quiet."""

    PLAIN_EVERY_S = 10.0

    def __init__(self, *, quiet: bool = False, console: Console | None = None):
        self.console = console or messages()
        self.is_quiet = quiet
        self._total = 0
        self._pace = Pace(self.PLAIN_EVERY_S)
        self._progress: Progress | None = None

    @contextmanager
    def progress(self, total_steps: int, start_step: int) -> Iterator[None]:
        """Show a bar up to `total_steps` inside the block, if this is a terminal."""
        self._total = total_steps
        if not self.console.is_terminal or self.is_quiet:
            yield
            return
        values = TextColumn(
            "{task.fields[values]}", markup=False, table_column=Column(no_wrap=True)
        )
        self._progress = make_bar(self.console, Rate(), time_left(), values)
        self._bar = self._progress.add_task(
            "starting", total=total_steps, completed=start_step, values="", rate=None, unit="images"
        )
        try:
            with self._progress:
                yield
        finally:
            self._progress = None

    def status(self, text: str) -> None:
        """Say in the bar what is going on now."""
        if self._progress:
            self._progress.update(self._bar, description=words.readable(text))

    def line(self, text: str, style: str | None = None) -> None:
        """Print a line that stays. A styled line is printed even when quiet."""
        if not self.is_quiet or style:
            self.console.print(words.readable(text), markup=False, style=style)

    def warn(self, text: str) -> None:
        """Print a warning, which stays, even when quiet."""
        self.line(f"warning: {text}", style="yellow")

    def update(
        self, step: int, epoch: str, record: Mapping[str, float], images_per_s: float | None
    ) -> None:
        """Show the values of a finished step; plain lines come every `PLAIN_EVERY_S` seconds."""
        values = _values(record)
        if self._progress:
            self._progress.update(
                self._bar, completed=step, description=epoch, values=values, rate=images_per_s
            )
        elif not self.is_quiet and self._pace.is_due():
            parts = [epoch, f"step {step}/{self._total}", values]
            if images_per_s:
                parts.append(words.rate(images_per_s))
            self.console.print("  ".join(parts), markup=False)


def _values(record: Mapping[str, float]) -> str:
    error = words.percent(record["error_rate"], digits=1)
    weights = f"r {record['r']:.3g} alpha {record['alpha']:.3g}"
    return f"loss {record['loss']:.2f} error {error} {weights}"
