"""What one step asks of one chip, and how long it takes at the least."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from gnpcli.cluster.chips import Machine

COMPILED = "compiled for that machine"
COUNTED = "counted in the traced program"
ESTIMATED = "estimated from shapes"

_ITEM = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
"""Bytes of an element by XLA's name of the type; 8 where it ends in 64, else 4."""
_COLLECTIVE = re.compile(
    r" = (?P<result>\(.*?\)|\S+) (?P<name>all-reduce|all-gather|reduce-scatter|all-to-all|"
    r"collective-permute)(?P<starts>-start)?\((?P<operands>[^()]*)\)"
    r"(?:.*? channel_id=(?P<channel>\d+))?"
)
_COMPUTATION = re.compile(r"(?:ENTRY )?%?(?P<name>[\w.-]+) .*\{$")
_PARTS = ("fused_computation", "async_collective_fusion")
"""Computations of a TPU's program that do a part of a collective beside arithmetic."""
_SCATTER = "all-reduce-scatter"
"""A computation of a TPU's program: an all-reduce of which each chip keeps its share."""
_NAMED = re.compile(r"^\s+(?:ROOT )?(?P<name>%[\w.-]+) = (?P<type>\(.*?\)|\S+) ", re.MULTILINE)
_ARRAY = re.compile(r"(?P<type>[a-z]+\d*)\[(?P<sizes>[\d,]*)\]")


@dataclass(frozen=True)
class Collectives:
    """Collectives of one kind in a step."""

    count: int
    """How often it is in the program."""
    bytes: int
    """Of their results on a chip; of a reduce-scatter, of what a chip gives."""


@dataclass(frozen=True)
class StepCost:
    """What one step asks of one device."""

    flops: float
    bytes: float
    """Read from and written to its memory."""
    arguments: int
    """Bytes that are there before and after: the state, and the images in memory."""
    temporaries: int
    """Bytes that are there during the step."""
    collectives: dict[str, Collectives] = field(default_factory=dict)
    """By name."""
    source: str = COMPILED
    """Of FLOP and bytes: `COMPILED` or `COUNTED`."""
    memory_source: str = COMPILED
    """Of the memory: `COMPILED` or `ESTIMATED`."""
    is_too_large: bool = False
    """Whether the compiler refused it, and said what it would need."""

    @property
    def memory(self) -> int:
        """Bytes at the largest."""
        return self.arguments + self.temporaries

    @property
    def moved(self) -> float:
        """Bytes that a device sends: a ring sends twice the result of an all-reduce."""
        twice = {"all-reduce": 2}
        return sum(twice.get(name, 1) * each.bytes for name, each in self.collectives.items())

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StepCost:
        """Return the cost that `to_dict` wrote."""
        found = {name: Collectives(**each) for name, each in values["collectives"].items()}
        return cls(**{**values, "collectives": found})


@dataclass(frozen=True)
class StepTime:
    """The roofline of a step, in seconds: each part as if it had the chip to itself."""

    compute_s: float
    memory_s: float
    links_s: float

    @property
    def total_s(self) -> float:
        """Arithmetic and memory overlap; what goes over the links is waited for."""
        return max(self.compute_s, self.memory_s) + self.links_s

    @property
    def bound(self) -> str:
        """What takes longest."""
        parts = {"arithmetic": self.compute_s, "memory": self.memory_s, "links": self.links_s}
        return max(parts, key=lambda name: parts[name])


def step_time(cost: StepCost, machine: Machine, dtype: str) -> StepTime:
    """Return the roofline of a step (Williams et al. 2009) on each chip of a machine.

    Args:
        cost: On one device.
        machine: Whose chips have one or more devices each.
        dtype: Compute type.
    """
    chip = machine.chip
    share = 1 / chip.devices
    links = 0.0 if machine.chips == 1 or not cost.moved else cost.moved / (machine.link * share)
    return StepTime(
        compute_s=cost.flops / (chip.peak[dtype] * share),
        memory_s=cost.bytes / (chip.bandwidth * share),
        links_s=links,
    )


def collectives_of(text: str) -> dict[str, Collectives]:
    """Return the collectives of a compiled program.

    A TPU does a collective beside arithmetic in several computations. All name its channel, and it
    counts once. It writes a sum that is scattered as an all-reduce in a computation of its own.

    Args:
        text: Its HLO. A collective within a loop counts once.
    """
    types: dict[str, str] = {}
    if " reduce-scatter(" in text:
        types = {match["name"]: match["type"] for match in _NAMED.finditer(text)}
    seen = set[tuple[str, str]]()
    found: dict[str, Collectives] = {}
    for computation, match in _collectives(text):
        name = match["name"]
        if match["channel"] and computation.startswith(_PARTS):
            if (name, match["channel"]) in seen:
                continue
            seen.add((name, match["channel"]))
        size = _bytes(match, types)
        if computation.startswith(_SCATTER):
            name = "reduce-scatter"
        old = found.get(name, Collectives(0, 0))
        found[name] = Collectives(old.count + 1, old.bytes + size)
    return found


def _collectives(text: str) -> Iterator[tuple[str, re.Match[str]]]:
    """Yield each collective of a program, and the computation that it stands in."""
    computation = ""
    for line in text.splitlines():
        if line[:1] not in ("", " ", "}") and (found := _COMPUTATION.match(line)):
            computation = found["name"]
        elif match := _COLLECTIVE.search(line):
            yield computation, match


def _bytes(match: re.Match[str], types: Mapping[str, str]) -> int:
    """Return the bytes of a collective, as of `Collectives`.

    Args:
        match: Of `_COLLECTIVE`.
        types: Of the answers of a program's operations.
    """
    operands = match["operands"].replace(" ", "").split(",")
    if match["name"] == "reduce-scatter":
        return sum(sum(_sizes(types.get(operand, ""))) for operand in operands)
    sizes = list(_sizes(match["result"]))
    if match["starts"] and match["name"] in ("all-gather", "collective-permute"):
        sizes = sizes[
            len(operands) : 2 * len(operands)
        ]  # behind the operands, which it answers too
    return sum(sizes)


def _sizes(result: str) -> Iterator[int]:
    """Yield the bytes of each array in the type of a result."""
    for match in _ARRAY.finditer(re.sub(r"\{[^{}]*\}", "", result)):
        wide = 8 if match["type"].endswith("64") else 4
        elements = math.prod(int(size) for size in match["sizes"].split(",") if size)
        yield elements * _ITEM.get(match["type"], wide)
