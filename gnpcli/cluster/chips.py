"""Chips, as their makers publish them, and the machines that are made of them. No JAX."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from gnpcli.errors import ConfigError, suggest

ChipKind = Literal["tpu", "gpu", "cpu"]

MOST_CHIPS = 16384
"""The most chips of a machine."""


@dataclass(frozen=True)
class Chip:
    """What a step can ask of one chip. Rates are in FLOP or bytes a second."""

    name: str
    """As it is typed."""
    title: str
    kind: ChipKind
    peak: Mapping[str, float]
    """FLOP/s by the compute type."""
    memory: float
    """Bytes."""
    bandwidth: float
    """Of the memory."""
    link: float
    """To other chips, one way, over all links together."""
    sources: tuple[str, ...]
    """Where the figures stand."""
    devices: int = 1
    """Devices that JAX sees of it when it compiles."""
    linked: int = MOST_CHIPS
    """Chips that the links join."""
    network: float = 0.0
    """To chips that the links do not reach."""
    most: int = MOST_CHIPS
    """Chips of the largest machine."""


@dataclass(frozen=True)
class Machine:
    """Some chips of a kind."""

    name: str
    """As it is typed: ``v5e:4x4``, ``h100:8``, ``cpu``."""
    chip: Chip
    chips: int

    @property
    def devices(self) -> int:
        """Devices that share a batch."""
        return self.chips * self.chip.devices

    @property
    def memory(self) -> float:
        """Bytes that a device has."""
        return self.chip.memory / self.chip.devices

    @property
    def link(self) -> float:
        """Bytes a second that a chip sends to the others."""
        return self.chip.link if self.chips <= self.chip.linked else self.chip.network


@cache
def chips() -> dict[str, Chip]:
    """Return the published chips by name."""
    rows = yaml.safe_load(Path(__file__).with_name("chips.yaml").read_text(encoding="utf-8"))
    return {name: _chip(name, row) for name, row in rows.items()}


def _chip(name: str, row: dict[str, Any]) -> Chip:
    return Chip(
        name=name,
        title=row["title"],
        kind=row["kind"],
        peak={dtype: 1e12 * tflops for dtype, tflops in row["peak_tflops"].items()},
        memory=1e9 * row["memory_gb"],
        bandwidth=1e9 * row["bandwidth_gb_s"],
        link=1e9 * row["link_gb_s"],
        sources=tuple(row["sources"]),
        devices=row.get("devices_per_chip", 1),
        linked=row.get("chips_linked", MOST_CHIPS),
        network=1e9 * row.get("network_gb_s", 0),
        most=row.get("chips_at_most", MOST_CHIPS),
    )


def find_machine(text: str) -> Machine:
    """Return the machine that a text names: ``v5e:4x4``, ``v5p:2x2x4``, ``h100:8``.

    Raises:
        ConfigError: An unknown chip, or a size that is none.
    """
    name, _, size = text.partition(":")
    known = chips()
    if name == "cpu":
        raise ConfigError(f"{text!r}: cpu is this machine, and takes no number: --on cpu")
    if name not in known:
        names = ", ".join([*known, "cpu"])
        raise ConfigError(f"unknown chip {name!r}{suggest(name, known)} (chips: {names})")
    chip = known[name]
    count = _count(chip, size, text)
    if not 0 < count <= chip.most:
        raise ConfigError(f"{text}: {count:,} chips; {chip.title} has 1 to {chip.most:,}")
    return Machine(text, chip, count)


def _count(chip: Chip, size: str, text: str) -> int:
    if chip.kind == "gpu":
        if re.fullmatch(r"\d{1,6}", size):
            return int(size)
        raise ConfigError(f"{text!r}: how many? for example {chip.name}:8")
    axes = 2 if chip.name in ("v5e", "v6e") else 3
    if re.fullmatch(r"\d{1,4}" + r"x\d{1,4}" * (axes - 1), size):
        sides = [*map(int, size.split("x"))]
        if math.prod(sides) > 1 and any(side % 2 for side in sides[:2]):
            raise ConfigError(f"there is no TPU slice {text}: a host has 2x2 chips of it")
        return math.prod(sides)
    example = "4x4" if axes == 2 else "2x2x4"
    raise ConfigError(
        f"{text!r}: a slice of {chip.title} has {axes} axes, for example {chip.name}:{example}"
    )
