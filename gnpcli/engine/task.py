"""What a configuration and its data amount to: model, feed, schedules and steps."""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from gnpcli.config import RunConfig
from gnpcli.data.base import DataSpec, FileSplit, Split
from gnpcli.data.feeds.base import TrainFeed
from gnpcli.data.feeds.make import make_train_feed
from gnpcli.devices.mesh import abstract, check_cut, replicated, settle_groups
from gnpcli.keys import run_keys
from gnpcli.models.base import Model, Params, State, parameter_shapes, starting_from
from gnpcli.models.registry import build_for
from gnpcli.step.optimizer import build_optimizer, make_statistics
from gnpcli.step.perturbation import perturbed_mask
from gnpcli.step.probes import make_diagnosis, make_rounding_measure
from gnpcli.step.schedules import GrSchedule, Horizon, Kind, gr_schedule, lr_schedule
from gnpcli.step.state import TrainState, init_state
from gnpcli.step.train import make_train_step


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
    """See `gnpcli.step.probes.make_rounding_measure`; None where nothing is perturbed or it is all
    in float32.
    """
    init: Callable[..., TrainState]
    """``init(weights=None)``: the state before the first step, from parameters and model state
    where they are given.
    """

    def step_at(self, step: int) -> Any:
        """Return the compiled step for `step`; one of two gradients only where they act."""
        return {"plain": self.plain_step, "gnp": self.gnp_step, "reuse": self.reuse_step}[
            self.gr.kinds[step]
        ]

    def abstract_state(self) -> TrainState:
        """Return shapes, dtypes and shardings of the state, allocating nothing."""
        state: TrainState = abstract(self.init, self.mesh)
        return state

    def diagnose(self, state: TrainState, step: int) -> Any:
        """Return the findings of `gnpcli.step.probes.make_diagnosis` about `step`, which began in
        `state`.
        """
        config, kind = self.config, self.gr.kinds[step]
        program = make_diagnosis(
            self.model, self.feed, config.train, config.gr, self.gr, self.mesh, kind=kind
        )
        return jax.device_get(program(state, self.feed.source(step)))


def build_task(config: RunConfig, train: Split | FileSplit, spec: DataSpec, mesh: Mesh) -> Task:
    """Build model, feed, optimizer, schedules and steps; nothing is compiled yet.

    Raises:
        ConfigError: Model, image size and batch size do not fit together, the batch cannot be cut
            as asked for, or no parameter is perturbed.
    """
    config = settle_groups(config)
    check_cut(config, mesh)
    image_shape = (spec.image_size, spec.image_size, spec.channels)
    model = build_for(config, spec)
    if config.gr.perturb != "all":
        perturbed_mask(
            parameter_shapes(model, image_shape), config.gr.perturb
        )  # a pattern may match nothing
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
    rounding = (
        make_rounding_measure(model, feed, config.train, config.gr, mesh)
        if visits and is_narrow
        else None
    )

    def init(weights: tuple[Params, State] | None = None) -> TrainState:
        start = model if weights is None else starting_from(model, *weights)
        return init_state(
            start, image_shape, optimizer, config.train.seed, averages=averages, reuses=reuses
        )

    init = jax.jit(init, out_shardings=replicated(mesh))
    statistics = make_statistics(config.optimizer)
    return Task(
        config,
        mesh,
        spec,
        model,
        feed,
        horizon,
        gr,
        plain_step,
        gnp_step,
        reuse_step,
        statistics,
        rounding,
        init,
    )
