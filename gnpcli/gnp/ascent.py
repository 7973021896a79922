"""The step to the perturbed point: steepest ascent within a ball that a diagonal metric shapes.

For a diagonal T the ball is ``||T^-1 e|| <= r``. Within it ``<grad L, e>`` is largest at ``r e``
with the direction

    e = T^2 g / ||T g||,        g = grad L(w)

(arXiv 2102.11600, equations 7 and 8), and the penalty becomes ``lambda ||T g||`` with T held
constant. T = 1 is SAM and GNP, ``T = |w| + eta`` is ASAM, and T = 0 leaves a parameter where it is
and out of the norm (SAM-ON, arXiv 2306.04226).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gnpcli.gnp.trees import global_norm, scaled, wide

Scales = Callable[[Any], Any]
"""``params -> T``: a tree like `params` with True (1), False (0) or an array of the parameter's
shape for each leaf.
"""


def perturbation_scales(
    params: Any, *, perturbs: Any = None, adapts: Any = None, eta: float = 0.01
) -> Any:
    """Return the T of SAM, ASAM and SAM-ON for `params`, as `penalize` takes it.

    Args:
        params: Where T is taken: adaptive leaves are ``|w| + eta``, in at least float32.
        perturbs: Tree of bools like `params`: which leaves move at all; None moves all of them.
        adapts: Tree of bools: which leaves are adaptive (arXiv 2102.11600, algorithm 1); None makes
            none so. That paper's own code adapts whatever is named weight: kernels and the scales
            of normalisation, not biases.
        eta: At least 0; keeps weights of 0 from standing still.

    >>> import jax.numpy as jnp
    >>> perturbation_scales({"w": jnp.array([-2.0, 0.5]), "b": jnp.ones(1)}, adapts={"w": True, "b": False}, eta=0.5)
    {'b': True, 'w': Array([2.5, 1. ], dtype=float32)}
    """

    def scale(leaf: jax.Array, moves: bool, adapts: bool) -> Any:
        return jnp.abs(wide(leaf)) + eta if moves and adapts else moves

    def everywhere(value: bool) -> Any:
        return jax.tree.map(lambda _: value, params)

    return jax.tree.map(
        scale,
        params,
        everywhere(True) if perturbs is None else perturbs,
        everywhere(False) if adapts is None else adapts,
    )


def steepest(params: Any, grads: Any, scales: Scales | None) -> tuple[Any, jax.Array]:
    """Return ``T^2 g`` and ``||T g||``, whose quotient is the direction; their dtypes are at least
    those of `grads`.
    """
    if scales is None:
        return grads, global_norm(grads)

    def times(scale: Any, leaf: jax.Array) -> jax.Array:
        if isinstance(scale, bool):
            return leaf if scale else jnp.zeros_like(leaf)
        return scaled(scale, leaf)

    factors = scales(params)
    stretched = jax.tree.map(times, factors, grads)
    return jax.tree.map(times, factors, stretched), global_norm(stretched)
