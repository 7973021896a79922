"""Train and resume: the only training loop, and all side effects of a run."""

from __future__ import annotations

import json
import math
import signal
import typing
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from gnpcli.config import RunConfig
from gnpcli.config.loader import differences
from gnpcli.data.base import Dataset, DataSpec, FileSplit, Split
from gnpcli.data.feeds.make import make_train_feed
from gnpcli.data.feeds.memory import TrainFeed
from gnpcli.data.registry import describe
from gnpcli.devices.mesh import abstract, check_cut, make_mesh, replicated, settle_groups
from gnpcli.devices.process import describe_environment, stop_signals
from gnpcli.engine.clock import Clock
from gnpcli.engine.evaluate import Evaluator, Recalibration, load_with_progress, warn_of_skipped
from gnpcli.errors import CheckpointError, DivergenceError, GnpError, Interrupted
from gnpcli.files import write_atomically
from gnpcli.keys import run_keys
from gnpcli.models.base import Model, Params, State, parameter_shapes, starting_from
from gnpcli.models.registry import build_for
from gnpcli.recipes.plan import fit, objective
from gnpcli.runs.checkpoint import Checkpoints
from gnpcli.runs.folder import CHECKPOINTS, SUMMARY, check_free, config_from_meta, create_run, note_session, read_config
from gnpcli.runs.log import MetricsLog
from gnpcli.step import guard, precision
from gnpcli.step.optimizer import build_optimizer, make_statistics
from gnpcli.step.perturbation import perturbed_mask
from gnpcli.step.probes import make_diagnosis, make_rounding_measure
from gnpcli.step.schedules import GrSchedule, Horizon, Kind, gr_schedule, lr_schedule
from gnpcli.step.state import TrainState, init_state
from gnpcli.step.train import make_train_step
from gnpcli.terminal.screen import Screen
from gnpcli.weights.source import Pretrained, complete, fit_pretrained, open_pretrained

LOOKAHEAD = 2
"""Steps dispatched before the metrics of a step are read: the device never waits for the host, nor runs far ahead."""


@dataclass(frozen=True)
class Task:
    """What a configuration and its data amount to: the pieces that the loop puts together."""

    config: RunConfig
    mesh: Mesh
    spec: DataSpec
    model: Model
    feed: TrainFeed
    horizon: Horizon
    gr: GrSchedule
    plain_step: Any
    gnp_step: Any
    reuse_step: Any
    statistics: Any | None
    """``opt_state -> metrics`` of an adaptive optimizer, for the steps that are logged."""
    rounding: Any | None
    """See `gnpcli.step.probes.make_rounding_measure`; None where nothing is perturbed or it is all in float32."""
    init: Callable[..., TrainState]
    """``init(weights=None)``: the state before the first step, from parameters and model state where they are given."""

    def step_at(self, step: int) -> Any:
        """Return the compiled step for `step`; one of two gradients only where they act."""
        return {"plain": self.plain_step, "gnp": self.gnp_step, "reuse": self.reuse_step}[self.gr.kinds[step]]

    def abstract_state(self) -> TrainState:
        """Return shapes, dtypes and shardings of the state, allocating nothing."""
        state: TrainState = abstract(self.init, self.mesh)
        return state

    def diagnose(self, state: TrainState, step: int) -> Any:
        """Return the findings of `gnpcli.step.probes.make_diagnosis` about `step`, which began in `state`."""
        config, kind = self.config, self.gr.kinds[step]
        program = make_diagnosis(self.model, self.feed, config.train, config.gr, self.gr, self.mesh, kind=kind)
        return jax.device_get(program(state, self.feed.source(step)))


def build_task(config: RunConfig, train: Split | FileSplit, spec: DataSpec, mesh: Mesh) -> Task:
    """Build model, feed, optimizer, schedules and steps; nothing is compiled yet.

    Raises:
        ConfigError: Model, image size and batch size do not fit together, the batch cannot be cut as asked for, or no
            parameter is perturbed.
    """
    config = settle_groups(config)
    check_cut(config, mesh)
    image_shape = (spec.image_size, spec.image_size, spec.channels)
    model = build_for(config, spec)
    if config.gr.perturb != "all":
        perturbed_mask(parameter_shapes(model, image_shape), config.gr.perturb)  # a pattern may match nothing
    order_key = run_keys(config.train.seed).order
    feed = make_train_feed(train, spec, config.data, mesh, key=order_key, dtype=config.train.dtype)
    horizon = Horizon(feed.steps_per_epoch, config.train.epochs)
    lr = lr_schedule(config.schedule, config.optimizer.lr, horizon)
    gr = gr_schedule(config.gr, horizon, config.train.seed)
    optimizer = build_optimizer(config.optimizer, config.train)
    plain_step, gnp_step, reuse_step = (
        make_train_step(model, feed, optimizer, config.train, config.gr, gr, lr, mesh, kind=kind)
        for kind in typing.get_args(Kind)
    )
    averages, reuses = config.train.ema_decay is not None, config.gr.between == "reuse"
    visits = "gnp" in gr.kinds and config.gr.gradient == "finite-difference"
    is_narrow = config.train.dtype != "float32"
    rounding = make_rounding_measure(model, feed, config.train, config.gr, mesh) if visits and is_narrow else None

    def init(weights: tuple[Params, State] | None = None) -> TrainState:
        start = model if weights is None else starting_from(model, *weights)
        return init_state(start, image_shape, optimizer, config.train.seed, averages=averages, reuses=reuses)

    init = jax.jit(init, out_shardings=replicated(mesh))
    statistics = make_statistics(config.optimizer)
    return Task(
        config, mesh, spec, model, feed, horizon, gr, plain_step, gnp_step, reuse_step, statistics, rounding, init
    )


