"""How much of a perturbation the compute type of a model can represent.

Parameters and the perturbed point are float32. A layer that computes in bfloat16 rounds them first.
A step of less than half a unit in the last place of a weight is then mostly rounded away, and the
perturbed pass sees that weight unmoved.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Array, Float, Float32, PyTree

from gnpcli.terminal.words import percent

EVERY_STEPS = 200
"""Steps between two measurements. A measurement costs one gradient.

The first is after as many steps, and after the learning-rate warmup. While a head that starts at 0
has hardly moved, the gradient of everything before it is 0 or nearly so.
"""

MOST = 0.5
"""Share of the moving parameters above which a run warns."""


def advice(share: float, *, step: int, r: float, dtype: str) -> str:
    """Return what to tell of a share above `MOST`, in one line.

    Args:
        share: From `lost_share`.
        step: Steps done.
        r: Perturbation radius.
        dtype: Name of the compute type.
    """
    many = percent(share, digits=0)
    what = f"{many} of the parameters are perturbed by less than {dtype} can represent"
    why = f"r = {r:g}: under half a unit in their last place"
    effect = "so the perturbed pass mostly sees them where they were"
    remedy = "take a larger gr.r or train.dtype=float32 (`gnp check` measures what it costs)"
    return f"at step {step}, {what} ({why}), {effect}; {remedy}"


def half_ulp(weights: Float[Array, "*shape"], dtype: np.dtype) -> Float32[Array, "*shape"]:
    """Return half a unit in the last place of each weight in `dtype`.

    It is ``2^(floor(log2 |w|) - nmant - 1)``. A weight below the normal numbers of `dtype` has the
    spacing of its subnormal ones.

    >>> import jax.numpy as jnp
    >>> print(half_ulp(jnp.array([1.0, -1.5, 0.25]), jnp.dtype(jnp.bfloat16)))
    [0.00390625 0.00390625 0.00097656]
    """
    info = ml_dtypes.finfo(dtype)
    _, exponent = jnp.frexp(weights.astype(jnp.float32))  # w = m 2^exponent, m in [1/2, 1)
    exponent = jnp.maximum(exponent - 1, info.minexp)
    return jnp.ldexp(jnp.ones_like(weights, jnp.float32), exponent - info.nmant - 1)


def lost_share(
    params: PyTree, steps: PyTree, moves: PyTree[bool], dtype: np.dtype
) -> Float32[Array, ""]:
    """Return the share of the moving scalars that move by less than half a unit in the last place.

    Args:
        params: Tree of float arrays, of any shapes.
        steps: Tree like it: the perturbation, ``r g / ||g||`` in the L2 ball.
        moves: Tree like it, of bools: the leaves that the perturbation moves at all. The others do
            not count.
        dtype: Type that the parameters are rounded to.

    Returns:
        In ``[0, 1]``, each scalar counting once. 0 where nothing moves.
    """
    leaves = zip(*map(jax.tree.leaves, (params, steps, moves)), strict=True)
    moving = [(leaf, step) for leaf, step, is_moved in leaves if is_moved]
    counts = [_count_lost(leaf, step, dtype) for leaf, step in moving]
    total = sum(leaf.size for leaf, _ in moving)
    return sum(counts, jnp.zeros((), jnp.float32)) / np.float32(max(total, 1))


def _count_lost(
    weights: Float[Array, "*shape"], steps: Float[Array, "*shape"], dtype: np.dtype
) -> Float32[Array, ""]:
    """Return how many weights move by less than half a unit in their last place."""
    is_lost = jnp.abs(steps.astype(jnp.float32)) < half_ulp(weights, dtype)
    return jnp.sum(is_lost, dtype=jnp.float32)
