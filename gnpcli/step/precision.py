"""What the compute type of a model can represent of a perturbation.

Parameters and the perturbed point are float32, and a layer that computes in bfloat16 rounds them
first. A step of less than half a unit in the last place of a weight is then mostly rounded away,
and the perturbed pass sees that weight unmoved.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from gnpcli.terminal.words import percent

EVERY_STEPS = 200
"""Steps between two measurements, each of which costs one gradient.

The first is after as many steps, and after the learning-rate warmup. Before that a head that starts
at 0 has hardly moved, and the gradient of everything before it is nearly 0.
"""

MOST = 0.5
"""Share of the moving parameters above which a run warns."""


def advice(share: float, *, step: int, r: float, dtype: str) -> str:
    """Return what to tell of a share above `MOST`, in one line."""
    what = (
        f"{percent(share, digits=0)} of the parameters are perturbed by less than {dtype} can "
        f"represent (r = {r:g}: under half a unit in their last place)"
    )
    return (
        f"at step {step}, {what}, so the perturbed pass mostly sees them where they were; take a "
        "larger gr.r or train.dtype=float32 (`gnp check` measures what it costs)"
    )


def half_ulp(weights: jax.Array, dtype: np.dtype) -> jax.Array:
    """Return half a unit in the last place of each weight in `dtype`, in float32.

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


def lost_share(params: Any, steps: Any, moves: Any, dtype: np.dtype) -> jax.Array:
    """Return the share of scalars that a perturbation moves by less than `half_ulp`.

    Args:
        params: Tree of float arrays.
        steps: Tree like it: the perturbation, ``r g / ||g||`` in the L2 ball.
        moves: Tree like it, of bools: the leaves that the perturbation moves at all. The others do
            not count.
        dtype: Type that the parameters are rounded to.

    Returns:
        In ``[0, 1]``, each scalar counting once; float32 scalar. 0 where nothing moves.
    """
    leaves = zip(*map(jax.tree.leaves, (params, steps, moves)), strict=True)
    counts = [
        (
            jnp.sum(jnp.abs(step.astype(jnp.float32)) < half_ulp(leaf, dtype), dtype=jnp.float32),
            leaf.size,
        )
        for leaf, step, is_moved in leaves
        if is_moved
    ]
    total = sum(size for _, size in counts)
    lost = sum((count for count, _ in counts), jnp.zeros((), jnp.float32))
    return lost / np.float32(max(total, 1))
