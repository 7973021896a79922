"""What is done for the sake of XLA's CPU compiler, and the switch that turns it off.

Nothing here asks which backend there is. `on_cpu` puts two forms of a computation into a program,
and the form is chosen when the program is lowered. So a program can be lowered for a machine that
is not there. Both forms compute the same, up to rounding.

The switch is `tuning`, or ``GNP_CPU_TUNING=0`` in the environment. Without tuning a program has one
form for all backends.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

VARIABLE = "GNP_CPU_TUNING"
"""The environment variable of the switch: ``0`` turns the tuning off."""

Result = TypeVar("Result")

_is_tuned: ContextVar[bool | None] = ContextVar("is_tuned", default=None)


@contextmanager
def tuning(is_on: bool) -> Iterator[None]:
    """Turn the tuning for a CPU on or off for what is traced inside."""
    token = _is_tuned.set(is_on)
    try:
        yield
    finally:
        _is_tuned.reset(token)


def is_tuned() -> bool:
    """Return whether what is traced now is tuned: as `tuning` says, else as `VARIABLE` says."""
    chosen = _is_tuned.get()
    return os.environ.get(VARIABLE) != "0" if chosen is None else chosen


def on_cpu(
    own: Callable[..., Result], default: Callable[..., Result], *arguments: object
) -> Result:
    """Apply `own` to the arguments on a CPU and `default` elsewhere; without tuning `default`.

    Args:
        own: The form for XLA's CPU compiler.
        default: The form for every other compiler. It answers in the same shapes and dtypes.
        arguments: Arrays, or trees of them.
    """
    if not is_tuned():
        return default(*arguments)
    return cast(Result, jax.lax.platform_dependent(*arguments, cpu=own, default=default))


_never: ContextVar[jax.Array | None] = ContextVar("never", default=None)


@contextmanager
def storing(key: Key[Array, ""]) -> Iterator[None]:
    """Make `stored` store what is traced inside.

    Args:
        key: Any scalar key from `jax.random.key` whose value the compiler does not know.
    """
    if not is_tuned():
        yield
        return
    bits = jax.random.key_data(key).reshape(-1)[0].astype(jnp.float32)
    token = _never.set(bits * bits < -1)  # false, and no pass of the compiler sees it
    try:
        yield
    finally:
        _never.reset(token)


def stored(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return `x`. Under `storing`, a CPU writes it to memory once, and its gradient too.

    XLA's CPU compiler fuses a sum into each kernel that reads it, with all that the sum is made of.
    Along the residual branches of a network, the kernels of a block add up the answers of all
    blocks before it, and in the backward pass the gradients of all blocks behind it. That cost
    grows with the square of the depth. The compiler does not fuse a loop, and this one runs no
    round. (It removes optimization barriers before it fuses.) Other compilers weigh the cost of a
    computation that is made twice, and need no help.

    A plain forward-mode derivative (`jax.jvp`) does not exist through it. Forward over reverse
    does.
    """
    never = _never.get()
    return x if never is None else _stored(x, never)


def _through_a_loop(x: jax.Array, never: jax.Array) -> jax.Array:
    def goes_on(carry: tuple[jax.Array, jax.Array]) -> jax.Array:
        return carry[0]

    def once(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return jnp.zeros_like(carry[0]), -carry[1]

    _, x = jax.lax.while_loop(goes_on, once, (never, x))
    return x


def _as_it_is(x: jax.Array, never: jax.Array) -> jax.Array:
    return x


@jax.custom_vjp
def _stored(x: jax.Array, never: jax.Array) -> jax.Array:
    return on_cpu(_through_a_loop, _as_it_is, x, never)


def _stored_forward(x: jax.Array, never: jax.Array) -> tuple[jax.Array, jax.Array]:
    return on_cpu(_through_a_loop, _as_it_is, x, never), never


def _stored_backward(never: jax.Array, dy: jax.Array) -> tuple[jax.Array, None]:
    return on_cpu(_through_a_loop, _as_it_is, dy, never), None


_stored.defvjp(_stored_forward, _stored_backward)


def computed_once(scalar: Float[Array, ""]) -> Float[Array, ""]:
    """Return `scalar`, which a CPU computes once and not in each of the kernels that read it.

    A training step reads the learning rate in one kernel for each array of the parameters. Its
    cosine was a seventh of the compilation of a PyramidNet of 27 convolutions. XLA's CPU compiler
    never fuses a sort, and this sort of two equal elements does nothing else.
    """
    once: jax.Array = on_cpu(_sorted, lambda scalar: scalar, scalar)
    return once


def _sorted(scalar: jax.Array) -> jax.Array:
    answer: jax.Array = jax.lax.sort(jnp.stack([scalar, scalar]))[0]
    return answer
