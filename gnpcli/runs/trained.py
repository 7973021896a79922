"""A trained model from a checkpoint: what evaluating, inspecting and checking it all start from."""

from __future__ import annotations

from dataclasses import dataclass

import jax
from jax.sharding import Mesh

from gnpcli.config import CheckpointConfig, Weights
from gnpcli.config.loader import differences
from gnpcli.config.resolved import Resolved
from gnpcli.data.base import DataSpec
from gnpcli.devices.mesh import abstract, make_mesh
from gnpcli.errors import CheckpointError
from gnpcli.models.base import Model, Params, State
from gnpcli.models.registry import build_for
from gnpcli.runs.checkpoint import Checkpoints, DamagedCheckpoint
from gnpcli.runs.folder import config_from_meta
from gnpcli.runs.location import Location
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
    """Replicated over `mesh`, float32."""
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
    """
    run_config = location.run.config() if location.run is not None else None
    checkpoints = Checkpoints(location.checkpoints, CheckpointConfig(), read_only=True)
    try:
        step = step if step is not None else location.step
        if best:
            step = checkpoints.best_step()
            if step is None:
                raise CheckpointError(
                    f"no checkpoint in {location.checkpoints} has an error rate to be the best by"
                )
        if step is not None and step not in checkpoints.steps():
            known = ", ".join(map(str, checkpoints.steps())) or "none"
            raise CheckpointError(
                f"no checkpoint of step {step} in {location.checkpoints} (there: {known})"
            )

        def load(at: int) -> Trained:
            meta = checkpoints.read_meta(at)
            config, spec = config_from_meta(meta), DataSpec.from_dict(meta["data"])
            if run_config is not None and config.model != run_config.model:
                raise CheckpointError(
                    f"the checkpoint of step {at} in {location.checkpoints} is of "
                    f"{config.model.name}, "
                    f"but the run's {location.run}/config.yaml says {run_config.model.name}: "
                    + "; ".join(differences(config, run_config))
                )
            chosen = weights or config.train.evaluate_weights
            if chosen == "ema" and config.train.ema_decay is None:
                raise CheckpointError(
                    f"the checkpoint of step {at} in {location.checkpoints} has no averaged "
                    "weights: its run was "
                    "trained with train.ema_decay=null; leave --weights ema out"
                )
            mesh, model = make_mesh(config), build_for(config, spec)
            shape = (spec.image_size, spec.image_size, spec.channels)
            like = abstract(lambda: model.init(jax.random.key(0), shape), mesh)
            params, model_state = checkpoints.restore_model(at, *like, weights=chosen)
            return Trained(at, config, spec, mesh, model, chosen, params, model_state)

        def on_damaged(at: int, error: DamagedCheckpoint) -> None:
            screen.line(f"warning: {error}; falling back to the one before", style="yellow")

        if step is not None:
            return load(step)
        found = checkpoints.restore_latest(load, on_damaged=on_damaged)
        if found is None:
            raise CheckpointError(f"no usable checkpoint in {location.checkpoints}")
        trained: Trained = found[1]
        return trained
    finally:
        checkpoints.close()
