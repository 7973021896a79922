"""The training loop and what it carries from step to step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import jax

from gnpcli.devices.processes import peers
from gnpcli.devices.processes.halt import Halt
from gnpcli.engine.cadence import Cadence
from gnpcli.engine.clock import Clock
from gnpcli.engine.evaluator import Evaluator, Recalibration
from gnpcli.engine.faults import Faults
from gnpcli.engine.hooks import Hooks, StepView
from gnpcli.engine.loading import warn_of_skipped
from gnpcli.engine.pending import LOOKAHEAD, MetricsQueue
from gnpcli.engine.stopping import HOOK, Stop
from gnpcli.engine.task import Task
from gnpcli.engine.time_limit import Work
from gnpcli.models.base import Params, State
from gnpcli.runs.checkpoint import Checkpoints
from gnpcli.runs.contents import Evaluation, HeldOut, Record, Status, Summary
from gnpcli.step import guard
from gnpcli.step.schedules import StepKind
from gnpcli.step.state import TrainState
from gnpcli.terminal.screen import Screen
from gnpcli.terminal.words import percent


class Loop:
    """The training loop and what it carries from step to step.

    Args:
        task: What is trained.
        state: Where to begin.
        evaluators: For each held-out split, the one that decides which checkpoint is best first.
        checkpoints: Where the state is saved.
        hooks: What looks on.
        clock: Times training alone; it starts with the loop.
        screen: Where a person looks on.
        stop: Says when to stop before the last step.
    """

    def __init__(
        self,
        task: Task,
        state: TrainState,
        evaluators: Mapping[HeldOut, Evaluator],
        checkpoints: Checkpoints,
        hooks: Hooks,
        clock: Clock,
        screen: Screen,
        stop: Stop,
    ):
        self.task, self.state, self.evaluators = task, state, evaluators
        self.checkpoints, self.hooks = checkpoints, hooks
        self.clock, self.screen, self.stop = clock, screen, stop
        self.cadence = Cadence(task.config, task.horizon)
        self.faults = Faults(task, checkpoints, screen)
        self.recalibration = Recalibration(
            task.parts.model,
            task.parts.feed,
            task.parts.mesh,
            seed=task.config.train.seed,
            num_batches=task.config.train.recalibrate_batches,
        )
        self.queue = MetricsQueue()
        self.compiled: set[StepKind] = set()
        self.results: dict[HeldOut, Evaluation] = {}
        self.skipped: dict[str, int] = {}
        self.saved_step: int | None = None
        self.evaluated: tuple[int, float | None] | None = None
        self.halts = Halt(LOOKAHEAD)

    def run(self, start: int, stop: int) -> Summary:
        """Run the steps from `start` to `stop`, or to a reason to stop before.

        Args:
            start: Steps that are done.
            stop: Steps to be done.
        """
        step = start
        while step < stop and not self.halts(step, self._is_time_to_stop(step, stop)):
            with self.stop.limit.timing(self._step_work(step)):
                self._take(step)
                step += 1
                self._drain(LOOKAHEAD)
            self._at_boundary(step, is_last=step == stop, evaluates=True)
        self.stop.settle(partial(peers.gathered, "reasons"))
        if self.stop.is_from_elsewhere and step < stop:
            self.screen.line(f"{self.stop.cause}: stopping after step {step}, and saving")
        if self.saved_step != step:  # a reason to stop between two saves, or nothing to train
            self._at_boundary(step, is_last=True, evaluates=not self._is_interrupted())
        self.checkpoints.wait()
        is_evaluated = self.evaluated is not None and self.evaluated[0] == step
        is_whole = step >= stop and is_evaluated
        return self._summary(step, is_interrupted=self._is_interrupted() and not is_whole)

    def _is_interrupted(self) -> bool:
        reason = self.stop.reason()
        return reason is not None and reason.is_interruption

    def _is_time_to_stop(self, step: int, stop: int) -> bool:
        return self.stop.reason(self._ahead(step, stop)) is not None

    def _step_work(self, step: int) -> Work:
        return "step" if self.task.kind_at(step) in self.compiled else "compilation"

    def _ahead(self, step: int, stop: int) -> list[Work]:
        """Return what taking a step means, and what is due after it."""
        self.stop.limit.took("save", self.checkpoints.longest_save_s)
        work = [self._step_work(step)]
        if step + 1 == stop or self.cadence.evaluates(step + 1):
            work.append("evaluation")
        return work

    def _take(self, step: int) -> None:
        """Dispatch a step and start the copies of its metrics."""
        kind, program = self.task.kind_at(step), self.task.step_at(step)
        is_new = kind not in self.compiled
        if is_new:
            self._drain(0)
            self.screen.status("compiling")
        source = self.task.parts.feed.source(step)
        self.hooks.before_step(StepView(step, kind, self.state, source))
        self.state, metrics = program(self.state, source)
        metrics = metrics | self.hooks.after_step(StepView(step + 1, kind, self.state, source))
        self.queue.push(step + 1, metrics)
        if is_new:
            self.compiled.add(kind)
            jax.block_until_ready(metrics)
            self.clock.pause(step + 1)

    def _drain(self, keep: int) -> None:
        """Read the metrics of all but the last `keep` dispatched steps, and check every one."""
        for step, metrics in self.queue.pop_all_but(keep):
            fault = guard.fault(metrics)
            rate = self.clock.rate(step)
            record = {**self._place(step, "train"), **metrics, **rate}
            self._tell(record, always=fault is not None)
            if fault is not None:
                self.faults.on_step(step, fault, metrics, self.state)
            epoch = self.cadence.current_epoch(step)
            where = f"epoch {epoch}/{self.task.config.train.epochs}"
            self.screen.update(step, where, metrics, rate["images_per_s"])

    def _tell(self, record: Record, *, always: bool) -> None:
        if self.hooks.on_record(record, always=always):
            self.stop.report(HOOK)

    def _at_boundary(self, step: int, *, is_last: bool, evaluates: bool) -> None:
        """Evaluate and save where this step calls for it, or is the last one.

        Before either, all metrics are known to be finite.
        """
        evaluates = evaluates and (is_last or self.cadence.evaluates(step))
        saves = is_last or self.cadence.saves(step)
        if not evaluates and not saves:
            return
        self._drain(0)
        error_rate = self._evaluate(step) if evaluates else None
        self._warn_of_skipped()
        if saves:
            self.checkpoints.save(self.state, self.task.checkpoint_meta(), error_rate)
            self.saved_step = step
        self.clock.pause(step)

    def _evaluate(self, step: int) -> float | None:
        """Evaluate every split; return the error rate that decides which checkpoint is best.

        A state that is evaluated already is not evaluated again.
        """
        if self.evaluated is not None and self.evaluated[0] == step:
            return self.evaluated[1]
        self.screen.status("evaluating")
        with self.stop.limit.timing("evaluation"):
            self._evaluate_splits(step)
        error_rate = None
        if self.results:
            self._show_results(step)
            deciding = next(iter(self.results.values()))
            error_rate = float(deciding["error_rate"])
        self.evaluated = (step, error_rate)
        return error_rate

    def _evaluate_splits(self, step: int) -> None:
        weights = self.task.config.train.evaluate_weights
        params, model_state = self._evaluated_weights()
        for split, evaluator in self.evaluators.items():
            result = evaluator(params, model_state)
            self._tell({**self._place(step, split), "weights": weights, **result}, always=True)
            if not math.isfinite(result["loss"]):
                raise self.faults.on_evaluation(split, step, result["loss"])
            self.results[split] = {"step": step, "weights": weights, **result}

    def _evaluated_weights(self) -> tuple[Params, State]:
        """Return parameters and model state that evaluations take."""
        if self.task.config.train.evaluate_weights == "ema":
            return self.state.ema, self.recalibration(self.state.ema, self.state.model_state)
        return self.state.params, self.state.model_state

    def _show_results(self, step: int) -> None:
        told = "  ".join(
            f"{split} error {percent(result['error_rate'])}  loss {result['loss']:.4f}"
            for split, result in self.results.items()
        )
        epochs = f"{self.cadence.epoch(step):g}/{self.task.config.train.epochs}"
        self.screen.line(f"epoch {epochs}  step {step}  {told}")

    def _warn_of_skipped(self) -> None:
        """Warn of files that were skipped. An evaluation skips the same ones every time."""
        skipped = {"train": self.task.parts.feed.skipped}
        skipped |= {split: evaluator.feed.skipped for split, evaluator in self.evaluators.items()}
        for split, paths in skipped.items():
            if len(paths) > self.skipped.get(split, 0):
                self.skipped[split] = len(paths)
                warn_of_skipped(self.screen, paths, split)

    def _place(self, step: int, split: str) -> Record:
        """Return how every record begins."""
        return {"step": step, "epoch": self.cadence.epoch(step), "split": split}

    def _summary(self, step: int, *, is_interrupted: bool) -> Summary:
        status: Status = "stopped"
        if is_interrupted:
            status = "interrupted"
        elif step == self.task.horizon.total_steps:
            status = "finished"
        totals = self.clock.totals()
        summary: Summary = {
            "status": status,
            "step": step,
            "epoch": self.cadence.epoch(step),
            "total_steps": self.task.horizon.total_steps,
            "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(self.state.params)),
            "skipped_steps": int(self.state.skips.total),
            "best_step": self.checkpoints.best_step(),
            "best_split": next(iter(self.evaluators), None),
            "elapsed_s": totals["elapsed_s"],
            "images_per_s": totals["images_per_s"],
        }
        for split, result in self.results.items():
            summary[split] = result
        return summary