def train(config: RunConfig, run_dir: Path, *, max_steps: int | None = None, quiet: bool = False) -> dict[str, Any]:
    """Train `config` from the start into a new run folder.

    Args:
        config: Resolved configuration.
        run_dir: New or empty folder.
        max_steps: Stop, saved and evaluated, after this many steps; the schedules keep the length of the whole
            training, so that `resume` goes on as if it had not stopped.
        quiet: Print only results and warnings.

    Returns:
        What ``summary.json`` holds.

    Raises:
        GnpError: See its kinds; the run folder is left resumable.
    """
    screen = Screen(quiet=quiet)
    pretrained = open_pretrained(config, screen) if config.train.init_from is not None else None
    config = settle_groups(config if pretrained is None else complete(config, pretrained))
    check_free(run_dir, config)
    # Everything that can be wrong with data, model and weights shows before a run folder exists.
    task, dataset = _prepare(config, screen)
    state = None if pretrained is None else _start_from(pretrained, task, screen)
    create_run(run_dir, config)
    return _run(task, dataset, run_dir.resolve(), screen, max_steps, state)


def resume(run_dir: Path, *, max_steps: int | None = None, quiet: bool = False) -> dict[str, Any]:
    """Continue a run from its last good checkpoint, bit for bit; arguments, result and errors as in `train`."""
    screen = Screen(quiet=quiet)
    task, dataset = _prepare(read_config(run_dir), screen)
    return _run(task, dataset, run_dir.resolve(), screen, max_steps)


def _prepare(config: RunConfig, screen: Screen) -> tuple[Task, Dataset]:
    mesh = make_mesh(config)
    # What is wrong with the configuration shows before anything is downloaded or decoded.
    if (info := describe(config.data)) is not None:
        fit(config, info)
    dataset = load_with_progress(config, screen)
    return build_task(config, dataset.train, dataset.spec, mesh), dataset


def _start_from(pretrained: Pretrained, task: Task, screen: Screen) -> TrainState:
    """Return the state before the first step with the parameters of `pretrained`, and say what became of them."""
    image_shape = (task.spec.image_size, task.spec.image_size, task.spec.channels)
    init = partial(task.model.init, run_keys(task.config.train.seed).init, image_shape)
    params, model_state, notes = fit_pretrained(pretrained, task.config, init)
    screen.line(f"weights    {pretrained.about} in {pretrained.path}, SHA-256 {pretrained.sha256[:8]}")
    for note in notes:
        screen.line(f"           {note}")
    return task.init((params, model_state))


def _run(
    task: Task,
    dataset: Dataset,
    run_dir: Path,
    screen: Screen,
    max_steps: int | None,
    initial: TrainState | None = None,
) -> dict[str, Any]:
    """Run from the last checkpoint, else from `initial`, else from what the configuration starts from."""
    total = task.horizon.total_steps
    checkpoints = Checkpoints(run_dir / CHECKPOINTS, task.config.checkpoint)
    try:
        state = _restore(task, checkpoints, screen)
        start = 0 if state is None else int(state.step)
        stop = total if max_steps is None else min(total, max_steps)
        summary = _read_summary(run_dir)
        if start >= stop and summary.get("step") == start and summary.get("status") in ("finished", "stopped"):
            screen.line(f"{run_dir} is already at step {start}: nothing to do", style="bold")
            return summary
        if state is None and task.config.train.init_from is not None:
            state = initial or _start_from(open_pretrained(task.config, screen), task, screen)
            checkpoints.save(state, _meta(task))  # so that resuming does not need the weights' own file
            checkpoints.wait()
        state = task.init() if state is None else state
        note_session(run_dir, describe_environment(), start)
        _introduce(task, dataset, run_dir, screen, state, start)
        evaluators = {
            name: Evaluator(split, task.spec, task.config, task.model, task.mesh)
            for name, split in (("val", dataset.validation), ("test", dataset.test))
            if split is not None
        }
        try:
            with (
                MetricsLog(run_dir, start, on_damage=lambda what: screen.line(f"warning: {what}", "yellow")) as log,
                screen.progress(total, start),
                stop_signals() as received,
            ):
                summary = _Loop(task, state, evaluators, checkpoints, log, screen).run(start, stop, received)
        except DivergenceError as error:
            _write_summary(run_dir, {"status": "diverged", "error": str(error)})
            raise
        except OSError as error:
            raise GnpError(f"cannot write to {run_dir}: {error.strerror}; {_last_good(checkpoints)}") from error
    finally:
        task.feed.close()
        checkpoints.close()
    summary = _write_summary(run_dir, summary)
    if summary["status"] == "interrupted":
        raise Interrupted(
            f"stopped by {received[0].name} after step {summary['step']}, saved; continue with `gnp resume {run_dir}`",
            received[0],
        )
    return summary


