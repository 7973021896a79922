"""Hooks: what looks on while a run trains.

The loop knows none of them by name. There are three moments at which one is called:

- `BeforeStep`: the state is on the devices, and so is what the step is about to read.
- `AfterStep`: the step has been dispatched; its result is on the devices.
- `OnRecord`: numbers have reached the host, a few steps later, since the devices never wait for it.

A hook is due after every step whose number is a multiple of its `every`, and also after the first
and the last step of the training. Steps count from 1: step n is the one after which n are done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from gnpcli.data.feeds.base import FeedData
from gnpcli.runs.contents import Record
from gnpcli.step.programs import Metrics
from gnpcli.step.schedules import StepKind
from gnpcli.step.state import TrainState


@dataclass(frozen=True)
class StepView:
    """A step as its hooks see it."""

    step: int
    """Steps that are done."""
    kind: StepKind
    """What the step takes."""
    state: TrainState
    """On the devices. The next step reuses its buffers: copy what is to be kept."""
    source: FeedData
    """What the step reads, on the devices."""


@dataclass(frozen=True)
class _Hook:
    every: int
    """Steps between two calls, at least 1."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"a hook is called every 1 or more steps, not every {self.every}")


@dataclass(frozen=True)
class BeforeStep(_Hook):
    """Called before a step with the state in which the step begins.

    `StepView.step` counts the steps before it, so the call is due at 0, at 1 and every `every`
    steps.
    """

    run: Callable[[StepView], None]


@dataclass(frozen=True)
class AfterStep(_Hook):
    """Called after a step has been dispatched, with the state that it leads to.

    What `run` returns, scalars on the devices by name, joins the metrics of the step.
    """

    run: Callable[[StepView], Metrics]


@dataclass(frozen=True)
class OnRecord(_Hook):
    """Called with a record of numbers on the host, as ``metrics.jsonl`` has it.

    A record has `step`, `epoch` and `split`. For ``train`` it holds the metrics of one step
    (`gnpcli.step.train.make_train_step`), its `images_per_s` and `elapsed_s`. For ``val`` and
    ``test`` it holds an evaluation: `error_rate`, `loss`, `num_examples`, `weights`, and
    `top5_error_rate` beyond 5 classes. Every evaluation is told, and every step that is not finite,
    whatever `every` says.

    Where `run` returns True, training stops: the run is saved and evaluated, and can be resumed.
    Steps that are on their way by then are still done.
    """

    run: Callable[[Record], bool | None]


Hook = BeforeStep | AfterStep | OnRecord
H = TypeVar("H", BeforeStep, AfterStep, OnRecord)


class Hooks:
    """The hooks of a run, called in the order in which they are given.

    Args:
        hooks: All of them.
        total_steps: Of the whole training.

    Raises:
        TypeError: One is no `Hook`. It would never be called.
    """

    def __init__(self, hooks: Iterable[Hook], total_steps: int):
        self._hooks = list(hooks)
        for hook in self._hooks:
            if not isinstance(hook, Hook):
                raise TypeError(f"a hook is BeforeStep, AfterStep or OnRecord, not {hook!r}")
        self._total_steps = total_steps

    def before_step(self, view: StepView) -> None:
        """Call the `BeforeStep` hooks that are due."""
        for hook in self._due(BeforeStep, view.step):
            hook.run(view)

    def after_step(self, view: StepView) -> Metrics:
        """Call the `AfterStep` hooks that are due, and return their metrics."""
        metrics: Metrics = {}
        for hook in self._due(AfterStep, view.step):
            metrics |= hook.run(view)
        return metrics

    def on_record(self, record: Record, *, always: bool) -> bool:
        """Call the `OnRecord` hooks that are due, or all of them; return whether one says stop."""
        due = self._of(OnRecord) if always else self._due(OnRecord, record["step"])
        answers = [hook.run(record) for hook in due]
        return any(answer is True for answer in answers)

    def _of(self, moment: type[H]) -> list[H]:
        return [hook for hook in self._hooks if isinstance(hook, moment)]

    def _due(self, moment: type[H], step: int) -> list[H]:
        ends = (1, self._total_steps)
        return [hook for hook in self._of(moment) if step % hook.every == 0 or step in ends]
