"""Train and resume: what a run is made from, and what a program calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from gnpcli.config.loader import differences, dump
from gnpcli.config.paths import checkpoint_path, user_path
from gnpcli.config.resolved import Resolved
from gnpcli.config.same_run import as_begun, computed_otherwise
from gnpcli.data.base import DataInfo, Dataset
from gnpcli.data.registry import as_configured, can_stream, describe_data
from gnpcli.data.room import check_room
from gnpcli.devices.mesh import make_mesh
from gnpcli.devices.processes import peers
from gnpcli.engine.hooks import Hook
from gnpcli.engine.loading import check_same_images, load_with_progress
from gnpcli.engine.session import Session
from gnpcli.engine.starting import state_from
from gnpcli.engine.task import Task, build_task
from gnpcli.engine.time_limit import end_of
from gnpcli.errors import ConfigError
from gnpcli.recipes.plan import fit
from gnpcli.recipes.presets import with_code
from gnpcli.recipes.rounding import lost_radius
from gnpcli.recipes.splitting import little_split
from gnpcli.runs.contents import Summary, is_at_end
from gnpcli.runs.folder import RunFolder
from gnpcli.runs.shared import claimed_run, run_folder
from gnpcli.terminal.screen import Screen
from gnpcli.terminal.words import few
from gnpcli.weights.source import complete, open_pretrained


def train(
    config: Resolved,
    run_dir: Path | str | None = None,
    *,
    data: Dataset | None = None,
    hooks: Sequence[Hook] = (),
    screen: Screen | None = None,
    max_steps: int | None = None,
    quiet: bool = False,
    resume: bool = False,
) -> Summary:
    """Train `config` from the start into a new run folder, or go on with `resume`.

    Args:
        config: Resolved configuration, see `gnpcli.recipes.presets.resolve`.
        run_dir: New or empty folder; None makes one in ``runs/``. It gets ``config.yaml``,
            ``metrics.jsonl``, TensorBoard events, ``environment.json``, ``run.json``,
            ``checkpoints/`` and ``summary.json``. It is held for this process alone: see
            `gnpcli.locks.FolderLock`.
        data: Images in memory (`Dataset.from_arrays`) in the place of what `config.data` names.
            Of that section the keys that say where images are play no part, and all others act:
            batch sizes, augmentation, `validation_fraction`, `mean` and `std`. The run records the
            name of the data set as `data.name`.
        hooks: What looks on, see `gnpcli.engine.hooks`. They are called after those that write the
            log. An error of a hook ends the training, and is raised as it is. What is saved by then
            can be resumed.
        screen: Where a person looks on; None takes a new one on stderr.
        max_steps: Stop, saved and evaluated, after this many steps. The schedules keep the length
            of the whole training, so that `resume` goes on as if it had not stopped.
        quiet: Print only results and warnings. Of no effect with a `screen`.
        resume: Go on where `run_dir` holds this very run already, as `gnpcli.engine.train.resume`
            does; do nothing where it is at its end. So the same call may be made until it returns.
            Keys of `gnpcli.config.same_run.COMPUTED_BY` may have other values than at the start.

    Returns:
        What ``summary.json`` holds. Its `status` is ``finished``, or ``stopped`` after `max_steps`
        or where a hook says so.

    Raises:
        ConfigError: The configuration does not fit the data or the devices, or `run_dir` holds
            other files, or a run: any run, and with `resume` one of another configuration.
        DataError: The data is missing or damaged.
        DivergenceError: A loss or a gradient is not finite (``train.on_nonfinite``).
        FolderInUse: Another process trains in `run_dir`, and is named.
        Interrupted: One of `gnpcli.devices.signals.STOP_SIGNALS` came, or the time limit is near
            (`train.time_limit`). The run is saved.
        GnpError: Anything else that its message names. The run folder is left resumable.
    """
    screen = screen or Screen(quiet=quiet)
    if data is not None:
        config = _named(config, data)
    folder = None if run_dir is None else Path(run_dir)
    end_s = end_of(config.train.time_limit, screen.line)
    with claimed_run(config, folder, screen.warn) as run:
        if resume and run.exists():
            return _go_on(run, config, data, hooks, screen, max_steps, end_s)
        pretrained = None
        if config.train.init_from is not None:
            pretrained = open_pretrained(config, screen)
            config = complete(config, pretrained)
        run.check_free(config)
        # Everything that can be wrong with data, model and weights shows before a run begins.
        task, dataset = _prepare(config, data, screen)
        initial = None if pretrained is None else state_from(pretrained, task, screen)
        run.create(config)
        session = Session(task, dataset, run, screen, hooks, end_s=end_s)
        return session.go(max_steps, initial)


def resume(
    run_dir: Path | str,
    changes: Mapping[str, Any] | None = None,
    *,
    data: Dataset | None = None,
    hooks: Sequence[Hook] = (),
    screen: Screen | None = None,
    max_steps: int | None = None,
    quiet: bool = False,
    accept_changed_data: bool = False,
    restart: bool = False,
) -> Summary:
    """Continue a run from its last good checkpoint, bit for bit.

    Args:
        run_dir: The folder of the run.
        changes: ``{"section.key": value}`` of how the run is computed from here on
            (`gnpcli.config.same_run.COMPUTED_BY`). ``config.yaml`` stays as it is, and
            ``environment.json`` records them.
        data: The data set that `train` was given, where it was given one.
        hooks, screen, max_steps, quiet: As of `train`.
        accept_changed_data: Go on where the data are others than at the last checkpoint, if they
            fit the model. ``environment.json`` records what has changed.
        restart: Start anew where the run has checkpoints and none can be used. They are set aside.

    Returns:
        What ``summary.json`` holds.

    Raises:
        CheckpointError: The run has checkpoints and none can be used, or the data have changed
            since.
        RunReadError: A file of the run cannot be read. Nothing was changed.
        ConfigError: The model is code of somebody's own, which the program has not imported and
            ``GNP_TRUST_CODE`` does not allow. Or a key of `changes` says what the run is.
        FolderInUse: Another process trains the run, and is named.
        GnpError: As of `train`.
    """
    screen = screen or Screen(quiet=quiet)
    run_dir = user_path(run_dir)
    begun = with_code(RunFolder(run_dir).config(), f"{run_dir}/config.yaml")
    config = computed_otherwise(begun, changes or {})
    end_s = end_of(config.train.time_limit, screen.line)
    run = run_folder(checkpoint_path(run_dir), screen.warn)
    with run.claimed():
        task, dataset = _prepare(config, data, screen)
        session = Session(
            task,
            dataset,
            run,
            screen,
            hooks,
            accept_changed_data=accept_changed_data,
            restart=restart,
            computed_otherwise=differences(begun, config),
            end_s=end_s,
        )
        return session.go(max_steps)


def _go_on(
    run: RunFolder,
    config: Resolved,
    data: Dataset | None,
    hooks: Sequence[Hook],
    screen: Screen,
    max_steps: int | None,
    end_s: float | None,
) -> Summary:
    """Go on with the run of `config`, unless it is at its end: then no data is needed."""
    begun = run.check_same(config)
    summary = run.summary()
    if is_at_end(summary, max_steps):
        screen.line(f"{run} is already at step {summary['step']}: nothing to do", style="bold")
        return {**summary, "run_dir": str(run)}
    config = as_begun(begun, config)
    task, dataset = _prepare(config, data, screen)
    changes = differences(begun, config)
    session = Session(task, dataset, run, screen, hooks, computed_otherwise=changes, end_s=end_s)
    return session.go(max_steps)


def _named(config: Resolved, data: Dataset) -> Resolved:
    """Return `config` with the name of the data set that takes the place of its own."""
    if config.data.name == data.spec.name:
        return config
    return config.replaced({"data.name": data.spec.name})


def _check_same_everywhere(config: Resolved) -> None:
    """Refuse processes that were started for another run."""
    own = dump(config).split("\n")
    first = peers.decided("config", lambda: own)
    for index, lines in enumerate(peers.gathered("same", sorted({*own} - {*first}))):
        if lines:
            raise ConfigError(
                f"process {index} was started with another configuration than process 0: "
                f"{few([line.strip() for line in lines])}"
            )


def _check_room(config: Resolved, info: DataInfo, mesh: Mesh) -> None:
    """Refuse images that are more than the memory of a device."""
    check_room(config.data, info, mesh.size, can_stream=can_stream(config.data))


def _prepare(config: Resolved, data: Dataset | None, screen: Screen) -> tuple[Task, Dataset]:
    mesh = make_mesh(config)
    _check_same_everywhere(config)
    # What is wrong with the configuration shows before anything is downloaded or decoded.
    info = describe_data(config.data) if data is None else data.info
    if info is not None:
        fit(config, info)
        _check_room(config, info, mesh)
    if data is None:
        dataset = load_with_progress(config, screen)
    else:
        dataset = as_configured(data, config.data)
        check_same_images(dataset.spec)
    _check_room(config, dataset.info, mesh)
    task = build_task(config, dataset.train, dataset.spec, mesh)
    params = task.abstract_state().params
    for warning in (lost_radius(config, params), little_split(config, params, mesh.size)):
        if warning is not None:
            screen.warn(warning)
    return task, dataset
