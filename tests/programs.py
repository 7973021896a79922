"""What tests ask of a jitted program beside its result."""

from __future__ import annotations

from typing import Any, cast

from jax.stages import Lowered


def compilations(program: object) -> int:
    """Return for how many kinds of arguments a jitted function was compiled."""
    return int(cast(Any, program)._cache_size())


def flops_of(lowered: Lowered) -> float:
    """Return the floating point operations of a program as its compiler counts them."""
    costs = lowered.compile().cost_analysis()
    assert costs is not None
    return float(costs["flops"])
