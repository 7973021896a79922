"""A trained model from a checkpoint: what evaluating, inspecting and checking it all start from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
from jax.sharding import Mesh

from gnpcli.config.loader import differences
from gnpcli.config.resolved import Resolved
from gnpcli.config.weights import Weights
from gnpcli.data.base import DataSpec
from gnpcli.devices.mesh import make_mesh
from gnpcli.devices.sharding import Layout, abstract, shardings
from gnpcli.errors import CheckpointError
from gnpcli.models.base import Model, Params, State, split_over
from gnpcli.models.registry import build_for
from gnpcli.recipes.presets import with_code
from gnpcli.runs.description import Description, read_description
from gnpcli.runs.location import Location
from gnpcli.runs.saves import DamagedCheckpoint, Saves
from gnpcli.terminal.screen import Screen


@dataclass(frozen=True)
class Trained:
    """A model with its weights, and what it was trained on."""

    step: int
    config: Resolved
    spec: DataSpec
    mesh: Mesh
    model: Model
    weights: Weights
    """Which weights these are."""
    params: Params
    """Over `mesh` as `mesh.shard` says, float32."""
    model_state: State
    """Replicated over `mesh`; BatchNorm statistics are those of the raw weights."""


def open_trained(
    location: Location,
    *,
    step: int | None,
    best: bool,
    screen: Screen,
    weights: Weights | None = None,
) -> Trained:
    """Restore the model of a checkpoint; the optimizer's state stays on disk.

    Args:
        location: From `gnpcli.runs.location.locate`.
        step: Which checkpoint; None takes the one of `location`, else the last good one.
        best: Take the one with the lowest error instead.
        screen: Told which damaged ones were stepped over.
        weights: ``raw`` or ``ema``; None takes those that the run itself evaluated.

    Raises:
        CheckpointError: Nothing usable, a checkpoint of another model than the run's, or no
            averaged weights in it.
        DamagedCheckpoint: The one that was asked for is damaged.
        RunReadError: It cannot be read.
        ConfigError: Its model is code of somebody's own, which is not trusted.
    """
    run = location.run
    run_config = with_code(run.config(), f"{run}/config.yaml") if run is not None else None
    saves = Saves(location.checkpoints, run.run_id() if run is not None else None)

    def restore(at: int) -> Trained:
        description = read_description(saves, at)
        if run_config is not None and description.config.model != run_config.model:
            where = f"{run}/config.yaml"
            raise CheckpointError(_other_model(saves, at, description, run_config, where))
        return _restore(saves, at, description, weights)

    def on_damaged(at: int, error: DamagedCheckpoint) -> None:
        screen.warn(f"{error}; falling back to the one before")

    if best:
        return _restore_best(saves, restore, screen)
    chosen = _known(saves, location.step if step is None else step)
    if chosen is not None:
        return restore(chosen)
    found = saves.restore_latest(restore, on_damaged=on_damaged)
    if found is None:
        raise CheckpointError(f"no usable checkpoint in {location.checkpoints}")
    trained: Trained = found[1]
    return trained


def _restore_best(saves: Saves, restore: Callable[[int], Trained], screen: Screen) -> Trained:
    damaged = saves.damaged()
    for error in damaged.values():
        _tell_not_best(error, screen)
    step = saves.best_step()
    while step is not None:
        try:
            return restore(step)
        except DamagedCheckpoint as error:
            damaged[step] = error
            _tell_not_best(error, screen)
        step = saves.best_step(besides=damaged)
    raise CheckpointError(f"no checkpoint in {saves.directory} has an error rate to be the best by")


def _tell_not_best(error: DamagedCheckpoint, screen: Screen) -> None:
    screen.warn(f"{error}; it cannot be the best")


def _known(saves: Saves, step: int | None) -> int | None:
    """Return `step`, which must be there. None is the last good one."""
    if step is not None and step not in saves.steps():
        known = ", ".join(map(str, saves.steps())) or "none"
        raise CheckpointError(f"no checkpoint of step {step} in {saves.directory} (there: {known})")
    return step


def _other_model(saves: Saves, step: int, saved: Description, config: Resolved, where: str) -> str:
    changed = "; ".join(differences(saved.config, config))
    return (
        f"the checkpoint of step {step} in {saves.directory} is of "
        f"{saved.config.model.name}, but the run's {where} says {config.model.name}: {changed}"
    )


def _restore(saves: Saves, step: int, description: Description, weights: Weights | None) -> Trained:
    where = f"the checkpoint of step {step} in {saves.directory}"
    config, spec = with_code(description.config, where), description.data
    chosen = weights or config.train.evaluate_weights
    if chosen == "ema" and config.train.ema_decay is None:
        raise CheckpointError(
            f"{where} has no averaged weights: "
            "its run was trained with train.ema_decay=null; leave --weights ema out"
        )
    layout = Layout(make_mesh(config), config.mesh.shard)
    model = split_over(build_for(config, spec), layout)
    shape = (spec.image_size, spec.image_size, spec.channels)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), shape))
    lie = shardings(shapes[0], layout.split), shardings(shapes[1], layout.whole)
    like = abstract(shapes, lie)
    params, model_state = saves.restore_model(step, *like, weights=chosen)
    return Trained(step, config, spec, layout.mesh, model, chosen, params, model_state)