def _read_summary(run_dir: Path) -> dict[str, Any]:
    path = run_dir / SUMMARY
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _write_summary(run_dir: Path, summary: dict[str, Any]) -> dict[str, Any]:
    summary = {"run_dir": str(run_dir), **summary}
    write_atomically(run_dir / SUMMARY, json.dumps(summary, indent=2) + "\n")
    return summary


class _Loop:
    """The training loop and what it carries from step to step."""

    def __init__(
        self,
        task: Task,
        state: TrainState,
        evaluators: dict[str, Evaluator],
        checkpoints: Checkpoints,
        log: MetricsLog,
        screen: Screen,
    ):
        self.task, self.state, self.evaluators = task, state, evaluators
        self.checkpoints, self.log, self.screen = checkpoints, log, screen
        self.pending: deque[tuple[int, dict[str, jax.Array]]] = deque()
        self.recalibration = Recalibration(
            task.model, task.feed, task.mesh,
            seed=task.config.train.seed, num_batches=task.config.train.recalibrate_batches,
        )  # fmt: skip
        self.results: dict[str, dict[str, Any]] = {}
        self.skipped: dict[str, int] = {}
        self.saved_step: int | None = None
        self.meta = _meta(task)
        self.rounding = task.rounding
        self.clock = Clock(task.config.data.batch_size)

    def run(self, start: int, stop: int, received: list[signal.Signals]) -> dict[str, Any]:
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
            source = task.feed.source(step)
            if self.rounding is not None and step >= measures_from and task.gr.kinds[step] == "gnp":
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
            told = precision.advice(share, step=step, r=config.gr.r or 0.0, dtype=config.train.dtype)
            self.screen.line(f"warning: {told}", style="yellow")
            self.rounding = None
        self.clock.pause(step)

    def _at_boundary(self, step: int, *, is_last: bool, evaluates: bool = True) -> None:
        """Evaluate and save where this step calls for it; before either, all its metrics are known to be finite."""
        config, per_epoch = self.task.config, self.task.horizon.steps_per_epoch
        epoch, is_epoch_end = step // per_epoch, step % per_epoch == 0
        evaluate = evaluates and (is_last or (is_epoch_end and epoch % config.train.eval_every_epochs == 0))
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
        skipped = {"train": self.task.feed.skipped}
        skipped |= {split: evaluator.feed.skipped for split, evaluator in self.evaluators.items()}
        for split, paths in skipped.items():
            if len(paths) > self.skipped.get(split, 0):  # an evaluation skips the same files every time
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
            self.log.write({"step": step, "epoch": self._epoch(step), "split": split, "weights": weights, **result})
            if not math.isfinite(result["loss"]):
                raise DivergenceError(f"the {split} loss after step {step} is {result['loss']}; {self._advice()}")
            self.results[split] = {"step": step, "weights": weights, **result}
        if not self.results:
            return None
        told = "  ".join(
            f"{split} error {100 * result['error_rate']:.2f} %  loss {result['loss']:.4f}"
            for split, result in self.results.items()
        )
        self.screen.line(f"epoch {self._epoch(step):g}/{self.task.config.train.epochs}  step {step}  {told}")
        return float(next(iter(self.results.values()))["error_rate"])  # val where there is one, else test

    def _drain(self, keep: int) -> None:
        """Read the metrics of all but the last `keep` dispatched steps: check every one, log those that are due."""
        while len(self.pending) > keep:
            step, on_device = self.pending.popleft()
            metrics = {name: float(value) for name, value in jax.device_get(on_device).items()}
            fault = guard.fault(metrics)
            rate = self.clock.rate(step)
            if fault or self._is_logged(step):
                self.log.write({"step": step, "epoch": self._epoch(step), "split": "train", **metrics, **rate})
            if fault:
                self._on_fault(step, fault, metrics)
            epoch = (step - 1) // self.task.horizon.steps_per_epoch + 1
            self.screen.update(step, f"epoch {epoch}/{self.task.config.train.epochs}", metrics, rate["images_per_s"])

    def _on_fault(self, step: int, fault: str, metrics: dict[str, float]) -> None:
        """Tell of a skipped step; at the last one allowed in a row, find out where it broke and stop."""
        in_a_row, limit = int(metrics["skips_in_a_row"]), guard.max_in_a_row(self.task.config.train)
        if in_a_row < limit:
            self.screen.line(
                f"warning: step {step} skipped ({in_a_row} in a row, stopping at {limit}): "
                + guard.describe(fault, metrics),
                style="yellow",
            )
            return
        findings = None
        with suppress(GnpError, jax.errors.JaxRuntimeError):  # the fault counts, not what its autopsy ran into
            # Whatever was dispatched behind it, the state is still the one that the step began in.
            findings = self.task.diagnose(self.state, step - 1)
        many = f"{in_a_row} steps in a row were not finite, the last of them " if in_a_row > 1 else ""
        raise DivergenceError(f"{many}step {step}: {guard.describe(fault, metrics, findings)}; {self._advice()}")

    def _is_logged(self, step: int) -> bool:
        """Return whether the step after which `step` are done is logged, faulty or not."""
        return step % self.task.config.train.log_every_steps == 0 or step in (1, self.task.horizon.total_steps)

    def _epoch(self, step: int) -> float:
        return round(step / self.task.horizon.steps_per_epoch, 4)

    def _advice(self) -> str:
        remedies = ["a lower optimizer.lr", "a lower gr.r", "train.clip_norm"]
        if self.task.config.train.on_nonfinite == "stop":
            remedies.append("train.on_nonfinite=skip")
        return f"{_last_good(self.checkpoints)}; try {', '.join(remedies[:-1])} or {remedies[-1]}"

    def _summary(self, step: int, *, is_interrupted: bool) -> dict[str, Any]:
        best = self.checkpoints.best_step()
        status = "interrupted" if is_interrupted else "finished" if step == self.task.horizon.total_steps else "stopped"
        return {
            "status": status,
            "step": step,
            "epoch": self._epoch(step),
            "total_steps": self.task.horizon.total_steps,
            "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(self.state.params)),
            "skipped_steps": int(self.state.skips.total),
            **self.results,
            "best_step": best,
            "best_split": next(iter(self.evaluators), None),
            **self.clock.totals(),
        }


