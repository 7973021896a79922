"""The step to the perturbed point: steepest ascent within a ball that a diagonal metric shapes.

For a diagonal T the ball is ``||T^-1 e|| <= r``. Within it ``<grad L, e>`` is largest at ``r e``
with the direction

    e = T^2 g / ||T g||,        g = grad L(w)

(arXiv 2102.11600, equations 7 and 8). The penalty becomes ``lambda ||T g||`` with T held constant.

- ``T = 1``: SAM and GNP.
- ``T = |w| + eta``: ASAM.
- ``T = 0``: the parameter stays where it is, and is left out of the norm (SAM-ON, arXiv
  2306.04226).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from gnpcli.gnp.trees import Tree, global_norm, scaled, wide

ScaleTree: TypeAlias = PyTree
"""T: a tree like the parameters.

A leaf is True (1), False (0), or a floating point array of the parameter's shape. The mixture
cannot be said in a signature.
"""

Mask: TypeAlias = PyTree[bool]
"""A tree of bools like the parameters."""

Scales = Callable[[Tree], ScaleTree]
"""``params -> T``. It is called where the gradient is taken, once a step, and may be traced."""


def perturbation_scales(
    params: Tree,
    *,
    perturbs: Mask | None = None,
    adapts: Mask | None = None,
    eta: float = 0.01,
) -> ScaleTree:
    """Return the T of SAM, ASAM and SAM-ON for `params`.

    `penalize` takes it as ``scales=lambda params: perturbation_scales(params, ...)``.

    Args:
        params: Where T is taken.
        perturbs: Which leaves move at all; None moves all of them.
        adapts: Which leaves are adaptive (arXiv 2102.11600, algorithm 1); None makes none so. Their
            T is ``|w| + eta``, in at least float32. The paper's own code adapts whatever is named
            weight: kernels and the scales of normalisation, not biases.
        eta: At least 0. It keeps weights of 0 from standing still.

    Returns:
        False for a leaf that does not move, True for one that moves without adapting, and an array
        of the leaf's shape for one that adapts.

    >>> import jax.numpy as jnp
    >>> params = {"w": jnp.array([-2.0, 0.5]), "b": jnp.ones(1)}
    >>> perturbation_scales(params, adapts={"w": True, "b": False}, eta=0.5)
    {'b': True, 'w': Array([2.5, 1. ], dtype=float32)}
    """

    def everywhere(value: bool) -> Mask:
        return jax.tree.map(lambda _: value, params)

    def scale(leaf: Float[Array, "*shape"], moves: bool, adapts: bool) -> bool | jax.Array:
        return jnp.abs(wide(leaf)) + eta if moves and adapts else moves

    moving = everywhere(True) if perturbs is None else perturbs
    adaptive = everywhere(False) if adapts is None else adapts
    return jax.tree.map(scale, params, moving, adaptive)


def steepest(params: Tree, grads: Tree, scales: Scales | None) -> tuple[Tree, Float[Array, ""]]:
    """Return ``T^2 g`` and ``||T g||``, whose quotient is the direction e.

    Args:
        params: Where T is taken.
        grads: g, a tree like `params`.
        scales: T; None is 1 everywhere.

    Returns:
        A tree like `grads`, in at least its dtypes, and a scalar in at least float32. Both are 0
        where g is 0 on all parameters that move.
    """
    if scales is None:
        return grads, global_norm(grads)
    factors = scales(params)
    stretched = jax.tree.map(_times, factors, grads)
    return jax.tree.map(_times, factors, stretched), global_norm(stretched)


def _times(
    scale: bool | Float[Array, "*shape"], leaf: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    if isinstance(scale, bool):
        return leaf if scale else jnp.zeros_like(leaf)
    return scaled(scale, leaf)
