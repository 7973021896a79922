"""What is done so that two passes over one batch share nothing that is large.

A penalised step differentiates the loss twice, with the same random draws. A compiler sees that and
draws the masks of dropout once. Then the masks of all layers are kept from one pass to the other,
and what an accelerator has fast memory for is moved out and back. Drawing them again is cheaper
there. On a CPU, where random bits are what dropout costs, they are drawn once.
"""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import Array, Key

from gnpcli.devices import cpu


def drawn_anew(key: Key[Array, ""], params: Any) -> Key[Array, ""]:
    """Return `key`, of which passes at other `params` share no draws, but on a CPU.

    Args:
        key: Of the random draws of a pass.
        params: Where the pass is taken; a tree of arrays, at least one.
    """
    smallest = min(jax.tree.leaves(params), key=lambda leaf: leaf.size)
    # A constant as far as the loss is concerned.
    where = jax.lax.stop_gradient(smallest)
    words = cpu.on_cpu(_as_it_is, _bound_to, jax.random.key_data(key), where)
    anew: jax.Array = jax.random.wrap_key_data(words, impl=jax.random.key_impl(key))
    return anew


def _as_it_is(words: jax.Array, where: jax.Array) -> jax.Array:
    return words


def _bound_to(words: jax.Array, where: jax.Array) -> jax.Array:
    # The words now come of `where` too, as far as the compiler knows.
    bound: jax.Array = jax.lax.optimization_barrier((words, where))[0]
    return bound
