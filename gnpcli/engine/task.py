"""What a configuration and its data amount to: the parts of a run and its programs."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from gnpcli.config.resolved import Resolved
from gnpcli.data.base import DataSpec, FileSplit, Split
from gnpcli.data.feeds.make import make_train_feed
from gnpcli.devices import cpu
from gnpcli.devices.mesh import Place, check_cut, is_on_cpu
from gnpcli.devices.sharding import abstract
from gnpcli.keys import run_keys
from gnpcli.models.base import Model, Params, State, parameter_shapes, starting_from
from gnpcli.models.drawing import drawn_together
from gnpcli.models.registry import build_for
from gnpcli.runs.description import Description
from gnpcli.step.optimizer import make_statistics
from gnpcli.step.parts import Parts, build_parts
from gnpcli.step.perturbation import perturbed_mask
from gnpcli.step.probes import make_diagnosis, make_rounding_measure
from gnpcli.step.programs import OptimizerStatistics, RoundingMeasure, TrainStep
from gnpcli.step.schedules import Horizon, StepKind
from gnpcli.step.state import TrainState, init_state, state_shardings
from gnpcli.step.train import make_train_step


class Init(Protocol):
    """Makes the state before the first step."""

    def __call__(self, weights: tuple[Params, State] | None = None) -> TrainState:
        """Start from parameters and model state where they are given, else from drawn ones."""
        ...


@dataclass(frozen=True)
class Task:
    """What a configuration and its data amount to. The loop puts it together."""

    config: Resolved
    spec: DataSpec
    """Of the data that is trained on."""
    parts: Parts
    """What the steps are made of."""
    steps: Mapping[StepKind, TrainStep]
    """A step of each kind. Those that the schedule does not call for are never compiled."""
    statistics: OptimizerStatistics | None
    """What an adaptive optimizer tells in the steps that are logged."""
    rounding: RoundingMeasure | None
    """None where nothing is perturbed, or everything is computed in float32."""
    init: Init

    @property
    def horizon(self) -> Horizon:
        """Length of the run."""
        return Horizon(self.parts.feed.steps_per_epoch, self.config.train.epochs)

    def kind_at(self, step: int) -> StepKind:
        """Return what `step`, counted from 0, takes."""
        return self.parts.schedule.kinds[step]

    def step_at(self, step: int) -> TrainStep:
        """Return the program for `step`: one of two gradients only where both act."""
        return self.steps[self.kind_at(step)]

    def abstract_state(self) -> TrainState:
        """Return shapes, dtypes and shardings of the state, allocating nothing."""
        shapes: TrainState = jax.eval_shape(self.init)
        state: TrainState = abstract(shapes, state_shardings(shapes, self.parts.layout))
        return state

    def checkpoint_meta(self) -> dict[str, Any]:
        """Return what a checkpoint says about its run: configuration and data set."""
        return Description(self.config, self.spec).to_meta()

    def diagnose(self, state: TrainState, step: int) -> dict[str, Params]:
        """Return what `gnpcli.step.probes.make_diagnosis` finds about `step`, begun in `state`."""
        program = make_diagnosis(self.parts, self.kind_at(step))
        findings: dict[str, Params] = jax.device_get(program(state, self.parts.feed.source(step)))
        return findings


def build_task(
    config: Resolved,
    train: Split | FileSplit,
    spec: DataSpec,
    mesh: Mesh,
    place: Place | None = None,
) -> Task:
    """Build model, feed, optimizer, schedules and steps. Nothing is compiled yet.

    Args:
        config: The run.
        train: The images that are trained on.
        spec: What they are.
        mesh: Made for `config`.
        place: Puts what a step reads on the mesh in another way than that of a run.

    Raises:
        ConfigError: Model, image size and batch size do not fit together, the batch cannot be cut
            as asked for, or no parameter is perturbed.
    """
    check_cut(config, mesh.size)
    image_shape = (spec.image_size, spec.image_size, spec.channels)
    model = build_for(config, spec)
    if config.gr.perturb != "all":
        # A pattern may match nothing.
        perturbed_mask(parameter_shapes(model, image_shape), config.gr.perturb)
    order = run_keys(config.train.seed).order
    feed = make_train_feed(
        train, spec, config.data, mesh, key=order, dtype=config.train.dtype, place=place
    )
    parts = build_parts(config, model, feed, mesh)
    kinds: tuple[StepKind, ...] = typing.get_args(StepKind)
    return Task(
        config=config,
        spec=spec,
        parts=parts,
        steps={kind: make_train_step(parts, kind) for kind in kinds},
        statistics=make_statistics(config.optimizer),
        rounding=make_rounding_measure(parts) if _is_rounded(parts) else None,
        init=_make_init(config, model, image_shape, parts),
    )


def _is_rounded(parts: Parts) -> bool:
    """Return whether the compute type may be too coarse for the perturbed point."""
    visits = "gnp" in parts.schedule.kinds and parts.gr.gradient == "finite-difference"
    return visits and parts.train.dtype != "float32"


def _make_init(
    config: Resolved, model: Model, image_shape: tuple[int, int, int], parts: Parts
) -> Init:
    if cpu.is_tuned() and is_on_cpu(parts.mesh):
        model = replace(model, init=drawn_together(model.init))

    def init(weights: tuple[Params, State] | None = None) -> TrainState:
        return init_state(
            model if weights is None else starting_from(model, *weights),
            image_shape,
            parts.optimizer,
            config.train.seed,
            averages=config.train.ema_decay is not None,
            reuses=config.gr.between == "reuse",
        )

    where = state_shardings(jax.eval_shape(init), parts.layout)
    return jax.jit(init, out_shardings=where)
