"""Averages over slices of a batch: microbatches, and groups with a perturbation each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, PyTree, Shaped

from gnpcli.gnp.trees import wide

Result: TypeAlias = PyTree
"""Whatever the averaged function returns: floating point leaves, in shapes that are its own."""

Slices = tuple[Int32[Array, " slices"], tuple[PyTree[Shaped[Array, "slices ..."]], ...]]
"""The number of each slice in the whole batch, and what it takes of each batch argument."""

OfSlice = Callable[[Int32[Array, ""], Sequence[PyTree]], Result]
"""``(number, its part of the batch) -> result``."""


def accumulate(
    value_and_grad: Callable[..., Any],
    batch_argnums: Sequence[int],
    key_argnums: Sequence[int] = (),
    *,
    axis_name: str | None = None,
    at_once: str | None = None,
) -> Callable[..., Any]:
    """Transform a function of one slice of a batch into its mean over all slices.

    The slices run one after another, so that only one's intermediate values are alive at a time.
    The whole result is averaged, in at least float32: value, aux, gradient and metrics alike.

    For a loss that is a mean over examples, on slices of equal size, value and gradient are those
    of the unsliced batch. What is not linear in the examples is a mean of the slices' own:
    statistics of BatchNorm, norms, cosines.

    With f the value and gradient of a loss, the order of `accumulate` and `penalize` decides:

    - ``penalize(accumulate(f, [1, 2]), ...)`` perturbs once for the whole batch, in less memory.
    - ``accumulate(penalize(f, ...), [1, 2])`` perturbs each slice on its own. That is m-sharpness
      (arXiv 2010.01412, section 4.1), and the slices are its groups.

    Args:
        value_and_grad: Called with positional arguments. Every leaf of its result is floating
            point.
        batch_argnums: Positions of the arguments that are cut: trees of arrays ``[S, ...]``, with
            an axis of S slices in front.
        key_argnums: Positions of random keys. Slice i gets ``fold_in(key, i)``, whichever device
            runs it.
        axis_name: A mapped axis, of `jax.shard_map` or `jax.vmap`, over which the slices are
            spread in order. Each of its n shards is given S / n of them, and all get the mean over
            all S.
        at_once: Run the slices of a shard at once, under `jax.vmap` with this axis name, so that
            they can exchange statistics. A gradient is then that of the sum of all losses with
            respect to the slice's own parameters.

    Returns:
        A function with the arguments and the result of `value_and_grad`, in its dtypes.

    Raises:
        TypeError: A result is not floating point. It shows when the function is called.

    >>> def loss(w, x):
    ...     return jnp.mean((w * x) ** 2)
    >>> x = jnp.arange(4.0)
    >>> print(*jax.value_and_grad(loss)(1.0, x))
    3.5 7.0
    >>> print(*accumulate(jax.value_and_grad(loss), [1])(1.0, x.reshape(2, 2)))
    3.5 7.0
    """

    def accumulated(*args: Any) -> Any:
        batch = tuple(args[index] for index in batch_argnums)
        count = jax.tree.leaves(batch)[0].shape[0]
        first = jax.lax.axis_index(axis_name) * count if axis_name else 0

        def of_slice(number: Int32[Array, ""], own: Sequence[PyTree]) -> Result:
            inner = list(args)
            for index, part in zip(batch_argnums, own, strict=True):
                inner[index] = part
            for index in key_argnums:
                inner[index] = jax.random.fold_in(args[index], number)
            return value_and_grad(*inner)

        slices = (first + jnp.arange(count, dtype=jnp.int32), batch)
        mean = _at_once(of_slice, slices, at_once) if at_once else _in_turn(of_slice, slices, count)
        return jax.lax.pmean(mean, axis_name) if axis_name else mean

    return accumulated


def _at_once(of_slice: OfSlice, slices: Slices, axis_name: str) -> Result:
    """Return the mean over slices that run together."""
    stacked = jax.vmap(of_slice, axis_name=axis_name)(*slices)

    def mean(leaf: jax.Array) -> jax.Array:
        return jnp.mean(_floating(leaf), axis=0).astype(leaf.dtype)

    return jax.tree.map(mean, stacked)


def _in_turn(of_slice: OfSlice, slices: Slices, count: int) -> Result:
    """Return the mean over `count` slices that run one after another."""
    shapes = jax.eval_shape(of_slice, *jax.tree.map(lambda leaf: leaf[0], slices))

    def zeros(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return _floating(jnp.zeros(leaf.shape, leaf.dtype))

    def add(total: Result, one: tuple[Int32[Array, ""], Sequence[PyTree]]) -> tuple[Result, None]:
        return jax.tree.map(lambda left, right: left + wide(right), total, of_slice(*one)), None

    def mean(total: jax.Array, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return (total / count).astype(leaf.dtype)

    totals, _ = jax.lax.scan(add, jax.tree.map(zeros, shapes), slices)
    return jax.tree.map(mean, totals, shapes)


def _floating(leaf: jax.Array) -> Float[Array, "*_"]:
    """Return `leaf` in at least float32; refuse one that is not floating point."""
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise TypeError(f"a result of type {leaf.dtype} has no mean over slices")
    return wide(leaf)
