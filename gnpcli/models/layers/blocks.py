"""How the blocks of a network are run: one after another, scanned, stored, or computed again in the
backward pass.

What a network computes and what its parameters are called does not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from gnpcli.devices.cpu import stored

Block = TypeVar("Block", bound=Callable[..., Any])

_is_rematerialised: ContextVar[bool] = ContextVar("is_rematerialised", default=False)


@contextmanager
def rematerialised(is_on: bool) -> Iterator[None]:
    """Make the blocks that are traced inside keep their input alone and compute the rest again for
    the gradient.

    A context and not an argument, because it is about how a step runs, and no model family has to
    carry it.
    """
    token = _is_rematerialised.set(is_on)
    try:
        yield
    finally:
        _is_rematerialised.reset(token)


def as_block(module: Block, *static: int) -> Block:
    """Return the class of a block, or under `rematerialised` that of a block that is computed
    again.

    Args:
        module: A Linen module.
        static: Positions of the arguments of its call, counted from 1, that are no arrays.
    """
    return (
        cast(Block, nn.remat(module, static_argnums=static)) if _is_rematerialised.get() else module
    )


def run_blocks(
    root: nn.Module,
    make: Callable[..., Any],
    names: Sequence[str],
    x: jax.Array,
    train: bool,
    *,
    is_scanned: bool,
) -> jax.Array:
    """Apply equal blocks without state in turn.

    Scanned, the program has one block in place of all of them; the parameters, which keep their
    names, are stacked as it runs, so that weights and checkpoints fit either way. Dropout then
    draws from other keys.

    Args:
        root: The module that the blocks are submodules of.
        make: A class of `as_block`, with the sizes of the blocks.
        names: Of the blocks, in order.
        x: What the first block is applied to, and each further one to the answer of the one before.
        train: Second argument of every block.
        is_scanned: Whether to scan.
    """
    if not is_scanned or root.is_initializing():
        for name in names:
            x = stored(make(name=name)(x, train))
        return x
    params = [root.variables["params"][name] for name in names]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    keys = (
        jax.random.split(root.make_rng("dropout"), len(names)) if root.has_rng("dropout") else None
    )
    one = make(parent=None)

    def step(x: jax.Array, layer: tuple[Any, jax.Array | None]) -> tuple[jax.Array, None]:
        params, key = layer
        return one.apply(
            {"params": params}, x, train, rngs={} if key is None else {"dropout": key}
        ), None

    x, _ = jax.lax.scan(step, x, (stacked, keys))
    return x
