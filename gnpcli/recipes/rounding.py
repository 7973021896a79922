"""Whether a perturbation is lost in the rounding of float32."""

from __future__ import annotations

import math
from typing import Any

from gnpcli.config.resolved import Resolved

UNIT = 2.0**-24
"""Unit roundoff of float32: half the distance from 1 to the next number."""


def lost_radius(config: Resolved, params: Any) -> str | None:
    """Return a warning where r is too small to move a typical parameter; None where it is not.

    The perturbation ``r g / ||g||`` has the norm r. Over N parameters it is ``r / sqrt(N)`` for a
    typical one, whose size is ``||w|| / sqrt(N)``. Rounding to float32 undoes it below half an ulp:
    where ``r < 2^-24 ||w||``. Parameters of exactly 0 move all the same. Under ``gr.ascent:
    adaptive`` a typical parameter moves by ``r / sqrt(N)`` of its size, and r is lost below
    ``2^-24 sqrt(N)``.

    Args:
        config: The run.
        params: Nested dicts of the shapes of the parameters. Their norm at the start is estimated:
            a matrix ``[i, o]`` counts ``min(i, o)`` in its square, and a scale of a norm counts 1.
    """
    gr = config.gr
    if not gr.how.penalises or gr.r * gr.alpha == 0 or gr.gradient == "exact":
        return None
    least = UNIT * (math.sqrt(_count(params)) if gr.ascent == "adaptive" else starting_norm(params))
    if gr.r >= least:
        return None
    return (
        f"gr.r = {gr.r:g} moves no parameter of a typical size: in float32 the perturbed point is "
        f"the same below about r = {least:.1g}; the papers use gr.r=0.1"
    )


def starting_norm(params: Any) -> float:
    """Estimate the L2 norm of the parameters before training, from their shapes."""
    import jax

    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return math.sqrt(sum(_square(path[-1].key, leaf.shape) for path, leaf in leaves))


def _square(name: str, shape: tuple[int, ...]) -> float:
    """Return the expected squared norm of one array."""
    if len(shape) > 1:
        return min(math.prod(shape[:-1]), shape[-1])
    return math.prod(shape) if name == "scale" else 0


def _count(params: Any) -> int:
    import jax

    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
