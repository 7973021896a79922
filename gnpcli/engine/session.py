"""One session of a run: from the last checkpoint, or the start, to where it stops."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import jax

from gnpcli.data.base import Dataset, FileSplit, Split
from gnpcli.devices.process import describe_environment
from gnpcli.devices.signals import stop_signals
from gnpcli.engine.clock import Clock
from gnpcli.engine.evaluator import Evaluator
from gnpcli.engine.faults import last_good
from gnpcli.engine.hooks import Hook, Hooks, OnRecord
from gnpcli.engine.loop import Loop
from gnpcli.engine.standard_hooks import log_hooks, measuring_hooks
from gnpcli.engine.starting import Restored, restore, starting_state
from gnpcli.engine.stopping import Stop
from gnpcli.engine.task import Task
from gnpcli.engine.time_limit import TimeLimit
from gnpcli.errors import CheckpointError, DivergenceError, GnpError, Interrupted
from gnpcli.recipes.wording import objective_in_words
from gnpcli.runs.checkpoint import Checkpoints
from gnpcli.runs.contents import HeldOut, Summary, is_done
from gnpcli.runs.folder import RunFolder
from gnpcli.runs.identity import new_run_id
from gnpcli.runs.writing import RunWriteError
from gnpcli.step.state import TrainState
from gnpcli.terminal.screen import Screen

STOPPING = "stopping after this step and saving"
"""What a run does when a signal has come."""


@dataclass(frozen=True)
class Session:
    """One session of a run."""

    task: Task
    dataset: Dataset
    run: RunFolder
    screen: Screen
    hooks: Sequence[Hook]
    """Those of the caller."""
    accept_changed_data: bool = False
    """Go on where the data are others than at the last checkpoint."""
    restart: bool = False
    """Start anew where there are checkpoints and none is good."""
    computed_otherwise: Sequence[str] = ()
    """How it is computed otherwise than ``config.yaml`` says, a key each."""
    end_s: float | None = None
    """When it must have ended, from `gnpcli.engine.time_limit.end_of`."""

    def go(self, max_steps: int | None, initial: TrainState | None = None) -> Summary:
        """Go on from the last checkpoint; else from `initial`; else as the configuration says.

        Args:
            max_steps: Steps to be done at the end; None does all.
            initial: The state from ``train.init_from``, where it is made already.

        Returns:
            What ``summary.json`` holds.

        Raises:
            GnpError: As of `gnpcli.engine.train.train`.
        """
        with stop_signals(self._tell_signal, STOPPING) as received:
            stopping = Stop(received, TimeLimit(self.end_s, _size(self.task)))
            summary = self._go(max_steps, initial, stopping)
            reason = stopping.reason()
        if summary["status"] == "interrupted" and reason is not None:
            raise Interrupted(
                f"stopped by {stopping.cause} after step {summary['step']}, saved; continue with "
                f"`gnp resume {self.run}`",
                reason.exit_status,
            )
        return summary

    def _go(self, max_steps: int | None, initial: TrainState | None, stopping: Stop) -> Summary:
        total = self.task.horizon.total_steps
        stop = total if max_steps is None else min(total, max_steps)
        try:
            restored = self._restore()
            state, changes = restored or (None, [])
            start = 0 if state is None else int(state.step)
            summary = self.run.summary()
            if start >= stop and is_done(summary, start):
                where = f"{self.run} is already at step {start}"
                self.screen.line(f"{where}: nothing to do", style="bold")
                return {**summary, "run_dir": str(self.run)}
            with closing(self.run.checkpoints(self.task.config.checkpoint)) as checkpoints:
                if state is None:
                    state = starting_state(self.task, checkpoints, self.screen, initial)
                self.run.note_session(self._environment(changes), start)
                self._introduce(state, start)
                summary = self._train(state, checkpoints, start, stop, stopping)
                return self.run.write_summary(summary)
        finally:
            self.task.parts.feed.close()

    def _tell_signal(self, text: str) -> None:
        self.screen.line(text, style="yellow")

    def _restore(self) -> Restored | None:
        """Return where to go on. Only when that is known, set aside what of the run is damaged."""
        saves = self.run.saves()
        restored = restore(
            self.task,
            saves,
            self.screen,
            accept_changed_data=self.accept_changed_data,
            restart=self.restart,
        )
        if restored is None and not self.restart:
            self._check_saved_none()
        self.run.set_aside_damaged()
        if restored is None and self.run.summary()["status"] != "unfinished":
            self.run.write_summary({"status": "unfinished"})  # of what begins anew
        saved = None if restored is None else saves.manifest(int(restored.state.step)).run
        self.run.identify(saved or new_run_id())
        return restored

    def _check_saved_none(self) -> None:
        """Refuse to start anew, and to drop the log, where the saves of a run were deleted."""
        step = self.run.summary().get("step", 0)
        if step:
            raise CheckpointError(
                f"{self.run} was saved at step {step}, and {self.run.checkpoint_dir} holds no "
                f"checkpoint: put one back, or start anew by `gnp resume {self.run} --restart`"
            )

    def _train(
        self,
        state: TrainState,
        checkpoints: Checkpoints,
        start: int,
        stop: int,
        stopping: Stop,
    ) -> Summary:
        """Run the loop between opening and closing the logs."""
        evaluators = self._evaluators()
        # Where nothing is left to train, the state is evaluated all the same. A run that was killed
        # between its last save and its summary may have logged that evaluation.
        evaluates_start = start >= stop
        every = self.task.config.train.log_every_steps
        try:
            with (
                self.run.open_log(start, evaluates_start=evaluates_start, every=every) as log,
                self.run.open_events(start if evaluates_start else start + 1) as events,
                self.screen.progress(self.task.horizon.total_steps, start),
            ):
                if evaluates_start:  # TensorBoard forgets all of a step, or nothing
                    for record in log.of_start:
                        events.write(record)
                clock = Clock(self.task.config.data.batch_size)
                hooks = [
                    OnRecord(1, lambda record: self.run.check_claim()),
                    *measuring_hooks(self.task, start, clock, self.screen),
                    *log_hooks(self.task, log, events),
                    *self.hooks,
                ]
                loop = Loop(
                    self.task,
                    state,
                    evaluators,
                    checkpoints,
                    Hooks(hooks, self.task.horizon.total_steps),
                    clock,
                    self.screen,
                    stopping,
                )
                return loop.run(start, stop)
        except DivergenceError as error:
            self.run.write_summary({"status": "diverged", "error": str(error)})
            raise
        except RunWriteError as error:
            raise GnpError(f"{error}; {last_good(checkpoints)}") from error

    def _environment(self, changes: Sequence[str]) -> dict[str, Any]:
        """Return what the session runs on, the data included."""
        facts = {**describe_environment(), "data": self.task.spec.digest}
        if changes:
            facts["accepted_data_changes"] = list(changes)
        if self.computed_otherwise:
            facts["computed_otherwise"] = list(self.computed_otherwise)
        return facts

    def _evaluators(self) -> dict[HeldOut, Evaluator]:
        """Return those of the held-out splits; the first one decides which checkpoint is best."""
        task = self.task
        splits: dict[HeldOut, Split | FileSplit | None] = {
            "val": self.dataset.validation,
            "test": self.dataset.test,
        }
        return {
            name: Evaluator(split, task.spec, task.config, task.parts.model, task.parts.mesh)
            for name, split in splits.items()
            if split is not None
        }

    def _introduce(self, state: TrainState, start: int) -> None:
        """Say what is about to be trained."""
        task, config, spec = self.task, self.task.config, self.task.spec
        count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        splits = {
            "train": self.dataset.train,
            "val": self.dataset.validation,
            "test": self.dataset.test,
        }
        sizes = "  ".join(
            f"{name} {len(split.labels):,}" for name, split in splits.items() if split is not None
        )
        lines = {
            "run": f"{self.run}",
            "model": f"{config.model.name}, {count:,} parameters, {config.train.dtype}",
            "data": f"{config.data.name}: {sizes}, {spec.num_classes} classes, "
            f"{spec.image_size} px",
            "objective": objective_in_words(config),
            "steps": f"{task.horizon.total_steps:,} ({task.horizon.steps_per_epoch} an epoch) on "
            f"{task.parts.mesh.size} {task.parts.mesh.devices.flat[0].platform} device(s)",
        }
        if start:
            lines["steps"] += f", from step {start}"
        for name, text in lines.items():
            self.screen.line(f"{name:<10} {text}")


def _size(task: Task) -> int:
    """Return the bytes of a state."""
    leaves = jax.tree.leaves(task.abstract_state())
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
