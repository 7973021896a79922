"""Wall time of training, without what is not training."""

from __future__ import annotations

import time
from typing import TypedDict


class Rate(TypedDict):
    """What a clock tells."""

    images_per_s: float | None
    """None where no step was timed."""
    elapsed_s: float
    """Since the start, pauses included; to the millisecond."""


class Clock:
    """Wall time of training.

    It tells the time since the start, and the images/s between pauses: compilation, evaluation and
    saving are none of training.

    Args:
        batch_size: Images of a step.
    """

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._start = self._mark = time.perf_counter()
        self._marked_step: int | None = None
        self._trained_s = 0.0
        self._trained_steps = 0

    def pause(self, step: int) -> None:
        """Leave out the time since the last rate, and start again behind `step`."""
        self._mark = time.perf_counter()
        self._marked_step = step

    def rate(self, step: int) -> Rate:
        """Return the rate of the steps since the last rate or pause, up to `step`.

        Before the first pause there is none.
        """
        now = time.perf_counter()
        images_per_s = None
        if self._marked_step is not None and step > self._marked_step:
            steps = step - self._marked_step
            elapsed = now - self._mark
            images_per_s = steps * self._batch_size / elapsed
            self._trained_s += elapsed
            self._trained_steps += steps
        self._mark = now
        self._marked_step = step
        return {"images_per_s": images_per_s, "elapsed_s": self._elapsed(now)}

    def totals(self) -> Rate:
        """Return the rate over all steps that `rate` has timed."""
        images_per_s = None
        if self._trained_s:
            images_per_s = self._trained_steps * self._batch_size / self._trained_s
        return {"images_per_s": images_per_s, "elapsed_s": self._elapsed(time.perf_counter())}

    def _elapsed(self, now: float) -> float:
        return round(now - self._start, 3)
