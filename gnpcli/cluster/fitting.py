"""What fits the memory of a machine: the largest batch, and settings that need less."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gnpcli.cluster.chips import Machine
from gnpcli.cluster.costs import StepCost
from gnpcli.config.resolved import Resolved
from gnpcli.config.schema import Shard
from gnpcli.data.base import DataInfo
from gnpcli.errors import ConfigError
from gnpcli.recipes.memory import StepMemory, step_memory
from gnpcli.recipes.plan import fit

_SLICES = (1, 2, 4, 8, 16, 32, 64)
"""Microbatches that are tried."""


@dataclass(frozen=True)
class Remedy:
    """Settings with which a run fits."""

    settings: tuple[str, ...]
    """As they are typed after ``--set``."""
    memory: int
    """Bytes on a device, estimated."""


@dataclass(frozen=True)
class Room:
    """A run on a machine, and what its largest step needs of the memory."""

    config: Resolved
    info: DataInfo
    machine: Machine
    cost: StepCost

    def estimate(self, config: Resolved) -> StepMemory:
        """Return the estimate from shapes for other settings.

        Raises:
            ConfigError: They do not fit model and data.
        """
        model, _ = fit(config, self.info)
        return step_memory(config, model, self.info, self.machine.devices)


def largest_batch(room: Room) -> int | None:
    """Return the largest batch that fits, as an estimate; None where none does.

    What lives in a step beside trees like the parameters grows with the batch.
    """
    config, cost, devices = room.config, room.cost, room.machine.devices
    estimate = room.estimate(config)
    fixed = cost.arguments + min(estimate.gradients, cost.temporaries)
    grows = max(cost.memory - fixed, 1)
    unit = devices * math.lcm(config.gr.groups, config.train.accumulate)
    left = (room.machine.memory - fixed) * config.data.batch_size / grows
    largest = int(min(left, room.info.num_train)) // unit * unit
    return largest if largest > 0 else None


def find_remedies(room: Room) -> tuple[Remedy, ...]:
    """Return settings that compute the same in less memory, those that change least first.

    Groups are none of them: they change what is computed. The memory of each is estimated from
    shapes, and scaled by as much as the estimate of the run itself is off.
    """
    estimate = room.estimate(room.config)
    held, lives = estimate.state + estimate.images, estimate.gradients + estimate.activations
    scale = max(room.cost.memory - held, 1) / lives
    splits: tuple[Shard, ...] = ("none",) if room.machine.devices == 1 else ("none", "fsdp")
    found = [remedy for shard in splits if (remedy := _with(room, shard, scale)) is not None]
    return tuple(sorted(found, key=lambda remedy: len(remedy.settings)))


def _with(room: Room, shard: Shard, scale: float) -> Remedy | None:
    """Return the fewest microbatches with which a run fits, its state whole or split."""
    own = room.config
    for slices in _SLICES:
        settings = [f"mesh.shard={shard}"] if shard != own.mesh.shard else []
        settings += [f"train.accumulate={slices}"] if slices > own.train.accumulate else []
        memory = _memory_with(room, shard, max(slices, own.train.accumulate), scale)
        if settings and memory is not None and memory <= room.machine.memory:
            return Remedy(tuple(settings), memory)
    return None


def _memory_with(room: Room, shard: Shard, slices: int, scale: float) -> int | None:
    if room.config.data.batch_size % (slices * room.machine.devices):
        return None
    changes = {"mesh.shard": shard, "train.accumulate": slices}
    try:
        memory = room.estimate(room.config.replaced(changes))
    except ConfigError:
        return None
    return int(memory.state + memory.images + scale * (memory.gradients + memory.activations))
