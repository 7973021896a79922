"""Averages over slices of a batch: gradient accumulation, and groups that each have a perturbation
of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gnpcli.gnp.trees import wide


def accumulate(
    value_and_grad: Callable[..., Any],
    batch_argnums: Sequence[int],
    key_argnums: Sequence[int] = (),
    *,
    axis_name: str | None = None,
    at_once: str | None = None,
) -> Callable[..., Any]:
    """Transform a function of one slice of a batch into its mean over all slices, run one after
    another.

    What is averaged is the whole result: value, aux, gradient and metrics alike, in at least
    float32. For a loss that is itself a mean over examples, on slices of equal size, value and
    gradient are those of the unsliced batch; whatever is not linear in the examples (statistics of
    BatchNorm, norms, cosines) is a mean of the slices' own. Only one slice's intermediate values
    are alive at a time.

    Composed with `penalize`, with f the value and gradient of a loss:

    - ``penalize(accumulate(f))`` perturbs once for the whole batch, in less memory;
    - ``accumulate(penalize(f))`` perturbs each slice on its own: m-sharpness (arXiv 2010.01412,
      section 4.1), the slices being its groups.

    Args:
        value_and_grad: Called with positional arguments; every leaf of its result is floating
            point.
        batch_argnums: Positions of the arguments (trees of arrays) with an axis of S slices in
            front, ``[S, ...]``.
        key_argnums: Positions of random keys: slice i gets ``fold_in(key, i)``, whichever device
            runs it.
        axis_name: A mapped axis (of `jax.shard_map` or `jax.vmap`) over which the slices are
            spread, in order: each of its n shards is given S / n of them, and all get the mean over
            all S.
        at_once: Run the slices (of a shard) at once under `jax.vmap` with this axis name, so that
            they can exchange statistics. A gradient is then the one of the sum of all losses with
            respect to the slice's own parameters.

    Returns:
        A function with the arguments and the result of `value_and_grad`.

    Raises:
        TypeError: A result that is not floating point.

    >>> def loss(w, x):
    ...     return jnp.mean((w * x) ** 2)
    >>> x = jnp.arange(4.0)
    >>> print(*accumulate(jax.value_and_grad(loss), [1])(1.0, x.reshape(2, 2)), *jax.value_and_grad(loss)(1.0, x))
    3.5 7.0 3.5 7.0
    """

    def accumulated(*args: Any) -> Any:
        batch = tuple(args[index] for index in batch_argnums)
        count = jax.tree.leaves(batch)[0].shape[0]
        first = jax.lax.axis_index(axis_name) * count if axis_name else 0

        def result_of(number: jax.Array, own: Sequence[Any]) -> Any:
            inner = list(args)
            for index, leaf in zip(batch_argnums, own, strict=True):
                inner[index] = leaf
            for index in key_argnums:
                inner[index] = jax.random.fold_in(args[index], number)
            return value_and_grad(*inner)

        slices = (first + jnp.arange(count, dtype=jnp.int32), batch)
        if at_once:
            stacked = jax.vmap(result_of, axis_name=at_once)(*slices)
            mean = jax.tree.map(
                lambda leaf: jnp.mean(_floating(leaf), axis=0).astype(leaf.dtype), stacked
            )
        else:
            shapes = jax.eval_shape(result_of, *jax.tree.map(lambda leaf: leaf[0], slices))
            zeros = jax.tree.map(
                lambda shape: _floating(jnp.zeros(shape.shape, shape.dtype)), shapes
            )

            def add(total: Any, own: Any) -> tuple[Any, None]:
                return jax.tree.map(
                    lambda left, right: left + wide(right), total, result_of(*own)
                ), None

            total, _ = jax.lax.scan(add, zeros, slices)
            mean = jax.tree.map(
                lambda leaf, shape: (leaf / count).astype(shape.dtype), total, shapes
            )
        return jax.lax.pmean(mean, axis_name) if axis_name else mean

    return accumulated


def _floating(leaf: jax.Array) -> jax.Array:
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise TypeError(f"a result of type {leaf.dtype} has no mean over slices")
    return wide(leaf)
