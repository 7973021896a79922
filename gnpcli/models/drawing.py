"""Initial parameters drawn in one piece, so that a compiler sees one draw in the place of hundreds.

A network draws each of its parameters from a key of its own. XLA's CPU compiler takes longer for
these draws than for a step of training, and all of them do the same. Element i of a draw is a
function of its key and of i alone (Threefry, SC 2011, doi 10.1145/2063384.2063405), so the elements
of many draws can lie side by side in one. JAX makes numbers of the bits as it always does. The
parameters are the same, bit for bit.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import cache
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun
from jax.extend.random import define_prng_impl, threefry2x32_p

from gnpcli.models.base import ImageShape, InitFn, Params, State

BLOCK = 1024
"""Elements of a row, which have one key. The last row of a draw is filled up."""
ROWS = 64
"""Rows that are drawn at a time: they stay in the caches of a processor."""
_MOST = 1 << 31
"""Elements of a draw, below which a number of 32 bits counts them."""

_ABOVE = np.nextafter(np.float32(-1), np.float32(0))
_SQRT2 = np.sqrt(np.float32(2))
_FOLD = "random_fold_in"
_DRAWS: dict[str, Callable[..., jax.Array]] = {
    "_normal": lambda key, shape: jax.lax.erf_inv(
        jax.random.uniform(key, shape, jnp.float32, minval=_ABOVE)
    ),
    "_uniform": lambda key, shape, low, high: jax.random.uniform(
        key, shape, jnp.float32, minval=low, maxval=high
    ),
    "_truncated_normal": lambda key, shape, low, high: jax.random.truncated_normal(
        key, low, high, shape, jnp.float32
    ),
}
"""What is drawn together in float32, by the name that JAX gives it in a program.

