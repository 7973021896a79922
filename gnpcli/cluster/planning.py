"""What a run asks of a machine that need not be here: time, memory, arithmetic and money."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import jax

from gnpcli.cluster.chips import Machine
from gnpcli.cluster.compiling import Notify, compile_costs, counted
from gnpcli.cluster.costs import (
    COUNTED,
    ESTIMATED,
    Collectives,
    StepCost,
    StepTime,
    step_time,
)
from gnpcli.cluster.fitting import CUT, Remedy, Room, divisible, find_remedies, largest_batch
from gnpcli.cluster.topologies import lower_step
from gnpcli.config.resolved import Resolved
from gnpcli.data.base import DataInfo
from gnpcli.data.registry import describe_data
from gnpcli.devices.memory import program_memory
from gnpcli.devices.mesh import check_cut, check_divisible, make_mesh, mesh_over
from gnpcli.errors import ConfigError, DataError
from gnpcli.models.base import parameter_shapes
from gnpcli.recipes.memory import step_memory
from gnpcli.recipes.plan import Work, fit, work_of
from gnpcli.step.schedules import StepKind

_PASSES: dict[StepKind, int] = {"plain": 1, "reuse": 1, "gnp": 2}
"""Gradients that a step averages over the devices."""


@dataclass(frozen=True)
class RunPlan:
    """What a run asks of a machine."""

    machine: Machine
    dtype: str
    work: Work
    costs: Mapping[StepKind, StepCost]
    """On a device."""
    largest_batch: int | None
    """That fits, as an estimate; None where not even one image for each device does."""
    remedies: tuple[Remedy, ...]
    """Of a run that does not fit."""
    tried: tuple[str, ...]
    """Settings of which remedies are made."""

    @property
    def times(self) -> dict[StepKind, StepTime]:
        """Return the roofline of each kind of step."""
        costs = self.costs.items()
        return {kind: step_time(cost, self.machine, self.dtype) for kind, cost in costs}

    @property
    def memory(self) -> int:
        """Bytes on a device in the largest step."""
        return max(cost.memory for cost in self.costs.values())

    @property
    def fits(self) -> bool:
        """Whether the largest step does."""
        refused = any(cost.is_too_large for cost in self.costs.values())
        return not refused and self.memory <= self.machine.memory

    @property
    def hours(self) -> float:
        """Hours of the run at the roofline, its evaluations included."""
        times = self.times
        steps_s = sum(count * times[kind].total_s for kind, count in self.work.steps.items())
        return (steps_s + self._evaluations * times[self._single].total_s) / 3600

    @property
    def exaflop(self) -> float:
        """FLOP / 1e18 of the run on all devices."""
        counts = self.work.steps.items()
        steps = sum(count * self.costs[kind].flops for kind, count in counts)
        whole = steps + self._evaluations * self.costs[self._single].flops
        return whole * self.machine.devices / 1e18

    @property
    def chip_hours(self) -> float:
        """What is paid for."""
        return self.hours * self.machine.chips

    @property
    def _single(self) -> StepKind:
        """A kind of step that takes one gradient, if there is any."""
        return next((kind for kind in self.costs if kind != "gnp"), "gnp")

    @property
    def _evaluations(self) -> float:
        """The evaluations, as so many steps of the kind `_single`."""
        return self.work.evaluations / _PASSES[self._single]


def plan_run(
    config: Resolved,
    machine: Machine,
    notify: Notify,
    costs: Mapping[StepKind, StepCost] | None = None,
) -> RunPlan:
    """Plan a run.

    Args:
        config: The run. Its data set need not be here.
        machine: From `gnpcli.cluster.chips.find_machine`, or `this_machine`.
        notify: Told what goes on.
        costs: Of its steps, where they are known.

    Raises:
        ConfigError: Model, data, batch and machine do not fit together.
        DataError: The sizes of the data set are not known without its files.
        GnpError: As `gnpcli.cluster.compiling.compile_costs`.
    """
    info = sizes_of(config)
    check_fits_machine(config, machine)
    work = work_of(config, info)
    if costs is None:
        costs = step_costs(config, tuple(work.steps), machine, notify)
    plan = RunPlan(
        machine=machine,
        dtype=config.train.dtype,
        work=work,
        costs={kind: costs[kind] for kind in work.steps},
        largest_batch=None,
        remedies=(),
        tried=(),
    )
    room = Room(config, info, machine, max(plan.costs.values(), key=lambda cost: cost.memory))
    largest = largest_batch(room)
    if plan.fits:
        return replace(plan, largest_batch=largest)
    remedies, tried = find_remedies(room), (*divisible(room), CUT)
    return replace(plan, largest_batch=largest, remedies=remedies, tried=tried)


def sizes_of(config: Resolved) -> DataInfo:
    """Return the sizes of the images of a run, which need not be here.

    Raises:
        DataError: They are not known without its files.
    """
    info = describe_data(config.data)
    if info is None:
        raise DataError(f"the image size of {config.data.name} is not known: give --data-dir")
    return info


def check_fits_machine(config: Resolved, machine: Machine) -> None:
    """Refuse a batch that the devices of a machine cannot divide.

    Raises:
        ConfigError: See above, or another number of devices asked for.
    """
    wanted = config.mesh.devices
    if wanted is not None and wanted != machine.devices:
        raise ConfigError(
            f"mesh.devices = {wanted}, but {machine.name} has {machine.devices}: leave it out",
            "mesh.devices",
        )
    if machine.devices > config.data.batch_size:
        raise ConfigError(
            f"{machine.name} has {machine.devices} devices, more than the "
            f"data.batch_size = {config.data.batch_size} images of a step: raise it, or plan for "
            "a smaller machine",
            "data.batch_size",
        )
    otherwise = "plan for another number of chips"
    check_divisible(config, machine.devices, otherwise)
    check_cut(config, machine.devices, otherwise)


def step_costs(
    config: Resolved, kinds: Sequence[StepKind], machine: Machine, notify: Notify
) -> dict[StepKind, StepCost]:
    """Return what steps ask of a device of a machine, as well as can be known here.

    Raises:
        GnpError: As `plan_run`.
    """
    if machine.chip.kind == "tpu":
        compiled = compile_costs(config, kinds, machine.name, notify)
        return {kind: _completed(cost, config, kind, machine) for kind, cost in compiled.items()}
    found = {}
    for kind in kinds:
        notify(f"tracing the {kind} step")
        # What is on several devices together does not depend on how many there are.
        mesh = mesh_over(config, jax.local_devices()[:1])
        whole = counted(config, kind, mesh)
        share = replace(
            _estimated(config, kind, machine),
            flops=whole.flops / machine.devices,
            bytes=whole.bytes / machine.devices,
        )
        if machine.chip.kind == "cpu":
            notify(f"compiling the {kind} step for this machine")
            share = _with_compiled_memory(share, config, kind)
        found[kind] = share
    return found


def _completed(cost: StepCost, config: Resolved, kind: StepKind, machine: Machine) -> StepCost:
    """Return a cost with the collectives of a program that the compiler refused."""
    if not cost.is_too_large:
        return cost
    return replace(cost, collectives=_estimated(config, kind, machine).collectives)


def _estimated(config: Resolved, kind: StepKind, machine: Machine) -> StepCost:
    info = sizes_of(config)
    model, _ = fit(config, info)
    memory = step_memory(config, model, info, machine.devices)
    shapes = jax.tree.leaves(
        parameter_shapes(model, (info.image_size, info.image_size, info.channels))
    )
    size = sum(4 * math.prod(leaf.shape) for leaf in shapes)
    return StepCost(
        flops=0.0,
        bytes=0.0,
        arguments=memory.state + memory.images,
        temporaries=memory.gradients + memory.activations,
        collectives=_exchanged(config, kind, machine, size),
        source=COUNTED,
        memory_source=ESTIMATED,
    )


def _exchanged(
    config: Resolved, kind: StepKind, machine: Machine, size: int
) -> dict[str, Collectives]:
    """Return the collectives that the method asks for; a compiler may need more.

    Each pass averages its gradient, of `size` bytes, over the devices. A split state is gathered
    for the forward and for the backward pass, and its gradient is scattered.
    """
    if machine.devices == 1:
        return {}
    passes = _PASSES[kind]
    if config.mesh.shard == "none":
        return {"all-reduce": Collectives(passes, passes * size)}
    return {
        "all-gather": Collectives(2 * passes, 2 * passes * size),
        "reduce-scatter": Collectives(passes, passes * size),
    }


def _with_compiled_memory(cost: StepCost, config: Resolved, kind: StepKind) -> StepCost:
    memory = program_memory(lower_step(config, kind, make_mesh(config)).compile())
    if memory is None:
        return cost
    return replace(
        cost,
        arguments=memory.arguments,
        temporaries=memory.temporaries,
        memory_source="compiled for this machine",
    )
