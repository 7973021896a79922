"""How long the cells of a table still take, from how fast those that ran have come on."""

from __future__ import annotations

from collections.abc import Sequence

from gnpcli.config.resolved import Resolved
from gnpcli.models.registry import find_model
from gnpcli.recipes.plan import count_steps
from gnpcli.tables.runner import CellProgress

STEPS_PER_EPOCH = 100
"""Steps of an epoch, for `work`: any number compares the cells of a table.

An epoch is the same images in every cell, in however many steps.
"""


def work(config: Resolved) -> float:
    """Return what a run computes: FLOP of its model times gradients taken.

    It is comparable among the cells of a table. A model of the user's own that does not say its
    `gnpcli.models.registry.Entry.gflop` counts as 1.
    """
    plain, gnp = count_steps(config, STEPS_PER_EPOCH)
    return (find_model(config.model.name).gflop or 1.0) * (plain + 2 * gnp)


class TimeLeft:
    """Seconds that the cells of a table still take.

    Call it with where all of them stand, from the start on. The estimate is ``time passed * work
    left / work done in that time``. Work is `work` times the share of the epochs. Compilation,
    evaluation and how many cells run at a time are in it as they were up to now.
    """

    def __init__(self, start: float):
        """Begin at `start`, a time of `time.monotonic`."""
        self._start = start
        self._work: dict[str, float] = {}
        self._at_start: dict[str, float] = {}

    def __call__(self, progress: Sequence[CellProgress], now: float) -> float | None:
        """Return the estimate at `now`; None before anything has been done.

        A cell that failed has nothing left to do.
        """
        done = to_do = 0.0
        for item in progress:
            name = item.cell.name
            if name not in self._work:
                self._work[name], self._at_start[name] = work(item.cell.on_one_device), item.share
            done += self._work[name] * (item.share - self._at_start[name])
            if item.status != "failed":
                to_do += self._work[name] * (1 - item.share)
        return (now - self._start) * to_do / done if done > 0 else None
