"""The run that the campaigns disturb, and what makes two runs the same."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gnpcli.locks import LOCK_FILES
from tests.campaigns.campaign import Failed, sound
from tests.campaigns.faults import Fault
from tests.campaigns.lab import Lab
from tests.commands import Completed
from tests.golden import hash_arrays

COMMON = (
    "model.name=tests.small:small",
    "mesh.devices=1",
    "gr.strategy=constant",
    "gr.r=0.05",
    "gr.alpha=0.5",
    "schedule.warmup_epochs=0",
    "train.log_every_steps=1",
)
SHORT = (
    *COMMON,
    "train.epochs=2",
    "data.batch_size=512",
    "checkpoint.every_steps=2",
    "checkpoint.keep=1",
    "checkpoint.keep_best=false",
)
"""Four steps and two saves, of which the second deletes the first: the fewest events."""
LONG = (
    *COMMON,
    "train.epochs=8",
    "data.batch_size=512",
    "checkpoint.every_steps=1",
    "checkpoint.keep=2",
)
"""Sixteen steps, each of them saved: a random moment is likely to be in a save."""

TIMES = {"elapsed_s", "images_per_s", "run_dir", "check"}
"""What differs from run to run of the same configuration: times, and the digests over them."""

_HASHING = threading.Lock()
"""Filters of warnings, which `hash_arrays` sets, are one for all threads."""


@dataclass(frozen=True)
class Left:
    """What a finished run left, but times."""

    arrays: dict[str, dict[str, str]]
    """Digests of the arrays of every save."""
    records: list[dict[str, Any]]
    summary: dict[str, Any]
    names: list[str]
    """What is in the folder and in the folder of checkpoints, but TensorBoard's events.

    Lock files are left out: one that a failing disk did not let go holds nobody up.
    """

    def differs(self, other: Left) -> str:
        """Say what differs in `other`; empty where nothing does."""
        found = []
        for name in ("names", "arrays", "summary"):
            mine, others = getattr(self, name), getattr(other, name)
            if mine != others:
                found.append(f"{name}: {mine} -> {others}")
        if self.records != other.records:
            found.append(_differing_records(self.records, other.records))
        return "\n".join(found)


def _differing_records(wanted: list[dict[str, Any]], found: list[dict[str, Any]]) -> str:
    def keys(records: list[dict[str, Any]]) -> list[str]:
        return [f"{record.get('split')} {record.get('step')}" for record in records]

    if keys(wanted) != keys(found):
        return f"records: {keys(wanted)} -> {keys(found)}"
    pairs = zip(wanted, found, strict=True)
    return f"records: {next((one, two) for one, two in pairs if one != two)}"


def read(run: Path) -> Left:
    """Return what a finished run left.

    The files are opened here and not by the program, which may be wrong about them.
    """
    checkpoints = run / "checkpoints"
    saves = sorted(path for path in checkpoints.iterdir() if path.name.isdecimal())
    with _HASHING:
        arrays = {save.name: hash_arrays(save) for save in saves}
    lines = (run / "metrics.jsonl").read_text().splitlines()
    inside = [path for path in run.iterdir() if ".tfevents." not in path.name]
    inside = [path for path in inside if path.name not in LOCK_FILES]
    return Left(
        arrays=arrays,
        records=[_timeless(json.loads(line)) for line in lines],
        summary=_timeless(json.loads((run / "summary.json").read_text())),
        names=sorted(str(path.relative_to(run)) for path in (*inside, *checkpoints.iterdir())),
    )


def _timeless(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in TIMES}


def train(
    lab: Lab,
    run: Path,
    settings: Sequence[str],
    *,
    more: Sequence[object] = (),
    fault: Fault | None = None,
    timeout: float | None = None,
) -> Completed | None:
    """Start a run, with `more` options; return None where it was killed after `timeout` seconds."""
    sets = [part for setting in settings for part in ("--set", setting)]
    return _timed(lab, ["train", "-q", *sets, "--run-dir", run, *more], fault, timeout)


def resume(
    lab: Lab, run: Path, *, fault: Fault | None = None, timeout: float | None = None
) -> Completed | None:
    """Go on with a run; return None where it was killed after `timeout` seconds."""
    return _timed(lab, ["resume", "-q", run], fault, timeout)


def _timed(
    lab: Lab, arguments: list[object], fault: Fault | None, timeout: float | None
) -> Completed | None:
    try:
        if timeout is None:
            return lab.gnp(*arguments, fault=fault)
        return lab.gnp(*arguments, fault=fault, timeout=timeout)
    except subprocess.TimeoutExpired:
        if timeout is None:
            raise Failed(f"gnp {arguments} does not end") from None
        return None


def go_on(lab: Lab, run: Path, settings: Sequence[str]) -> None:
    """Finish a disturbed run as a user would: `resume`, or `train` where it had not begun.

    Raises:
        Failed: It cannot be finished.
    """
    done = resume(lab, run)
    assert done is not None
    if done.returncode and "is not a run folder" in sound(done).stderr:
        done = train(lab, run, settings)
        assert done is not None
    if sound(done).returncode:
        raise Failed(f"it cannot be continued: {done.stderr[-1500:]}")


def check_same(wanted: Left, run: Path, more: str = "", *, may_set_aside: bool = False) -> None:
    """Compare a finished run with the undisturbed one.

    Args:
        wanted: Of the undisturbed run.
        run: The other one.
        more: What to show besides where they differ.
        may_set_aside: A save that could not be written whole may lie there as damaged.

    Raises:
        Failed: They differ.
    """
    left = read(run)
    if may_set_aside:
        left = replace(left, names=[name for name in left.names if not name.endswith(".damaged")])
    difference = wanted.differs(left)
    if difference:
        raise Failed(f"{difference[:3000]}\n{more[-1500:]}")
