"""The training loop and what it carries from step to step."""

from __future__ import annotations

import math
import signal
from collections import deque
from contextlib import suppress
from typing import Any

import jax

from gnpcli.engine.clock import Clock
from gnpcli.engine.evaluator import Evaluator, Recalibration
from gnpcli.engine.loading import warn_of_skipped
from gnpcli.engine.task import Task
from gnpcli.errors import CheckpointError, DivergenceError, GnpError
from gnpcli.runs.checkpoint import Checkpoints
from gnpcli.runs.contents import Evaluation, HeldOut, Status, Summary
from gnpcli.runs.description import Description
from gnpcli.runs.log import MetricsLog
from gnpcli.step import guard, precision
from gnpcli.step.state import TrainState
from gnpcli.terminal.screen import Screen
from gnpcli.terminal.words import percent

LOOKAHEAD = 2
"""Steps dispatched before the metrics of a step are read: the device never waits for the host, nor
runs far ahead.
"""


class Loop:
    """The training loop and what it carries from step to step."""

    def __init__(
        self,
        task: Task,
        state: TrainState,
        evaluators: dict[HeldOut, Evaluator],
        checkpoints: Checkpoints,
        log: MetricsLog,
        screen: Screen,
    ):
        self.task, self.state, self.evaluators = task, state, evaluators
        self.checkpoints, self.log, self.screen = checkpoints, log, screen
        self.pending: deque[tuple[int, dict[str, jax.Array]]] = deque()
        self.recalibration = Recalibration(
            task.parts.model, task.parts.feed, task.parts.mesh,
            seed=task.config.train.seed, num_batches=task.config.train.recalibrate_batches,
        )  # fmt: skip
        self.results: dict[HeldOut, Evaluation] = {}
        self.skipped: dict[str, int] = {}
        self.saved_step: int | None = None
        self.meta = Description(task.config, task.spec).to_meta()
        self.rounding = task.rounding
        self.clock = Clock(task.config.data.batch_size)

    def run(self, start: int, stop: int, received: list[signal.Signals]) -> Summary:
        """Run the steps from `start` to `stop`, or to a signal; return the summary."""
        task = self.task
        compiled: set[Any] = set()
        warmup_steps = round(task.config.schedule.warmup_epochs * task.horizon.steps_per_epoch)
        step, measures_from = start, max(start, precision.EVERY_STEPS, warmup_steps)
        while step < stop and not received:
            step_fn = task.step_at(step)
            if step_fn not in compiled:
                self._drain(0)
                self.screen.status("compiling")
            source = task.parts.feed.source(step)
            if self.rounding is not None and step >= measures_from and task.kind_at(step) == "gnp":
                self._measure_rounding(step, source)
                measures_from = step + precision.EVERY_STEPS
            self.state, metrics = step_fn(self.state, source)
            step += 1
            if task.statistics is not None and self._is_logged(step):
                metrics |= task.statistics(self.state.opt_state)
            for value in metrics.values():
                value.copy_to_host_async()  # on its way while the next steps run; _drain picks it up
            self.pending.append((step, metrics))
            if step_fn not in compiled:
                compiled.add(step_fn)
                jax.block_until_ready(metrics)
                self.clock.pause(step)
            self._drain(LOOKAHEAD)
            self._at_boundary(step, is_last=step == stop)
        if self.saved_step != step:  # a signal between two saves, or nothing to train
            self._at_boundary(step, is_last=True, evaluates=not received)
        self.checkpoints.wait()
        return self._summary(step, is_interrupted=step < stop)

    def _measure_rounding(self, step: int, source: Any) -> None:
        """Warn, once, where the compute type cannot represent the perturbation of most parameters."""
        assert self.rounding is not None
        share, config = float(self.rounding(self.state, source)), self.task.config
        if share > precision.MOST:
            told = precision.advice(share, step=step, r=config.gr.r, dtype=config.train.dtype)
            self.screen.line(f"warning: {told}", style="yellow")
            self.rounding = None
        self.clock.pause(step)

    def _at_boundary(self, step: int, *, is_last: bool, evaluates: bool = True) -> None:
        """Evaluate and save where this step calls for it; before either, all its metrics are known
        to be finite.
        """
        config, per_epoch = self.task.config, self.task.horizon.steps_per_epoch
        epoch, is_epoch_end = step // per_epoch, step % per_epoch == 0
        evaluate = evaluates and (
            is_last or (is_epoch_end and epoch % config.train.eval_every_epochs == 0)
        )
        every_steps, every_epochs = config.checkpoint.every_steps, config.checkpoint.every_epochs
        save = (
            is_last
            or (every_steps is not None and step % every_steps == 0)
            or (every_epochs is not None and is_epoch_end and epoch % every_epochs == 0)
        )
        if not evaluate and not save:
            return
        self._drain(0)
        error_rate = self._evaluate(step) if evaluate else None
        skipped = {"train": self.task.parts.feed.skipped}
        skipped |= {split: evaluator.feed.skipped for split, evaluator in self.evaluators.items()}
        for split, paths in skipped.items():
            if len(paths) > self.skipped.get(
                split, 0
            ):  # an evaluation skips the same files every time
                self.skipped[split] = len(paths)
                warn_of_skipped(self.screen, paths, split)
        if save:
            self.checkpoints.save(self.state, self.meta, error_rate)
            self.saved_step = step
        self.clock.pause(step)

    def _evaluate(self, step: int) -> float | None:
        """Evaluate every split; return the error rate that decides which checkpoint is best."""
        self.screen.status("evaluating")
        weights = self.task.config.train.evaluate_weights
        params, model_state = self.state.params, self.state.model_state
        if weights == "ema":
            params, model_state = self.state.ema, self.recalibration(self.state.ema, model_state)
        for split, evaluator in self.evaluators.items():
            result = evaluator(params, model_state)
            self.log.write(
                {
                    "step": step,
                    "epoch": self._epoch(step),
                    "split": split,
                    "weights": weights,
                    **result,
                }
            )
            if not math.isfinite(result["loss"]):
                raise DivergenceError(
                    f"the {split} loss after step {step} is {result['loss']}; {self._advice()}"
                )
            self.results[split] = {"step": step, "weights": weights, **result}
        if not self.results:
            return None
        told = "  ".join(
            f"{split} error {percent(result['error_rate'])}  loss {result['loss']:.4f}"
            for split, result in self.results.items()
        )
        self.screen.line(
            f"epoch {self._epoch(step):g}/{self.task.config.train.epochs}  step {step}  {told}"
        )
        return float(
            next(iter(self.results.values()))["error_rate"]
        )  # val where there is one, else test

    def _drain(self, keep: int) -> None:
        """Read the metrics of all but the last `keep` dispatched steps: check every one, log those
        that are due.
        """
        while len(self.pending) > keep:
            step, on_device = self.pending.popleft()
            metrics = {name: float(value) for name, value in jax.device_get(on_device).items()}
            fault = guard.fault(metrics)
            rate = self.clock.rate(step)
            if fault or self._is_logged(step):
                self.log.write(
                    {"step": step, "epoch": self._epoch(step), "split": "train", **metrics, **rate}
                )
            if fault:
                self._on_fault(step, fault, metrics)
            epoch = (step - 1) // self.task.horizon.steps_per_epoch + 1
            self.screen.update(
                step,
                f"epoch {epoch}/{self.task.config.train.epochs}",
                metrics,
                rate["images_per_s"],
            )

    def _on_fault(self, step: int, fault: str, metrics: dict[str, float]) -> None:
        """Tell of a skipped step; at the last one allowed in a row, find out where it broke and
        stop.
        """
        in_a_row, limit = int(metrics["skips_in_a_row"]), guard.max_in_a_row(self.task.config.train)
        if in_a_row < limit:
            self.screen.line(
                f"warning: step {step} skipped ({in_a_row} in a row, stopping at {limit}): "
                + guard.describe(fault, metrics),
                style="yellow",
            )
            return
        findings = None
        with suppress(
            GnpError, jax.errors.JaxRuntimeError
        ):  # the fault counts, not what its autopsy ran into
            # Whatever was dispatched behind it, the state is still the one that the step began in.
            findings = self.task.diagnose(self.state, step - 1)
        many = (
            f"{in_a_row} steps in a row were not finite, the last of them " if in_a_row > 1 else ""
        )
        raise DivergenceError(
            f"{many}step {step}: {guard.describe(fault, metrics, findings)}; {self._advice()}"
        )

    def _is_logged(self, step: int) -> bool:
        """Return whether the step after which `step` are done is logged, faulty or not."""
        return step % self.task.config.train.log_every_steps == 0 or step in (
            1,
            self.task.horizon.total_steps,
        )

    def _epoch(self, step: int) -> float:
        return round(step / self.task.horizon.steps_per_epoch, 4)

    def _advice(self) -> str:
        remedies = ["a lower optimizer.lr", "a lower gr.r", "train.clip_norm"]
        if self.task.config.train.on_nonfinite == "stop":
            remedies.append("train.on_nonfinite=skip")
        return f"{last_good(self.checkpoints)}; try {', '.join(remedies[:-1])} or {remedies[-1]}"

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
            "epoch": self._epoch(step),
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


def last_good(checkpoints: Checkpoints) -> str:
    """Return words that name the last good checkpoint, for an error message."""
    with suppress(CheckpointError):  # of a pending save; what is on disk is what counts here
        checkpoints.wait()
    return checkpoints.last_good()
