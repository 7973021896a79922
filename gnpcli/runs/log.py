"""What a run tells: ``metrics.jsonl`` and TensorBoard events for machines, a progress bar or plain lines for people."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from gnpcli.files import write_atomically

Record = dict[str, Any]


def read_metrics(path: Path, on_damage: Callable[[str], None] | None = None) -> list[Record]:
    """Return the records of a ``metrics.jsonl``, up to the first line that is not one; none where there is no file.

    Args:
        path: The file.
        on_damage: Told in a sentence which line is damaged and how much was read, where one is: a crash cuts the last
            line short, a full disk or a power cut can leave worse.
    """
    records: list[Record] = []
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    for number, line in enumerate(lines, start=1):
        if not line and number == len(lines):
            break
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not {"step", "split"} <= record.keys():
                raise ValueError
        except ValueError:  # also what is not UTF-8
            if on_damage is not None:
                what = "is cut short" if number == len(lines) else "is damaged"
                left = "" if number >= len(lines) - 1 else f", and {len(lines) - number - 1} line(s) after it are not"
                on_damage(f"line {number} of {path} {what}: the {len(records)} record(s) before it are read{left}")
            break
        records.append(record)
    return records


def training_time_s(records: Sequence[Record]) -> float:
    """Return the wall time in seconds of all sessions of a run, without what was lost and trained again."""
    total = last = 0.0
    for record in records:
        elapsed = record.get("elapsed_s")
        if elapsed is None:
            continue
        if elapsed < last:  # a session's clock starts at 0
            total += last
        last = elapsed
    return total + last


class MetricsLog:
    """Appends records to ``metrics.jsonl`` and to TensorBoard events in the run folder; a context manager.

    Both are written by this thread, so that a full disk stops the run where it can be said, not a writer behind it.

    Args:
        run_dir: The run folder.
        start_step: Steps done when the run (re)starts; records past it, of a run that was killed after its last
            checkpoint, are dropped: those steps come again.
        on_damage: As in `read_metrics`, of the file that is there already.

    Raises:
        OSError: Here, in `write` or at the end: the files cannot be written.
    """

    FLUSH_EVERY_S = 10.0

    def __init__(self, run_dir: Path, start_step: int, on_damage: Callable[[str], None] | None = None):
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # loads numpy; reading records does not need it
        from tensorboardX.record_writer import RecordWriter

        self.path = run_dir / "metrics.jsonl"
        if self.path.exists():
            kept = [record for record in read_metrics(self.path, on_damage) if record["step"] <= start_step]
            write_atomically(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = open(self.path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed in __exit__
        self._events = RecordWriter(str(run_dir / f"events.out.tfevents.{time.time():.6f}.gnp"))
        self._event = Event
        self._flushed = time.monotonic()
        self._add(file_version="brain.Event:2")
        # Tells TensorBoard to forget what an earlier session wrote past this step.
        self._add(step=start_step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, record: Mapping[str, Any]) -> None:
        """Write one record, which has `step` and `split`; a float that is not finite becomes null and is named."""
        finite = {key: _finite(value) for key, value in record.items()}
        lost = [key for key, value in record.items() if value is not None and finite[key] is None]
        if lost:
            finite["non_finite"] = lost
        self._file.write(json.dumps(finite) + "\n")
        values = [
            {"tag": f"{record['split']}/{key}", "simple_value": value}
            for key, value in finite.items()
            if isinstance(value, int | float) and key not in ("step", "epoch")
        ]
        self._add(step=record["step"], summary={"value": values})
        if time.monotonic() - self._flushed > self.FLUSH_EVERY_S:
            self._events.flush()
            self._flushed = time.monotonic()

    def _add(self, **fields: Any) -> None:
        self._events.write(self._event(wall_time=time.time(), **fields).SerializeToString())

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # An error on its way out is the first one, and says more than what it makes of closing these.
        with suppress(OSError) if error else nullcontext():
            self._file.close()
        with suppress(OSError) if error else nullcontext():
            self._events.close()


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Clock:
    """Wall time of training: since the start, and images/s between pauses (compilation, evaluation, saving)."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._start = self._mark = time.perf_counter()
        self._marked_step: int | None = None
        self._trained_s = 0.0
        self._trained_steps = 0

    def pause(self, step: int) -> None:
        """Leave out the time since the last rate, and start again behind `step`."""
        self._mark, self._marked_step = time.perf_counter(), step

    def rate(self, step: int) -> dict[str, Any]:
        """Return images/s since the mark (None for the first step behind a pause) and the seconds since the start."""
        now = time.perf_counter()
        rate = None
        if self._marked_step is not None and step > self._marked_step:
            steps, elapsed = step - self._marked_step, now - self._mark
            rate = steps * self._batch_size / elapsed
            self._trained_s += elapsed
            self._trained_steps += steps
        self._mark, self._marked_step = now, step
        return {"images_per_s": rate, "elapsed_s": round(now - self._start, 3)}

    def totals(self) -> dict[str, Any]:
        """Return the seconds since the start, and the images/s over all steps that a rate was given for."""
        images = self._trained_steps * self._batch_size
        return {
            "elapsed_s": round(time.perf_counter() - self._start, 3),
            "images_per_s": images / self._trained_s if self._trained_s else None,
        }


class _Rate(ProgressColumn):
    """Images per second of training alone, as the engine measured it."""

    def render(self, task: Task) -> Text:
        rate = task.fields.get("images_per_s")
        return Text(f"{rate:,.0f} img/s" if rate else "", style="progress.data.speed")


class Screen:
    """Progress for a person, on stderr: a bar on a terminal, plain lines elsewhere, only warnings when quiet."""

    PLAIN_EVERY_S = 10.0

    def __init__(self, *, quiet: bool = False, console: Console | None = None):
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())
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

    def update(self, step: int, epoch: str, record: Mapping[str, float], images_per_s: float | None) -> None:
        """Show the values of a finished step; without a terminal, one line every `PLAIN_EVERY_S` seconds."""
        values = (
            f"loss {record['loss']:.2f} error {100 * record['error_rate']:.1f}%"
            f" r {record['r']:.3g} alpha {record['alpha']:.3g}"
        )
        if self._progress:
            self._progress.update(
                self._bar, completed=step, description=epoch, values=values, images_per_s=images_per_s
            )
        elif not self.is_quiet and time.monotonic() - self._last_line >= self.PLAIN_EVERY_S:
            self._last_line = time.monotonic()
            rate = f"  {images_per_s:,.0f} img/s" if images_per_s else ""
            self.console.print(f"{epoch}  step {step}/{self._total}  {values}{rate}", markup=False)