def _meta(task: Task) -> dict[str, Any]:
    return {"config": task.config.model_dump(mode="json"), "data": task.spec.to_dict()}


def _last_good(checkpoints: Checkpoints) -> str:
    with suppress(CheckpointError):  # of a pending save; what is on disk is what counts here
        checkpoints.wait()
    return checkpoints.last_good()


def _restore(task: Task, checkpoints: Checkpoints, screen: Screen) -> TrainState | None:
    """Return the state of the last good checkpoint, None where there is none; damaged ones are set aside and named."""

    def restore(step: int) -> TrainState:
        meta = checkpoints.read_meta(step)
        different = differences(config_from_meta(meta), task.config)
        if different:
            raise CheckpointError(
                f"the checkpoint of step {step} in {checkpoints.directory} is of another configuration: "
                + "; ".join(different)
            )
        return checkpoints.restore(step, task.abstract_state())

    def on_damaged(step: int, error: CheckpointError) -> None:
        moved = checkpoints.set_aside(step)
        screen.line(f"warning: {error}; moved to {moved.name}, falling back to the one before", style="yellow")

    found = checkpoints.restore_latest(restore, on_damaged=on_damaged)
    return None if found is None else found[1]


def _introduce(task: Task, dataset: Dataset, run_dir: Path, screen: Screen, state: TrainState, start: int) -> None:
    config, spec = task.config, task.spec
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    sizes = "  ".join(
        f"{name} {len(split.labels):,}"
        for name, split in (("train", dataset.train), ("val", dataset.validation), ("test", dataset.test))
        if split is not None
    )
    screen.line(f"run        {run_dir}")
    screen.line(f"model      {config.model.name}, {count:,} parameters, {config.train.dtype}")
    screen.line(f"data       {config.data.name}: {sizes}, {spec.num_classes} classes, {spec.image_size} px")
    screen.line(f"objective  {objective(config)}")
    screen.line(
        f"steps      {task.horizon.total_steps:,} ({task.horizon.steps_per_epoch} an epoch) on "
        f"{task.mesh.size} {jax.default_backend()} device(s)" + (f", from step {start}" if start else "")
    )
