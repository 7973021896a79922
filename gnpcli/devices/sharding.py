"""Where the state lies on a mesh: whole on every device, or split over all of them.

Under ``mesh.shard: fsdp`` each large array of the state is split over both axes of the mesh
(`Layout.split`). A network gathers a parameter where it uses it, and the parameter's gradient is
scattered again (`at_use`). What is computed element by element, such as the update and the
perturbed point, is computed in parts. A sum over all elements is one over all devices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from gnpcli.config.schema import Shard
from gnpcli.devices.mesh import DATA, GROUP

SMALL = 1 << 15
"""Elements below which an array stays whole.

These are biases, norms and small kernels: most arrays of a network, and few of its elements.
Gathering each of them would cost more than it saves. Sums over small arrays join them first
(`gnpcli.gnp.trees.dot`), which would move split ones between devices.
"""


class Shaped(Protocol):
    """An array, or its shape in the place of it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        ...


def split_axis(shape: Sequence[int], devices: int) -> int | None:
    """Return the axis along which an array is split over `devices`; None where it stays whole.

    It is the largest axis that the number of devices divides, the first of equals.
    """
    if devices == 1 or math.prod(shape) < SMALL:
        return None
    fitting = [axis for axis, size in enumerate(shape) if size % devices == 0]
    return max(fitting, key=lambda axis: shape[axis], default=None)


@dataclass(frozen=True)
class Layout:
    """Where the arrays of a state lie.

    Its methods give shardings for a program on the whole mesh. Within a program that runs on every
    cluster (`gnpcli.devices.mesh.over_groups`) they are those within the cluster.
    """

    mesh: Mesh
    shard: Shard = "none"

    @property
    def is_split(self) -> bool:
        """Whether there is anything to split."""
        return self.shard == "fsdp" and self.mesh.size > 1

    def whole(self, leaf: Shaped) -> NamedSharding:
        """Return the sharding of an array that every device holds whole."""
        return NamedSharding(_mesh_here(self.mesh), PartitionSpec())

    def split(self, leaf: Shaped) -> NamedSharding:
        """Return the sharding of parameters, and of all that is like them.

        The parts that a device of every cluster holds lie side by side. To gather them over the
        clusters gives what `split_in_clusters` says.
        """
        return self._over(leaf, (DATA, GROUP))

    def split_in_clusters(self, leaf: Shaped) -> NamedSharding:
        """Return the sharding of an array that every cluster holds, split over its devices."""
        return self._over(leaf, (DATA,))

    def _over(self, leaf: Shaped, names: Sequence[str]) -> NamedSharding:
        mesh = _mesh_here(self.mesh)
        axis = split_axis(leaf.shape, self.mesh.size) if self.is_split else None
        over = tuple(name for name in names if _divides(mesh, name))
        if axis is None or not over:
            return NamedSharding(mesh, PartitionSpec())
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, over))


Where = Callable[[Shaped], NamedSharding]
"""A method of `Layout`: the sharding of an array."""


def shardings(tree: Any, where: Where) -> Any:
    """Return the sharding of every array of `tree`, or of every shape."""
    return jax.tree.map(where, tree)


def abstract(shapes: Any, where: Any) -> Any:
    """Return `shapes` with the shardings `where`, a tree like it. Nothing is allocated."""

    def with_sharding(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(with_sharding, shapes, where)


def constrained(tree: Any, where: Where) -> Any:
    """Return `tree`, inside jit, with its arrays where they are to lie."""
    return jax.lax.with_sharding_constraint(tree, shardings(tree, where))


def _mesh_here(mesh: Mesh) -> Mesh | AbstractMesh:
    """Return `mesh`, or what a program on every cluster sees of it."""
    here = jax.sharding.get_abstract_mesh()
    return mesh if here.empty else here


def _divides(mesh: Mesh | AbstractMesh, name: str) -> bool:
    """Return whether arrays may be split over an axis of the mesh, and are smaller for it."""
    kind = mesh.axis_types[mesh.axis_names.index(name)]
    return kind != AxisType.Manual and mesh.shape[name] > 1


_layout: ContextVar[Layout | None] = ContextVar("layout", default=None)


@contextmanager
def gathering(layout: Layout) -> Iterator[None]:
    """Make `at_use` gather what is split, in what is traced inside."""
    token = _layout.set(layout if layout.is_split else None)
    try:
        yield
    finally:
        _layout.reset(token)


def is_gathering() -> bool:
    """Return whether the parameters of what is traced now are split."""
    return _layout.get() is not None


def at_use(param: jax.Array) -> jax.Array:
    """Return a parameter whole, under `gathering`. Its gradient is split as the parameter is.

    A plain forward-mode derivative (`jax.jvp`) does not exist through it. Forward over reverse
    does.
    """
    layout = _layout.get()
    whole: jax.Array = param if layout is None else _gathered(layout, param)
    return whole


# By hand, because the derivative of a constraint is the same constraint. Either way the split form
# is said too: the compiler would else keep the whole one for longer than it is used, or compute
# with parts of it.
@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gathered(layout: Layout, param: jax.Array) -> jax.Array:
    return _made_whole(layout, param)


def _made_whole(layout: Layout, param: jax.Array) -> jax.Array:
    whole: jax.Array = constrained(constrained(param, layout.split), layout.whole)
    return whole


def _gathered_forward(layout: Layout, param: jax.Array) -> tuple[jax.Array, None]:
    return _made_whole(layout, param), None


def _gathered_backward(layout: Layout, _: None, grad: jax.Array) -> tuple[jax.Array]:
    return (constrained(constrained(grad, layout.whole), layout.split),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


def keeps_all_but_gathered(params: Any) -> Callable[..., bool]:
    """Return a policy of `jax.checkpoint`: the backward pass gathers again what it needs.

    All else that it needs is kept, as without `jax.checkpoint`.

    Args:
        params: What `at_use` gathers within the function. What is made of it alone is not kept
            either, such as a copy in the compute type.
    """
    shapes = {leaf.shape for leaf in jax.tree.leaves(params) if math.prod(leaf.shape) >= SMALL}

    def keeps(primitive: Any, *arguments: Any, **_: Any) -> bool:
        return not arguments or any(argument.shape not in shapes for argument in arguments)

    return keeps
