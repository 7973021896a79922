"""Where a session begins: at a checkpoint, at weights from elsewhere, or at drawn ones."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from gnpcli.config.same_run import another_run
from gnpcli.engine.same_data import accepted_changes
from gnpcli.engine.task import Task
from gnpcli.errors import CheckpointError
from gnpcli.keys import run_keys
from gnpcli.runs.checkpoint import Checkpoints
from gnpcli.runs.description import Description, read_description
from gnpcli.runs.saves import DamagedCheckpoint, Saves
from gnpcli.step.state import TrainState
from gnpcli.terminal.screen import Screen
from gnpcli.weights.source import Pretrained, fit_pretrained, in_words, open_pretrained


def starting_state(
    task: Task, checkpoints: Checkpoints, screen: Screen, initial: TrainState | None
) -> TrainState:
    """Return the state of a new run, and save it where it came from weights elsewhere.

    Args:
        task: What is trained.
        checkpoints: Of the run.
        screen: Told what became of the weights.
        initial: The state from ``train.init_from``, where it is made already.
    """
    if task.config.train.init_from is None:
        return task.init()
    state = initial or state_from(open_pretrained(task.config, screen), task, screen)
    # Saved, so that resuming does not need the weights' own file.
    checkpoints.save(state, task.checkpoint_meta())
    checkpoints.wait()
    return state


def state_from(pretrained: Pretrained, task: Task, screen: Screen) -> TrainState:
    """Return the state before the first step with the parameters of `pretrained`.

    The screen is told what became of them.
    """
    image_shape = (task.spec.image_size, task.spec.image_size, task.spec.channels)
    init = partial(task.parts.model.init, run_keys(task.config.train.seed).init, image_shape)
    params, model_state, notes = fit_pretrained(pretrained, task.config, init)
    for index, line in enumerate(in_words(pretrained, notes)):
        screen.line(f"{'' if index else 'weights':<10} {line}")
    return task.init((params, model_state))


class Restored(NamedTuple):
    """Where a run goes on."""

    state: TrainState
    changes: list[str]
    """Of the data since the checkpoint was saved, which were accepted; a phrase each."""


def restore(
    task: Task,
    saves: Saves,
    screen: Screen,
    *,
    accept_changed_data: bool = False,
    restart: bool = False,
) -> Restored | None:
    """Return the state of the last good save; None where there is none.

    Damaged saves are named, and set aside once it is known what to go on from.

    Args:
        task: What is trained.
        saves: Of the run.
        screen: Told of damaged saves.
        accept_changed_data: Go on where the data are others than at that save.
        restart: Start anew where there is no good save.

    Raises:
        CheckpointError: None is good; or one is of another configuration, or of other images.
        RunReadError: One cannot be read; all are as they were.
    """
    damaged: dict[int, DamagedCheckpoint] = {}

    def read(step: int) -> Restored:
        saved = read_description(saves, step)
        what = f"the checkpoint of step {step} in {saves.directory}"
        _check_same_run(saved, task, what)
        changes = accepted_changes(
            saved.data, task.spec, what, accept=accept_changed_data, screen=screen
        )
        return Restored(saves.restore(step, task.abstract_state()), changes)

    found = saves.restore_latest(read, on_damaged=damaged.__setitem__)
    if found is None and damaged and not restart:
        raise _none_is_good(saves, damaged, screen)
    # Older ones come next, should the restored one be damaged one day.
    for step, error in (saves.damaged() | damaged).items():
        moved = saves.set_aside(step)
        screen.warn(f"{error}; moved to {moved.name}")
    if found is None:
        return None
    if restart:
        screen.warn(f"--restart is not needed: the checkpoint of step {found[0]} is good")
    restored: Restored = found[1]
    return restored


def _none_is_good(
    saves: Saves, damaged: Mapping[int, DamagedCheckpoint], screen: Screen
) -> CheckpointError:
    for error in damaged.values():
        screen.warn(str(error))
    steps, run = ", ".join(map(str, damaged)), saves.directory.parent
    return CheckpointError(
        f"no checkpoint in {saves.directory} can be used (steps {steps}); `gnp resume {run} "
        "--restart` sets them aside and starts anew"
    )


def _check_same_run(saved: Description, task: Task, what: str) -> None:
    different = another_run(saved.config, task.config)
    if different:
        raise CheckpointError(f"{what} is of another configuration: " + "; ".join(different))
