"""Wall time of training, without what is not training."""

from __future__ import annotations

import time
from typing import Any


class Clock:
    """Wall time of training: since the start, and images/s between pauses (compilation, evaluation,
    saving).
    """

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
        """Return images/s since the mark (None for the first step behind a pause) and the seconds
        since the start.
        """
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
        """Return the seconds since the start, and the images/s over all steps that a rate was given
        for.
        """
        images = self._trained_steps * self._batch_size
        return {
            "elapsed_s": round(time.perf_counter() - self._start, 3),
            "images_per_s": images / self._trained_s if self._trained_s else None,
        }
