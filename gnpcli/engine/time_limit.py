"""The time that a run has, and when it must stop to be saved within it."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Literal

from gnpcli.config.training import TimeLimitMinutes
from gnpcli.devices.processes import peers
from gnpcli.errors import ConfigError

Work = Literal["step", "compilation", "evaluation", "save"]
"""What takes time in a loop; a compilation is that of a step, with the step."""

MARGIN_S = 10.0
"""Seconds that are left in any case: files are closed, and the process ends."""
SAVES = 2.0
"""The longest save counts so often: storage that is shared has slow moments."""
STEPS_BEHIND = 3
"""The longest step counts so often: some are under way when a run decides to stop."""
SLOWEST_BYTES_PER_S = 100e6
"""What a save is taken to write in a second, as long as none has been seen."""
JOB_END = "SLURM_JOB_END_TIME"
"""The variable in which Slurm gives the end of a job, in seconds since 1970.

Slurm 22.05 does not set it. Where it is missing, Slurm is asked (`squeue`).
"""
JOB = "SLURM_JOB_ID"
ASK_WITHIN_S = 60
"""How long `squeue` may take: a busy Slurm answers late."""


def end_of(limit: TimeLimitMinutes, tell: Callable[[str], None]) -> float | None:
    """Return when a run that starts now must have ended, on the monotonic clock; None: whenever.

    Args:
        limit: `train.time_limit`.
        tell: Told that ``auto`` finds no limit.

    Raises:
        ConfigError: The variable for ``auto`` holds no time.
    """
    if limit is None:
        return None
    if limit != "auto":
        return time.monotonic() + 60 * limit
    text = os.environ.get(JOB_END, "")
    if not text:
        return _asked_end(tell)
    if not text.isdecimal() or len(text) > 15:
        raise ConfigError(f"{JOB_END}={text} is no time in seconds: correct or unset it")
    return time.monotonic() + int(text) - time.time()


def _asked_end(tell: Callable[[str], None]) -> float | None:
    """Return the end of the job as Slurm tells it, on the monotonic clock; None knows none.

    Of several processes the first asks for all. The others stop when it does.
    """
    job = os.environ.get(JOB)
    if not job:
        tell(f"time limit  none: {JOB_END} is not set")
        return None
    if not peers.is_first():
        return None
    asked_s = time.monotonic()
    command = ["squeue", "--noheader", f"--jobs={job}", "--format=%L"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=ASK_WITHIN_S, check=True
        )
        left_s = seconds_of(done.stdout)
    except (OSError, subprocess.SubprocessError):
        left_s = None
    if left_s is None:
        tell(f"time limit  none: {JOB_END} is not set, and squeue tells no end of job {job}")
        return None
    return asked_s + left_s


def seconds_of(text: str) -> int | None:
    """Return the seconds that Slurm writes as ``[days-][hours:]minutes:seconds``; None: no time.

    >>> seconds_of("1:30"), seconds_of("2-00:00:01"), seconds_of("UNLIMITED")
    (90, 172801, None)
    """
    found = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d\d)", text.strip())
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


class TimeLimit:
    """Tells when a run must stop.

    What is ahead takes as long as the longest of its kind so far. It must fit before the end, and
    after it the last steps (`STEPS_BEHIND`), a save (`SAVES`) and `MARGIN_S`. What was never seen
    counts as nothing, except a save. So a first evaluation may reach beyond the end. A session
    takes one step at least: one that is started again and again comes to its end.

    Args:
        end_s: From `end_of`.
        state_bytes: Of a save, see `SLOWEST_BYTES_PER_S`.
        now: The clock.
    """

    def __init__(
        self,
        end_s: float | None,
        state_bytes: int = 0,
        now: Callable[[], float] = time.monotonic,
    ):
        self._end_s, self._now = end_s, now
        self._longest: dict[Work, float] = {"save": state_bytes / SLOWEST_BYTES_PER_S}

    @contextmanager
    def timing(self, work: Work) -> Iterator[None]:
        """Time the work of the block."""
        start = self._now()
        yield
        self.took(work, self._now() - start)

    def took(self, work: Work, seconds: float) -> None:
        """Take in how long a piece of work took."""
        self._longest[work] = max(self._of(work), seconds)

    def needed_s(self, ahead: Collection[Work]) -> float:
        """Return the seconds for the work `ahead`, and to stop after it."""
        stopping = STEPS_BEHIND * self._of("step") + SAVES * self._of("save") + MARGIN_S
        return sum(map(self._of, ahead)) + stopping

    def is_near(self, ahead: Collection[Work]) -> bool:
        """Return whether the work `ahead` does not fit any more."""
        if self._end_s is None or not {"step", "compilation"} & self._longest.keys():
            return False
        return self._now() + self.needed_s(ahead) > self._end_s

    def _of(self, work: Work) -> float:
        return self._longest.get(work, 0.0)
