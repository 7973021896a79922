"""FLOP and bytes of a traced program, for a machine whose compiler is not here.

FLOP are those of matrix products and convolutions, by their shapes, and one for each element of all
else. The body of a loop counts as often as it runs.

Bytes follow a simple model of what a compiler fuses. Products, convolutions and what moves data
read their operands and write their results. What works element by element, and sums, are computed
within one kernel from arrays that are in memory: such a kernel reads those once and writes its
result. A result that only other such kernels read is never written.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

_FREE = {
    "reshape",
    "squeeze",
    "expand_dims",
    "bitcast_convert_type",
    "stop_gradient",
    "copy",
    "sharding_constraint",
    "random_wrap",
    "random_unwrap",
    "iota",
    "create_token",
    "name",
    "optimization_barrier",
}
"""Primitives that compute nothing: their result is their operand, or costs nothing."""
_SUMS = {
    "reduce_sum",
    "reduce_max",
    "reduce_min",
    "reduce_prod",
    "reduce_and",
    "reduce_or",
    "reduce_xor",
    "argmax",
    "argmin",
}
"""Primitives that end a kernel which works element by element."""
_MOVES = {
    "gather",
    "scatter",
    "scatter-add",
    "dynamic_slice",
    "dynamic_update_slice",
    "sort",
    "concatenate",
    "pad",
    "select_and_scatter_add",
    "reduce_window_sum",
    "reduce_window_max",
    "reduce_window",
    "cumsum",
    "cumprod",
    "cummax",
    "cumlogsumexp",
    "top_k",
    "psum",
}
"""Primitives that read and write memory, and are never computed twice."""


@dataclass
class Count:
    """FLOP and bytes."""

    flops: float = 0.0
    bytes: float = 0.0

    def add(self, other: Count, times: float = 1.0) -> None:
        """Add another count, so many times."""
        self.flops += times * other.flops
        self.bytes += times * other.bytes


def count(jaxpr: Any) -> Count:
    """Return what a program computes and moves, on all devices together.

    Args:
        jaxpr: A closed jaxpr, traced without the forms of one backend
            (`gnpcli.devices.cpu.tuning`).
    """
    return _Counter(jaxpr.jaxpr).count()


class _Counter:
    """Counts one jaxpr, and those within it."""

    def __init__(self, jaxpr: Any):
        self._jaxpr = jaxpr
        self._total = Count()
        self._leaves: dict[Any, frozenset[Any]] = {}
        """Of a variable that is computed element by element: the arrays that it is made of."""

    def count(self) -> Count:
        for equation in self._jaxpr.eqns:
            self._equation(equation)
        for variable in self._jaxpr.outvars:
            self._store(variable)
        return self._total

    def _equation(self, equation: Any) -> None:
        name = equation.primitive.name
        inner = list(_inner(equation))
        if inner:
            self._store_all(equation.invars)
            for jaxpr, times in inner:
                self._total.add(_Counter(jaxpr).count(), times)
        elif name in _FREE:
            self._join(equation)
        elif name in ("dot_general", "conv_general_dilated"):
            self._store_all(equation.invars)
            self._total.flops += _product_flops(equation)
            self._total.bytes += _size([*equation.invars, *equation.outvars])
        elif name in _MOVES:
            self._store_all(equation.invars)
            moved = 2 * _size(equation.outvars)
            self._total.bytes += moved if name == "gather" else max(moved, _size(equation.invars))
        else:
            self._elementwise(equation, ends=name in _SUMS)

    def _elementwise(self, equation: Any, *, ends: bool) -> None:
        self._join(equation)
        largest = max(math.prod(_shape(v)) for v in (*equation.invars, *equation.outvars))
        self._total.flops += largest
        if ends:
            for variable in equation.outvars:
                self._store(variable)

    def _join(self, equation: Any) -> None:
        """Note of what arrays the results are made of."""
        leaves: set[Any] = set()
        for variable in equation.invars:
            if _is_variable(variable):
                leaves |= self._leaves.get(variable, {variable})
        for variable in equation.outvars:
            self._leaves[variable] = frozenset(leaves)

    def _store_all(self, variables: Iterable[Any]) -> None:
        for variable in variables:
            self._store(variable)

    def _store(self, variable: Any) -> None:
        """Write an array to memory, unless it is there: its kernel reads what it is made of."""
        if not _is_variable(variable) or variable not in self._leaves:
            return
        leaves = self._leaves.pop(variable)
        self._total.bytes += _size([variable, *leaves])


def _inner(equation: Any) -> Iterator[tuple[Any, float]]:
    """Yield the programs within an equation, and how often each runs."""
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        yield params["jaxpr"].jaxpr, params["length"]
    elif name == "while":
        yield params["body_jaxpr"].jaxpr, 1
    elif name == "cond":
        yield max((branch.jaxpr for branch in params["branches"]), key=lambda j: len(j.eqns)), 1
    elif name == "shard_map":
        mesh = params["mesh"]
        # "manual_axes" in some versions of jax, "newly_manual_axes" in others
        (axes,) = (found for key, found in params.items() if key.endswith("manual_axes"))
        clusters = math.prod(mesh.shape[axis] for axis in axes)
        yield getattr(params["jaxpr"], "jaxpr", params["jaxpr"]), clusters
    else:
        for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
            if key in params:
                yield getattr(params[key], "jaxpr", params[key]), 1
                return


def _product_flops(equation: Any) -> float:
    left, right = (_shape(variable) for variable in equation.invars[:2])
    result = math.prod(_shape(equation.outvars[0]))
    numbers = equation.params["dimension_numbers"]
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = numbers
        summed: float = math.prod(left[axis] for axis in contracted)
    else:
        # The zeros that a strided convolution's gradient puts between elements are no products.
        zeros = math.prod(equation.params["lhs_dilation"])
        summed = math.prod(right[axis] for axis in numbers.rhs_spec[1:]) / zeros
    return 2.0 * result * summed


def _is_variable(variable: Any) -> bool:
    return not hasattr(variable, "val")  # a literal


def _shape(variable: Any) -> tuple[int, ...]:
    return tuple(getattr(variable.aval, "shape", ()))


def _size(variables: Iterable[Any]) -> float:
    """Return the bytes of arrays; a key counts as what it is made of."""
    total = 0.0
    for variable in variables:
        item = getattr(getattr(variable.aval, "dtype", None), "itemsize", 4)
        total += math.prod(_shape(variable)) * item
    return total
