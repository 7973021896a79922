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


_never: ContextVar[jax.Array | None] = ContextVar("never", default=None)


@contextmanager
def stored_blocks(key: jax.Array) -> Iterator[None]:
    """Make `stored` store what is traced inside, on a CPU.

    Args:
        key: Any scalar key from `jax.random.key` that the compiler does not know the value of.
    """
    if (
        jax.default_backend() != "cpu"
    ):  # elsewhere the compiler weighs what a computation costs that is made twice
        yield
        return
    bits = jax.random.key_data(key).reshape(-1)[0].astype(jnp.float32)
    token = _never.set(bits * bits < -1)  # false, and no pass of the compiler sees it
    try:
        yield
    finally:
        _never.reset(token)


def stored(x: jax.Array) -> jax.Array:
    """Return `x`; under `stored_blocks` as an array that is written to memory once, and so is its
    gradient.

    XLA's CPU compiler fuses a sum into each kernel that reads it, with all that the sum is made of.
    Along the residual branches of a network the kernels of a block so add up the answers of all
    blocks before it, and in the backward pass the gradients of all blocks behind it: a cost that
    grows with the square of the depth. A loop is nothing that it fuses, and this one runs no round;
    optimization barriers are gone by the time it does. A plain forward-mode derivative (`jax.jvp`)
    does not exist through it, forward over reverse does.
    """
    never = _never.get()
    return x if never is None else _stored(x, never)


def _through_a_loop(x: jax.Array, never: jax.Array) -> jax.Array:
    start = (never, x)
    return jax.lax.while_loop(
        lambda carry: carry[0], lambda carry: (jnp.zeros_like(carry[0]), -carry[1]), start
    )[1]


_stored = jax.custom_vjp(_through_a_loop)
_stored.defvjp(
    lambda x, never: (_through_a_loop(x, never), never),
    lambda never, dy: (_through_a_loop(dy, never), None),
)


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
