"""The metrics of a run: ``metrics.jsonl``, a record a line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from gnpcli.files import write_atomically
from gnpcli.runs.contents import HELD_OUT, Record, is_number, is_record
from gnpcli.runs.reading import read_bytes
from gnpcli.runs.stamped import stamp, unstamp
from gnpcli.runs.writing import writing

METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True)
class Damage:
    """The first line of a log that is not a record.

    A crash cuts the last line short. A full disk or a power cut can leave worse.
    """

    path: Path
    line: int
    num_read: int
    """Records before it."""
    num_lost: int
    """Lines after it."""
    is_cut: bool
    """Whether it is the last line, without its end."""

    def __str__(self) -> str:
        what = "is cut short" if self.is_cut else "is damaged"
        read = f"the {self.num_read} record(s) before it are read"
        text = f"line {self.line} of {self.path} {what}: {read}"
        if not self.num_lost:
            return text
        return f"{text}, and {self.num_lost} line(s) after it are not"


def parse_records(path: Path) -> tuple[list[Record], Damage | None]:
    """Return the records of a log up to the first line that is not one, and which line that is.

    Raises:
        OSError: It is missing, or no file.
        RunReadError: It cannot be read.
    """
    lines = read_bytes(path).split(b"\n")
    whole, rest = lines[:-1], lines[-1]
    records: list[Record] = []
    for number, line in enumerate(whole, start=1):
        record = _parse(line)
        if record is None:
            num_lost = len(whole) - number + bool(rest)
            return records, Damage(path, number, len(records), num_lost, is_cut=False)
        records.append(record)
    last = _parse(rest)
    if last is not None:
        records.append(last)
    elif rest:
        return records, Damage(path, len(lines), len(records), num_lost=0, is_cut=True)
    return records, None


def _with_shared_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object whose keys are those of all other records: a log holds few, many times."""
    return {sys.intern(key): value for key, value in pairs}


_DECODER = json.JSONDecoder(object_pairs_hook=_with_shared_keys)


def _parse(line: bytes) -> Record | None:
    try:
        record = _DECODER.decode(unstamp(line).decode())
    except (ValueError, RecursionError):  # also where it is not UTF-8, or not what was written
        return None
    return record if is_record(record) else None


def to_lines(records: Iterable[Record]) -> str:
    """Return the text of a log, with a digest in each line; see `gnpcli.runs.stamped`."""
    return "".join(stamp(json.dumps(record)) + "\n" for record in records)


def read_metrics(path: Path, on_damage: Callable[[str], None] | None = None) -> list[Record]:
    """Return the records of a ``metrics.jsonl``, up to the first line that is not one.

    Args:
        path: The file; none of it is read where it is missing.
        on_damage: Told in a sentence which line is damaged and how much was read.

    Raises:
        OSError: It is no file.
        RunReadError: It cannot be read.
    """
    if not path.exists():
        return []
    records, damage = parse_records(path)
    if damage is not None and on_damage is not None:
        on_damage(str(damage))
    return records


def reached_epoch(records: Sequence[Record]) -> float | None:
    """Return the epoch of the last record; None where there is none, or where it says none."""
    epoch: float | None = records[-1].get("epoch") if records else None
    return epoch


def training_time_s(records: Sequence[Record]) -> float:
    """Return the wall time in seconds of all sessions of a run.

    Steps that were lost and trained again count once.
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
    """Appends records to ``metrics.jsonl`` in the run folder. A context manager.

    Args:
        run_dir: The run folder.
        start_step: Steps done when the run (re)starts. Records past it are dropped: they are of a
            run that was killed after its last checkpoint, and those steps come again.
        on_damage: As in `read_metrics`, of the file that is there already.
        evaluates_start: Whether the evaluation after `start_step` comes again as well: its records
            are dropped.
        every: Training records of which steps are there up to `start_step`: those that it divides.
            `on_damage` is told where the log ends before the last of them.

    Raises:
        RunWriteError: Here, in `write` or at the end: the file cannot be written.
    """

    def __init__(
        self,
        run_dir: Path,
        start_step: int,
        on_damage: Callable[[str], None] | None = None,
        *,
        evaluates_start: bool = False,
        every: int = 1,
    ):
        self.path = run_dir / METRICS_FILE
        self.of_start: list[Record] = []
        """The records of `start_step` that are there already, and stay."""
        kept: list[Record] = []
        with writing(run_dir):
            if self.path.exists():
                records = read_metrics(self.path, on_damage)
                kept = [
                    record
                    for record in records
                    if not _comes_again(record, start_step, evaluates_start)
                ]
                self.of_start = [record for record in kept if record["step"] == start_step]
                write_atomically(self.path, to_lines(kept))
            self._file = open(self.path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed in __exit__
        reached = max((record["step"] for record in kept if record["split"] == "train"), default=0)
        if on_damage is not None and reached < start_step // every * every:
            on_damage(
                f"{self.path} ends with step {reached}, and the run goes on after step "
                f"{start_step}: what was logged between is lost"
            )

    def write(self, record: Mapping[str, Any]) -> None:
        """Write one record, which has `step` and `split`.

        A float that is not finite, or too large for a `Record`, becomes null. ``non_finite`` names
        it.

        Raises:
            ValueError: It is no `Record`: read back, it would be a damaged line.
        """
        written = {key: _storable(value) for key, value in record.items()}
        lost = [key for key, value in record.items() if value is not None and written[key] is None]
        if lost:
            written["non_finite"] = lost
        if not is_record(written):
            raise ValueError(f"a record is a step, a split and numbers by name, not {written}")
        with writing(self.path.parent):
            self._file.write(to_lines([written]))

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # An error on its way out says more than what it makes of closing the file.
        with suppress(OSError) if error else writing(self.path.parent):
            self._file.close()


def _comes_again(record: Record, start_step: int, evaluates_start: bool) -> bool:
    if record["step"] == start_step:
        return evaluates_start and record["split"] in HELD_OUT
    return bool(record["step"] > start_step)


def _storable(value: Any) -> Any:
    return None if isinstance(value, float) and not is_number(value) else value
