"""TensorBoard events of a run, written without TensorFlow."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from gnpcli.runs.writing import writing


class TensorBoardEvents:
    """Writes records as TensorBoard events into the run folder. A context manager.

    This thread writes them, so that a full disk stops the run where it can be said, and not a
    writer behind it.

    Args:
        run_dir: The run folder.
        first_step: The first whose records come, or come again. TensorBoard is told to forget what
            an earlier session wrote from there on.

    Raises:
        RunWriteError: Here, in `write` or at the end: the file cannot be written.
    """

    def __init__(self, run_dir: Path, first_step: int):
        # Both load numpy, which those who read a run folder can do without.
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.record_writer import RecordWriter

        self._run_dir = run_dir
        with writing(run_dir):
            path = run_dir / f"events.out.tfevents.{time.time():.6f}.gnp"
            self._writer = RecordWriter(str(path))
        self._event = Event
        self._add(file_version="brain.Event:2")
        self._add(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def write(self, record: Mapping[str, Any]) -> None:
        """Write the finite numbers of a record, which has `step` and `split`, as ``split/name``."""
        values = [
            {"tag": f"{record['split']}/{key}", "simple_value": value}
            for key, value in record.items()
            if key not in ("step", "epoch") and _is_shown(value)
        ]
        self._add(step=record["step"], summary={"value": values})

    def _add(self, **fields: Any) -> None:
        event = self._event(wall_time=time.time(), **fields)
        with writing(self._run_dir):
            self._writer.write(event.SerializeToString())
            # What a checkpoint is newer than must outlive a kill. The writer's own `flush` also
            # waits for the disk, which takes milliseconds.
            self._writer._writer.flush()

    def __enter__(self) -> TensorBoardEvents:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # An error on its way out says more than what it makes of closing the file.
        with suppress(OSError) if error else writing(self._run_dir):
            self._writer.close()


def _is_shown(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
