"""Train and resume: the only training loop, and all side effects of a run."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jax

from gnpcli.config.loader import differences
from gnpcli.config.resolved import Resolved
from gnpcli.data.base import Dataset, FileSplit, Split
from gnpcli.data.registry import describe_data
from gnpcli.devices.mesh import make_mesh
from gnpcli.devices.process import describe_environment, stop_signals
from gnpcli.engine.evaluator import Evaluator
from gnpcli.engine.loading import load_with_progress
from gnpcli.engine.loop import Loop, last_good
from gnpcli.engine.task import Task, build_task
from gnpcli.errors import CheckpointError, DivergenceError, GnpError, Interrupted
from gnpcli.keys import run_keys
from gnpcli.recipes.plan import fit
from gnpcli.recipes.wording import objective_in_words
from gnpcli.runs.checkpoint import Checkpoints
from gnpcli.runs.contents import HeldOut, Summary, is_done
from gnpcli.runs.description import Description, read_description
from gnpcli.runs.folder import RunFolder
from gnpcli.step.state import TrainState
from gnpcli.terminal.screen import Screen
from gnpcli.weights.source import Pretrained, complete, fit_pretrained, open_pretrained


def train(
    config: Resolved, run_dir: Path, *, max_steps: int | None = None, quiet: bool = False
) -> Summary:
    """Train `config` from the start into a new run folder.

    Args:
        config: Resolved configuration.
        run_dir: New or empty folder.
        max_steps: Stop, saved and evaluated, after this many steps; the schedules keep the length
            of the whole training, so that `resume` goes on as if it had not stopped.
        quiet: Print only results and warnings.

    Returns:
        What ``summary.json`` holds.

    Raises:
        GnpError: See its kinds; the run folder is left resumable.
    """
    screen = Screen(quiet=quiet)
    pretrained = open_pretrained(config, screen) if config.train.init_from is not None else None
    if pretrained is not None:
        config = complete(config, pretrained)
    RunFolder(run_dir).check_free(config)
    # Everything that can be wrong with data, model and weights shows before a run folder exists.
    task, dataset = _prepare(config, screen)
    state = None if pretrained is None else _start_from(pretrained, task, screen)
    run = RunFolder(run_dir.resolve(), partial(_warn, screen))
    run.create(config)
    return _run(task, dataset, run, screen, max_steps, state)


def resume(run_dir: Path, *, max_steps: int | None = None, quiet: bool = False) -> Summary:
    """Continue a run from its last good checkpoint, bit for bit; arguments, result and errors as in
    `train`.
    """
    screen = Screen(quiet=quiet)
    task, dataset = _prepare(RunFolder(run_dir).config(), screen)
    run = RunFolder(run_dir.resolve(), partial(_warn, screen))
    run.set_aside_damaged()
    return _run(task, dataset, run, screen, max_steps)


def _prepare(config: Resolved, screen: Screen) -> tuple[Task, Dataset]:
    mesh = make_mesh(config)
    # What is wrong with the configuration shows before anything is downloaded or decoded.
    if (info := describe_data(config.data)) is not None:
        fit(config, info)
    dataset = load_with_progress(config, screen)
    return build_task(config, dataset.train, dataset.spec, mesh), dataset


def _start_from(pretrained: Pretrained, task: Task, screen: Screen) -> TrainState:
    """Return the state before the first step with the parameters of `pretrained`, and say what
    became of them.
    """
    image_shape = (task.spec.image_size, task.spec.image_size, task.spec.channels)
    init = partial(task.parts.model.init, run_keys(task.config.train.seed).init, image_shape)
    params, model_state, notes = fit_pretrained(pretrained, task.config, init)
    screen.line(
        f"weights    {pretrained.about} in {pretrained.path}, SHA-256 {pretrained.sha256[:8]}"
    )
    for note in notes:
        screen.line(f"           {note}")
    return task.init((params, model_state))


def _run(
    task: Task,
    dataset: Dataset,
    run: RunFolder,
    screen: Screen,
    max_steps: int | None,
    initial: TrainState | None = None,
) -> Summary:
    """Run from the last checkpoint, else from `initial`, else from what the configuration starts
    from.
    """
    total = task.horizon.total_steps
    checkpoints = run.checkpoints(task.config.checkpoint)
    try:
        state = _restore(task, checkpoints, screen)
        start = 0 if state is None else int(state.step)
        stop = total if max_steps is None else min(total, max_steps)
        summary = run.summary()
        if start >= stop and is_done(summary, start):
            screen.line(f"{run} is already at step {start}: nothing to do", style="bold")
            return {**summary, "run_dir": str(run)}
        if state is None and task.config.train.init_from is not None:
            state = initial or _start_from(open_pretrained(task.config, screen), task, screen)
            # Resuming then does not need the weights' own file.
            checkpoints.save(state, Description(task.config, task.spec).to_meta())
            checkpoints.wait()
        state = task.init() if state is None else state
        run.note_session(describe_environment(), start)
        _introduce(task, dataset, run, screen, state, start)
        splits: dict[HeldOut, Split | FileSplit | None] = {
            "val": dataset.validation,
            "test": dataset.test,
        }
        evaluators = {
            name: Evaluator(split, task.spec, task.config, task.parts.model, task.parts.mesh)
            for name, split in splits.items()
            if split is not None
        }
        try:
            with (
                run.open_log(start) as log,
                screen.progress(total, start),
                stop_signals() as received,
            ):
                summary = Loop(task, state, evaluators, checkpoints, log, screen).run(
                    start, stop, received
                )
        except DivergenceError as error:
            run.write_summary({"status": "diverged", "error": str(error)})
            raise
        except OSError as error:
            raise GnpError(
                f"cannot write to {run}: {error.strerror}; {last_good(checkpoints)}"
            ) from error
    finally:
        task.parts.feed.close()
        checkpoints.close()
    summary = run.write_summary(summary)
    if summary["status"] == "interrupted":
        raise Interrupted(
            f"stopped by {received[0].name} after step {summary['step']}, saved; continue with "
            f"`gnp resume {run}`",
            received[0],
        )
    return summary


def _warn(screen: Screen, text: str) -> None:
    screen.line(f"warning: {text}", style="yellow")


def _restore(task: Task, checkpoints: Checkpoints, screen: Screen) -> TrainState | None:
    """Return the state of the last good checkpoint, None where there is none; damaged ones are set
    aside and named.
    """

    def restore(step: int) -> TrainState:
        saved = read_description(checkpoints, step)
        different = differences(saved.config, task.config)
        if different:
            raise CheckpointError(
                f"the checkpoint of step {step} in {checkpoints.directory} is of another "
                "configuration: " + "; ".join(different)
            )
        return checkpoints.restore(step, task.abstract_state())

    def on_damaged(step: int, error: CheckpointError) -> None:
        moved = checkpoints.set_aside(step)
        screen.line(
            f"warning: {error}; moved to {moved.name}, falling back to the one before",
            style="yellow",
        )

    found = checkpoints.restore_latest(restore, on_damaged=on_damaged)
    return None if found is None else found[1]


def _introduce(
    task: Task, dataset: Dataset, run: RunFolder, screen: Screen, state: TrainState, start: int
) -> None:
    config, spec = task.config, task.spec
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    sizes = "  ".join(
        f"{name} {len(split.labels):,}"
        for name, split in (
            ("train", dataset.train),
            ("val", dataset.validation),
            ("test", dataset.test),
        )
        if split is not None
    )
    screen.line(f"run        {run}")
    screen.line(f"model      {config.model.name}, {count:,} parameters, {config.train.dtype}")
    screen.line(
        f"data       {config.data.name}: {sizes}, {spec.num_classes} classes, {spec.image_size} px"
    )
    screen.line(f"objective  {objective_in_words(config)}")
    screen.line(
        f"steps      {task.horizon.total_steps:,} ({task.horizon.steps_per_epoch} an epoch) on "
        f"{task.parts.mesh.size} {jax.default_backend()} device(s)"
        + (f", from step {start}" if start else "")
    )
