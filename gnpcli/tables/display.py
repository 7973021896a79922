"""A table that fills in while its cells run: live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table as RichTable
from rich.text import Text

from gnpcli.tables.runner import Progress, Status
from gnpcli.tables.spec import Table
from gnpcli.tables.statistics import describe
from gnpcli.tables.time_left import TimeLeft, duration
from gnpcli.tables.values import is_percentage

PLAIN_EVERY_S = 60.0
"""Seconds between two lines about a running cell, without a terminal."""

_DONE: tuple[Status, ...] = ("kept", "finished")


class TableDisplay:
    """Shows what it is called with; a context manager.

    Args:
        table: The table.
        console: Standard error.
        quiet: Show nothing.
    """

    def __init__(self, table: Table, console: Console, *, quiet: bool):
        self._table, self._console, self._quiet = table, console, quiet
        self._unit = " %" if is_percentage(table.spec.metric) else ""
        self._start = time.monotonic()
        self._left = TimeLeft(self._start)
        self._told: dict[str, tuple[Status, float]] = {}
        self._live: Live | None = None
        if console.is_terminal and not quiet:
            self._live = Live(console=console, refresh_per_second=4, transient=True)

    def __call__(self, progress: Sequence[Progress]) -> None:
        """Show where all cells stand."""
        if self._live is not None:
            self._live.update(self._picture(progress))
        elif not self._quiet:
            self._tell(progress)

    def _picture(self, progress: Sequence[Progress]) -> RichTable:
        done = sum(item.status in _DONE for item in progress)
        failed = sum(item.status == "failed" for item in progress)
        minutes, seconds = divmod(int(time.monotonic() - self._start), 60)
        title = f"{self._table.spec.title}: {done} of {len(progress)} cells" + (
            f", {failed} failed" if failed else ""
        )
        left_s = self._left(progress)
        left = "" if left_s is None else f", about {duration(left_s)} left"
        rows = list(dict.fromkeys(item.cell.row for item in progress))
        columns = list(dict.fromkeys(item.cell.column for item in progress))
        picture = RichTable(
            title=f"{title}, {minutes}:{seconds:02d}{left}; Ctrl-C saves and stops",
            box=None, title_justify="left", pad_edge=False,
        )  # fmt: skip
        for name in ("", *(self._table.label("columns", column) for column in columns)):
            picture.add_column(Text(name, style="bold"))
        for row in rows:
            cells = [
                self._cell(
                    [
                        item
                        for item in progress
                        if (item.cell.row, item.cell.column) == (row, column)
                    ]
                )
                for column in columns
            ]
            picture.add_row(Text(self._table.label("rows", row)), *cells)
        return picture

    def _cell(self, items: Sequence[Progress]) -> Text:
        values = [item.value for item in items if item.status in _DONE and item.value is not None]
        lines = []
        if values:
            sample = describe(values)
            spread = "" if sample.std is None else f" ± {sample.std:.2f}"
            lines.append(
                Text(f"{sample.mean:.2f}{spread} ({sample.n} of {len(items)})", style="bold")
            )
        lines += [
            Text(self._running(item), style="cyan") for item in items if item.status == "running"
        ]
        lines += [
            Text(f"seed {item.cell.seed} failed", style="red")
            for item in items
            if item.status == "failed"
        ]
        return Text("\n").join(lines) if lines else Text("waiting", style="dim")

    def _running(self, item: Progress) -> str:
        parts = [f"seed {item.cell.seed}"]
        if item.epoch is not None:
            parts.append(f"epoch {item.epoch:.0f}/{item.cell.config.train.epochs}")
        if item.value is not None:
            parts.append(f"{item.value:.2f}{self._unit}")
        return " ".join(parts)

    def _tell(self, progress: Sequence[Progress]) -> None:
        done = sum(item.status in _DONE for item in progress)
        now = time.monotonic()
        for item in progress:
            before, when = self._told.get(item.cell.name, ("waiting", now))
            is_new = item.status != before
            if is_new or (item.status == "running" and now - when >= PLAIN_EVERY_S):
                self._told[item.cell.name] = (item.status, now)
                self._console.print(
                    self._line(item, is_new, f"{done} of {len(progress)}"), markup=False
                )

    def _line(self, item: Progress, is_new: bool, done: str) -> str:
        name, cell = item.cell.name, item.cell
        match item.status:
            case "kept":
                return f"{name}: finished before, {_value(item, self._unit)}"
            case "finished":
                return f"{name}: {_value(item, self._unit)} ({done} cells)"
            case "failed":
                return f"{name}: failed: {item.problem}"
            case "running" if is_new:
                return f"{name}: running, {cell.log} tells more"
            case "running":
                return f"{cell.row} {cell.column} {self._running(item)}"
            case _:
                return f"{name}: {item.status}"

    def __enter__(self) -> TableDisplay:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()


def _value(item: Progress, unit: str) -> str:
    return "no value" if item.value is None else f"{item.value:.2f}{unit}"
