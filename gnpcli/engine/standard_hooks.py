"""The hooks of every run: what is logged, and what a run warns of."""

from __future__ import annotations

from collections.abc import Callable

from gnpcli.engine.clock import Clock
from gnpcli.engine.hooks import AfterStep, BeforeStep, Hook, OnRecord, StepView
from gnpcli.engine.task import Task
from gnpcli.runs.log import MetricsLog
from gnpcli.runs.tensorboard import TensorBoardEvents
from gnpcli.step import precision
from gnpcli.step.programs import Metrics, OptimizerStatistics, RoundingMeasure
from gnpcli.terminal.screen import Screen


def log_hooks(task: Task, log: MetricsLog, events: TensorBoardEvents) -> list[Hook]:
    """Return what writes ``metrics.jsonl`` and TensorBoard events."""
    every = task.config.train.log_every_steps
    return [OnRecord(every, log.write), OnRecord(every, events.write)]


def measuring_hooks(task: Task, start: int, clock: Clock, screen: Screen) -> list[Hook]:
    """Return what is measured beside training: optimizer statistics and rounding.

    Args:
        task: What is trained.
        start: Steps done when the session begins.
        clock: Paused while something is measured.
        screen: Where warnings go.
    """
    hooks: list[Hook] = []
    if task.rounding is not None:
        hooks.append(BeforeStep(1, RoundingWarning(task, task.rounding, start, clock, screen)))
    if task.statistics is not None:
        every = task.config.train.log_every_steps
        hooks.append(AfterStep(every, _of_optimizer(task.statistics)))
    return hooks


def _of_optimizer(statistics: OptimizerStatistics) -> Callable[[StepView], Metrics]:
    def tell(view: StepView) -> Metrics:
        return statistics(view.state.opt_state)

    return tell


class RoundingWarning:
    """Warns, once, where the compute type cannot represent most of the perturbation.

    It measures at gnp steps at least `gnpcli.step.precision.EVERY_STEPS` apart, and not before as
    many steps or the warmup of the learning rate are over.
    """

    def __init__(
        self, task: Task, measure: RoundingMeasure, start: int, clock: Clock, screen: Screen
    ):
        warmup_steps = task.horizon.steps(task.config.schedule.warmup_epochs)
        self._next = max(start, precision.EVERY_STEPS, warmup_steps)
        self._has_warned = False
        self._task, self._measure = task, measure
        self._clock, self._screen = clock, screen

    def __call__(self, view: StepView) -> None:
        """Measure before a step, if it is time."""
        if self._has_warned or view.step < self._next or view.kind != "gnp":
            return
        self._next = view.step + precision.EVERY_STEPS
        share = float(self._measure(view.state, view.source))
        if share > precision.MOST:
            self._warn(share, view.step)
        self._clock.pause(view.step)

    def _warn(self, share: float, step: int) -> None:
        config = self._task.config
        advice = precision.advice(share, step=step, r=config.gr.r, dtype=config.train.dtype)
        self._screen.warn(advice)
        self._has_warned = True
