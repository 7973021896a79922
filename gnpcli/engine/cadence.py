"""When a run evaluates and saves."""

from __future__ import annotations

from gnpcli.config.resolved import Resolved
from gnpcli.step.schedules import Horizon


class Cadence:
    """When a run evaluates and saves, by the number of steps that are done."""

    def __init__(self, config: Resolved, horizon: Horizon):
        self._train, self._checkpoint = config.train, config.checkpoint
        self._per_epoch = horizon.steps_per_epoch

    def epoch(self, step: int) -> float:
        """Return how many epochs are done, to four decimals."""
        return round(step / self._per_epoch, 4)

    def current_epoch(self, step: int) -> int:
        """Return the number, from 1, of the epoch that the last step was in."""
        return (step - 1) // self._per_epoch + 1

    def evaluates(self, step: int) -> bool:
        """Return whether an evaluation is due."""
        return self._is_epoch_end(step, self._train.eval_every_epochs)

    def saves(self, step: int) -> bool:
        """Return whether a checkpoint is due."""
        every_steps, every_epochs = self._checkpoint.every_steps, self._checkpoint.every_epochs
        if every_steps is not None and step % every_steps == 0:
            return True
        return every_epochs is not None and self._is_epoch_end(step, every_epochs)

    def _is_epoch_end(self, step: int, every_epochs: int) -> bool:
        return step % (every_epochs * self._per_epoch) == 0
