"""How the blocks of a network are run, which no family has to know.

They run one after another, or scanned. What each answers is stored on a CPU, and computed again in
the backward pass under `rematerialised`. Parameters that a block gathers from other devices are not
kept for its backward pass, which gathers them again. What a network computes and what its
parameters are called does not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from gnpcli.devices.cpu import stored
from gnpcli.devices.sharding import is_gathering, keeps_all_but_gathered

_is_rematerialised: ContextVar[bool] = ContextVar("is_rematerialised", default=False)


@contextmanager
def rematerialised(is_on: bool) -> Iterator[None]:
    """Make the blocks that are traced inside keep their input alone for the gradient.

    The backward pass computes the rest again. It is a context and not an argument, because it is
    about how a step runs, and no model family has to carry it.
    """
    token = _is_rematerialised.set(is_on)
    try:
        yield
    finally:
        _is_rematerialised.reset(token)


def run(
    blocks: Sequence[nn.Module],
    x: jax.Array,
    train: bool,
    per_block: Any = None,
    *,
    is_scanned: bool = False,
) -> jax.Array:
    """Apply blocks in turn, each to the answer of the one before.

    A scanned program has one block in place of all of them. The parameters keep their names and are
    stacked as the program runs, so weights and checkpoints fit either way. Dropout then draws from
    other keys.

    Args:
        blocks: Submodules of one module, named, whose call is ``block(x, train)``, or ``block(x,
            train, own)`` with `per_block`.
        x: What the first block is applied to.
        train: Second argument of every block.
        per_block: A tree of ``[L, ...]`` for L blocks, of which each is given its own ``[...]``.
        is_scanned: Whether to scan. The blocks then differ in their names alone and have no state.
    """
    if is_scanned and not blocks[0].is_initializing():
        return _scan(blocks, x, train, per_block)
    for index, block in enumerate(blocks):
        own = () if per_block is None else (_of_block(per_block, index),)
        x = stored(_apply(block, x, train, *own))
    return x


def _of_block(per_block: Any, index: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], per_block)


def _apply(block: nn.Module, x: jax.Array, train: bool, *own: Any) -> jax.Array:
    def call(block: Callable[..., jax.Array], x: jax.Array, *own: Any) -> jax.Array:
        return block(x, train, *own)

    if _is_rematerialised.get():
        call = nn.remat(call)
    elif is_gathering():
        call = nn.remat(call, policy=keeps_all_but_gathered(block.variables.get("params", {})))
    return call(cast(Callable[..., jax.Array], block), x, *own)


def _scan(blocks: Sequence[nn.Module], x: jax.Array, train: bool, per_block: Any) -> jax.Array:
    root = blocks[0].parent
    assert isinstance(root, nn.Module), "blocks are submodules"
    params = [root.variables["params"][block.name] for block in blocks]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    keys = None
    if root.has_rng("dropout"):
        keys = jax.random.split(root.make_rng("dropout"), len(blocks))
    one = blocks[0].clone(parent=None, name=None)

    def apply(x: jax.Array, params: Any, key: jax.Array | None, own: Any) -> Any:
        rngs = {} if key is None else {"dropout": key}
        return one.apply({"params": params}, x, train, *own, rngs=rngs)

    if _is_rematerialised.get():
        apply = jax.checkpoint(apply)
    elif is_gathering():
        apply = jax.checkpoint(apply, policy=keeps_all_but_gathered(params[0]))

    def step(x: jax.Array, layer: tuple[Any, jax.Array | None, Any]) -> tuple[jax.Array, None]:
        return apply(x, *layer), None

    own = () if per_block is None else (per_block,)
    x, _ = jax.lax.scan(step, x, (stacked, keys, own))
    return x
