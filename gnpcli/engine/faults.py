"""What becomes of a step in which something is not finite: a warning, or the end of the run."""

from __future__ import annotations

from contextlib import suppress

import jax

from gnpcli.engine.task import Task
from gnpcli.errors import CheckpointError, DivergenceError, GnpError
from gnpcli.models.base import Params
from gnpcli.runs.checkpoint import Checkpoints
from gnpcli.step import guard
from gnpcli.step.state import TrainState
from gnpcli.terminal.screen import Screen


class Faults:
    """Tells of what is not finite.

    Args:
        task: What is trained.
        checkpoints: Where the last good state is.
        screen: Where warnings go.
    """

    def __init__(self, task: Task, checkpoints: Checkpoints, screen: Screen):
        self._task, self._checkpoints, self._screen = task, checkpoints, screen

    def on_step(self, step: int, fault: str, metrics: dict[str, float], state: TrainState) -> None:
        """Warn of a skipped step. At the last one allowed in a row, find where it broke, and stop.

        Args:
            step: Steps done after the faulty one.
            fault: From `gnpcli.step.guard.fault`.
            metrics: Of the step.
            state: Whatever was dispatched behind the step at which a run halts, this is still the
                state in which that step began.

        Raises:
            DivergenceError: The run stops here.
        """
        in_a_row = int(metrics["skips_in_a_row"])
        limit = guard.max_in_a_row(self._task.config.train)
        if in_a_row < limit:
            what = guard.describe(fault, metrics)
            count = f"{in_a_row} in a row, stopping at {limit}"
            self._screen.warn(f"step {step} skipped ({count}): {what}")
            return
        what = guard.describe(fault, metrics, self._findings(state, step - 1))
        many = f"{in_a_row} steps in a row were not finite, the last of them "
        start = many if in_a_row > 1 else ""
        raise DivergenceError(f"{start}step {step}: {what}; {self._advice()}")

    def on_evaluation(self, split: str, step: int, loss: float) -> DivergenceError:
        """Return the error for a held-out loss that is not finite."""
        return DivergenceError(f"the {split} loss after step {step} is {loss}; {self._advice()}")

    def _findings(self, state: TrainState, step: int) -> dict[str, Params] | None:
        # The fault counts, and not what the search for its place runs into.
        with suppress(GnpError, jax.errors.JaxRuntimeError):
            return self._task.diagnose(state, step)
        return None

    def _advice(self) -> str:
        remedies = ["a lower optimizer.lr", "a lower gr.r", "train.clip_norm"]
        if self._task.config.train.on_nonfinite == "stop":
            remedies.append("train.on_nonfinite=skip")
        choices = f"{', '.join(remedies[:-1])} or {remedies[-1]}"
        return f"{last_good(self._checkpoints)}; try {choices}"


def last_good(checkpoints: Checkpoints) -> str:
    """Say which checkpoint is the last good one, once those under way are written."""
    with suppress(CheckpointError):  # of a pending save; what is on disk is what counts here
        checkpoints.wait()
    return checkpoints.last_good()