The last arguments are those of the equation behind the key. A normal number is drawn over sqrt(2).
A draw that has another name, as another version of JAX may give it, is drawn alone.
"""


def drawn_together(init: InitFn) -> InitFn:
    """Return `init` with its draws made together where they are of one distribution and type.

    Run it under `jax.jit`. It gives what `init` gives for a scalar Threefry key, as `gnpcli` has
    them (`gnpcli.devices.start.check_settings`).
    """

    def together(key: jax.Array, image_shape: ImageShape) -> tuple[Params, State]:
        def from_key(key: jax.Array) -> tuple[Params, State]:
            return init(key, image_shape)

        closed, shapes = jax.make_jaxpr(from_key, return_shape=True)(key)
        leaves = _Evaluation(closed, [key]).run()
        result: tuple[Params, State] = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
        return result

    return together


class _Evaluation:
    """Computes what a program gives, with its draws made together.

    Args:
        closed: The program.
        inputs: What it is given.
    """

    def __init__(self, closed: ClosedJaxpr, inputs: Sequence[jax.Array]):
        self._closed = closed
        self._known: dict[Var, Any] = {}
        self._rows: dict[Var, tuple[jax.Array, int]] = {}
        """Of keys that were made together: all of them, and which one it is."""
        self._normal: dict[Var, jax.Array] = {}
        """Normal numbers over sqrt(2)."""
        self._learn(closed.jaxpr.constvars, closed.consts)
        self._learn(closed.jaxpr.invars, inputs)

    def run(self) -> list[Any]:
        """Return the results."""
        left = _needed(self._closed)
        while left:
            left = self._compute_each(left)
            ready = [equation for equation in left if self._is_ready(equation)]
            left = [equation for equation in left if not self._is_ready(equation)]
            for group in _alike(ready):
                self._draw(group)
        return [self._value(atom) for atom in self._closed.jaxpr.outvars]

    def _learn(self, variables: Sequence[Var], values: Iterable[Any]) -> None:
        self._known.update(zip(variables, values, strict=True))

    def _value(self, atom: Var | Literal) -> Any:
        return atom.val if isinstance(atom, Literal) else self._known[atom]

    def _is_ready(self, equation: JaxprEqn) -> bool:
        return all(variable in self._known for variable in _variables(equation))

    def _compute_each(self, equations: Iterable[JaxprEqn]) -> list[JaxprEqn]:
        """Compute what can be computed now and is no draw; return all that is left."""
        left: list[JaxprEqn] = []
        for equation in equations:
            if _kind(equation) is not None or not self._is_ready(equation):
                left.append(equation)
                continue
            if self._scale_normal(equation):
                continue
            inputs = list(_variables(equation))
            alone = self._closed.jaxpr.replace(
                constvars=[], invars=inputs, outvars=equation.outvars, eqns=[equation]
            )
            values = jaxpr_as_fun(ClosedJaxpr(alone, []))(*map(self._known.get, inputs))
            self._learn(equation.outvars, values)
        return left

    def _scale_normal(self, equation: JaxprEqn) -> bool:
        """Compute a product of normal numbers and a scalar, if `equation` is one.

        XLA joins the two factors, sqrt(2) and the scalar, where the draw stands beside the product.
        """
        if equation.primitive.name != "mul":
            return False
        drawn, factor = equation.invars
        if isinstance(drawn, Literal) or drawn not in self._normal or _aval(factor).shape != ():
            return False
        numbers = self._normal[drawn]
        self._learn(equation.outvars, [numbers * (_SQRT2 * self._value(factor))])
        return True

    def _draw(self, group: Sequence[JaxprEqn]) -> None:
        """Compute equations of one kind, together."""
        results = [equation.outvars[0] for equation in group]
        values: Sequence[jax.Array] | jax.Array
        keys = self._stacked([equation.invars[0] for equation in group])
        if group[0].primitive.name == _FOLD:
            data = jnp.stack([self._value(equation.invars[1]) for equation in group])
            values = jax.vmap(jax.random.fold_in)(keys, data)
            self._rows.update({key: (values, row) for row, key in enumerate(results)})
        else:
            draw, rest = _DRAWS[group[0].params["name"]], group[0].invars[1:]
            shapes = [_aval(result).shape for result in results]
            limits = [self._value(atom) for atom in rest]
            values = _side_by_side(keys, shapes, lambda key, shape: draw(key, shape, *limits))
        if group[0].params.get("name") == "_normal":
            self._normal.update(zip(results, values, strict=True))
            values = [value * _SQRT2 for value in values]
        self._learn(results, values)

    def _stacked(self, keys: Sequence[Any]) -> jax.Array:
        """Return keys along an axis; those that were made together are not taken apart."""
        rows = [self._rows.get(key) for key in keys]
        together = [row for row in rows if row is not None]
        if len(together) == len(keys) and len({id(stack) for stack, _ in together}) == 1:
            return together[0][0][np.array([row for _, row in together])]
        return jnp.stack([self._known[key] for key in keys])


def _needed(closed: ClosedJaxpr) -> list[JaxprEqn]:
    """Return the equations of which a result is made, in their order.

    The pass of the network that a library makes to find the shapes is none of them.
    """
    live = {atom for atom in closed.jaxpr.outvars if isinstance(atom, Var)}
    needed: list[JaxprEqn] = []
    for equation in reversed(closed.jaxpr.eqns):
        if equation.effects or not live.isdisjoint(equation.outvars):
            live.update(_variables(equation))
            needed.append(equation)
    return needed[::-1]


def _variables(equation: JaxprEqn) -> Iterable[Var]:
    return (atom for atom in equation.invars if isinstance(atom, Var))


def _kind(equation: JaxprEqn) -> Hashable | None:
    """Return what draws that can be made together share; None for any other equation."""
    name = equation.primitive.name
    if name != _FOLD and equation.params.get("name") not in _DRAWS:
        return None
    key, *rest = equation.invars
    if _aval(key).shape != () or _aval(key).dtype != _threefry():
        return None
    if name == _FOLD:
        return name
    drawn = _aval(equation.outvars[0])
    is_plain = drawn.dtype == jnp.float32 and 0 < drawn.size < _MOST
    if not is_plain or not all(isinstance(atom, Literal) for atom in rest):
        return None
    numbers = tuple(float(atom.val) for atom in rest if isinstance(atom, Literal))
    return equation.params["name"], numbers


def _aval(atom: Var | Literal) -> jax.ShapeDtypeStruct:
    """Return shape and dtype of a value in a program."""
    aval: Any = atom.aval
    return cast(jax.ShapeDtypeStruct, aval)


@cache
def _threefry() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0, impl="threefry2x32")).dtype


def _alike(equations: Iterable[JaxprEqn]) -> list[list[JaxprEqn]]:
    """Return the equations of each kind."""
    groups: dict[Hashable, list[JaxprEqn]] = defaultdict(list)
    for equation in equations:
        groups[_kind(equation)].append(equation)
    return [*groups.values()]


Draw = Callable[[jax.Array, tuple[int, ...]], jax.Array]
"""``(key, shape) -> array``, each element of the bits of its place alone."""


def _side_by_side(
    keys: jax.Array, shapes: Sequence[tuple[int, ...]], draw: Draw
) -> list[jax.Array]:
    """Return ``draw(key, shape)`` for each of `keys` ``[n]`` and its shape, from one program."""
    sizes = [math.prod(shape) for shape in shapes]
    blocks = [-(-size // BLOCK) for size in sizes]
    owner = np.repeat(np.arange(len(sizes)), blocks)
    first = np.concatenate([np.arange(count) for count in blocks]) * BLOCK
    filled = -len(owner) % ROWS
    words = jax.random.key_data(keys)[np.pad(owner, (0, filled))]
    place = np.pad(first, (0, filled)).astype(np.uint32)[:, None]
    rounds = jnp.concatenate([words, place], axis=1).reshape(-1, ROWS, 3)

    def draw_rows(words: jax.Array) -> jax.Array:
        return draw(jax.random.wrap_key_data(words, impl=_SIDE_BY_SIDE), (ROWS, BLOCK))

    # A loop: its result is written once, and each parameter is a slice of it.
    drawn = jax.lax.map(draw_rows, rounds).reshape(-1)
    starts = np.cumsum([0, *blocks[:-1]]) * BLOCK
    return [
        drawn[start : start + size].reshape(shape)
        for start, size, shape in zip(starts, sizes, shapes, strict=True)
    ]


def _bits(words: jax.Array, width: int, shape: tuple[int, ...]) -> jax.Array:
    """Return rows of the bits of other keys.

    Args:
        words: For each row the two words of its key, and the element with which it begins in the
            draw of that key; uint32 ``[ROWS, 3]``.
        width: 32.
        shape: ``(ROWS, BLOCK)``.
    """
    if width != 32 or shape != (ROWS, BLOCK):
        raise NotImplementedError(f"{width} bits for {shape}")
    one, other, first = (jnp.broadcast_to(words[:, i, None], shape) for i in range(3))
    element = first + jax.lax.broadcasted_iota(jnp.uint32, shape, 1)
    one, other = threefry2x32_p.bind(one, other, jnp.zeros_like(element), element)
    bits: jax.Array = one ^ other
    return bits


def _refuse(*arguments: Any) -> jax.Array:
    raise NotImplementedError("such a key only draws")


_SIDE_BY_SIDE = define_prng_impl(
    key_shape=(ROWS, 3), seed=_refuse, split=_refuse, random_bits=_bits, fold_in=_refuse
)
"""Keys that draw what many keys draw, a row each. JAX makes numbers of the bits."""
