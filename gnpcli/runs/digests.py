"""Digests of arrays: whether what is restored is what was saved.

A digest is of the logical array, so it does not depend on how the array is sharded. It finds
accidents, such as a flipped bit. It is no protection against somebody who forges a save.

An array that no process holds whole is put together in the memory of every host, for as long as its
digest takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xxhash
from jax.experimental import multihost_utils


class HostArray(NamedTuple):
    """An array whose values are in the memory of the host."""

    dtype: str
    """As JAX names it. Keys of random streams have a type of their own."""
    values: np.ndarray
    """Of a key, its numbers."""


def on_host(tree: Any) -> dict[str, HostArray]:
    """Return the JAX and NumPy arrays of a tree by their paths, such as ``params.head.bias``.

    On a CPU they share the memory of the JAX arrays. JAX does not reuse that memory meanwhile, even
    where the arrays are donated. On other devices they are the copies that JAX keeps with an array,
    which Orbax takes as well. An array that is split over devices is put together in a copy. Where
    it is split over processes, all of them have to call this function together.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    numbers = [_together(_numbers(leaf)) for _, leaf in leaves]
    for array in numbers:
        if isinstance(array, jax.Array):
            array.copy_to_host_async()
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): HostArray(
            str(leaf.dtype), np.asarray(array)
        )
        for (path, leaf), array in zip(leaves, numbers, strict=True)
    }


def _numbers(leaf: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def put_together(tree: Any) -> None:
    """Take part in what `on_host` does in another process, and keep nothing."""
    for leaf in jax.tree.leaves(tree):
        _together(_numbers(leaf))


def _together(array: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    """Return an array of which this process has all values."""
    if isinstance(array, np.ndarray) or array.is_fully_addressable or array.is_fully_replicated:
        return array
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def digest(array: HostArray) -> str:
    """Return the 64 bits of XXH3 over dtype, shape and the bytes in C order, as 16 hex digits."""
    hashed = xxhash.xxh3_64(f"{array.dtype} {array.values.shape}\n".encode())
    # Not every dtype is a buffer: bfloat16 is not.
    hashed.update(np.ascontiguousarray(array.values).reshape(-1).view(np.uint8).data)
    return hashed.hexdigest()


def digests(arrays: Mapping[str, HostArray]) -> dict[str, str]:
    """Return the digest of each array."""
    return {path: digest(array) for path, array in arrays.items()}
