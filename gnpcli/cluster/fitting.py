"""What fits the memory of a machine: the largest batch, and settings that need less."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

from gnpcli.cluster.chips import Machine
from gnpcli.cluster.costs import StepCost
from gnpcli.config.resolved import Resolved
from gnpcli.data.base import DataInfo
from gnpcli.devices.mesh import check_cut
from gnpcli.errors import ConfigError
from gnpcli.recipes.memory import StepMemory, step_memory
from gnpcli.recipes.plan import fit

_SLICES = (1, 2, 4, 8, 16, 32, 64)
"""Microbatches that are tried."""
CUT = "train.accumulate"
SHARED = {"mesh.shard": "fsdp", "data.placement": "sharded"}
"""Settings with which each device has a share of what lies on all of them: state, and images."""


@dataclass(frozen=True)
class Remedy:
    """Settings with which a run fits."""

    changes: Mapping[str, str | int]
    """By key."""
    memory: int
    """Bytes on a device, estimated."""

    @property
    def settings(self) -> tuple[str, ...]:
        """As they are typed after ``--set``."""
        return tuple(f"{key}={value}" for key, value in self.changes.items())


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

    @cached_property
    def estimated(self) -> StepMemory:
        """The estimate from shapes for the run itself."""
        return self.estimate(self.config)

    @property
    def scale(self) -> float:
        """What lives during a step over its estimate."""
        found = self.estimated
        lives = found.gradients + found.activations
        return max(self.cost.memory - found.state - found.images, 1) / lives


def largest_batch(room: Room) -> int | None:
    """Return the largest batch that fits, as an estimate; None where none does.

    What lives in a step beside trees like the parameters grows with the batch.
    """
    config, cost, devices = room.config, room.cost, room.machine.devices
    estimate = room.estimated
    fixed = cost.arguments + min(estimate.gradients, cost.temporaries)
    grows = max(cost.memory - fixed, 1)
    unit = devices * math.lcm(config.gr.groups, config.train.accumulate)
    left = (room.machine.memory - fixed) * config.data.batch_size / grows
    largest = int(min(left, room.info.num_train)) // unit * unit
    return largest if largest > 0 else None


def find_remedies(room: Room) -> tuple[Remedy, ...]:
    """Return settings that compute the same in less memory, those that change least first.

    They are where state and images lie, and the microbatches. Groups are none of them: they change
    what is computed. The memory of each is estimated from shapes, and scaled by as much as the
    estimate of the run itself is off. What another remedy does with less is left out.
    """
    found: list[Remedy] = []
    for places in _places(room):
        remedy = _with(room, places)
        if remedy is not None and not any(_is_less(other, remedy) for other in found):
            found.append(remedy)
    return tuple(sorted(found, key=lambda remedy: len(remedy.changes)))


def divisible(room: Room) -> tuple[str, ...]:
    """Return the settings that could share out what lies on every device of a machine."""
    own = room.config
    if room.machine.devices == 1:
        return ()
    keys = ["mesh.shard"] if own.mesh.shard == "none" else []
    if not room.info.is_streamed and own.data.placement == "replicated":
        keys.append("data.placement")
    return tuple(keys)


def _places(room: Room) -> Iterator[dict[str, str]]:
    """Yield nothing, then each thing that can be shared out, then more of them together."""
    keys = divisible(room)
    for count in range(len(keys) + 1):
        for chosen in combinations(keys, count):
            yield {key: SHARED[key] for key in chosen}


def _is_less(remedy: Remedy, other: Remedy) -> bool:
    """Return whether a remedy changes nothing that another does not, and cuts no finer."""
    slices, others = (int(each.changes.get(CUT, 1)) for each in (remedy, other))
    return remedy.changes.keys() <= {*other.changes, CUT} and slices <= others


def _with(room: Room, places: Mapping[str, str]) -> Remedy | None:
    """Return the fewest microbatches with which a run fits whose arrays lie elsewhere."""
    own = room.config.train.accumulate
    for slices in _SLICES:
        cut = {CUT: slices} if slices > own else {}
        changes: dict[str, str | int] = {**places, **cut}
        memory = _memory_with(room, changes)
        if changes and memory is not None and memory <= room.machine.memory:
            return Remedy(changes, memory)
    return None


def _memory_with(room: Room, changes: Mapping[str, str | int]) -> int | None:
    """Return the bytes that a run needs with other settings; None where it cannot have them."""
    try:
        config = room.config.replaced(changes)
        check_cut(config, room.machine.devices)
        memory = room.estimate(config)
    except ConfigError:
        return None
    lives = memory.gradients + memory.activations
    return int(memory.state + memory.images + room.scale * lives)
