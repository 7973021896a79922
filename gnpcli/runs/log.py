"""What a run tells: ``metrics.jsonl`` and TensorBoard events for machines, a progress bar or plain
lines for people.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from gnpcli.files import write_atomically

Record = dict[str, Any]


def read_metrics(path: Path, on_damage: Callable[[str], None] | None = None) -> list[Record]:
    """Return the records of a ``metrics.jsonl``, up to the first line that is not one; none where
    there is no file.

    Args:
        path: The file.
        on_damage: Told in a sentence which line is damaged and how much was read, where one is: a
            crash cuts the last line short, a full disk or a power cut can leave worse.
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
                left = (
                    ""
                    if number >= len(lines) - 1
                    else f", and {len(lines) - number - 1} line(s) after it are not"
                )
                on_damage(
                    f"line {number} of {path} {what}: the {len(records)} record(s) before it are "
                    f"read{left}"
                )
            break
        records.append(record)
    return records


def training_time_s(records: Sequence[Record]) -> float:
    """Return the wall time in seconds of all sessions of a run, without what was lost and trained
    again.
    """
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
    """Appends records to ``metrics.jsonl`` and to TensorBoard events in the run folder; a context
    manager.

    Both are written by this thread, so that a full disk stops the run where it can be said, not a
    writer behind it.

    Args:
        run_dir: The run folder.
        start_step: Steps done when the run (re)starts; records past it, of a run that was killed
            after its last checkpoint, are dropped: those steps come again.
        on_damage: As in `read_metrics`, of the file that is there already.

    Raises:
        OSError: Here, in `write` or at the end: the files cannot be written.
    """

    FLUSH_EVERY_S = 10.0

    def __init__(
        self, run_dir: Path, start_step: int, on_damage: Callable[[str], None] | None = None
    ):
        from tensorboardX.proto.event_pb2 import (
            Event,
            SessionLog,
        )  # loads numpy; reading records does not need it
        from tensorboardX.record_writer import RecordWriter

        self.path = run_dir / "metrics.jsonl"
        if self.path.exists():
            kept = [
                record
                for record in read_metrics(self.path, on_damage)
                if record["step"] <= start_step
            ]
            write_atomically(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = open(self.path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed in __exit__
        self._events = RecordWriter(str(run_dir / f"events.out.tfevents.{time.time():.6f}.gnp"))
        self._event = Event
        self._flushed = time.monotonic()
        self._add(file_version="brain.Event:2")
        # Tells TensorBoard to forget what an earlier session wrote past this step.
        self._add(step=start_step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, record: Mapping[str, Any]) -> None:
        """Write one record, which has `step` and `split`; a float that is not finite becomes null
        and is named.
        """
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
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # An error on its way out is the first one, and says more than what it makes of closing
        # these.
        with suppress(OSError) if error else nullcontext():
            self._file.close()
        with suppress(OSError) if error else nullcontext():
            self._events.close()


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
