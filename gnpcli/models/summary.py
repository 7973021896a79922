"""What a model consists of and costs, from shapes alone: nothing is computed or compiled."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from gnpcli.devices import cpu
from gnpcli.models.base import ImageShape, Model, Params, State


@dataclass(frozen=True)
class Layer:
    """Arrays that stand together in the parameters or the state.

    Attributes:
        name: Path from the root, joined by ``/``; of an array at the root its own.
        shapes: Of its arrays by name.
        parameters: Trained scalars in it.
        statistics: Other scalars in it, such as BatchNorm's running averages.
    """

    name: str
    shapes: dict[str, tuple[int, ...]]
    parameters: int
    statistics: int


@dataclass(frozen=True)
class Summary:
    """A model for one shape of images.

    Attributes:
        layers: In the order of the network.
        parameters: Trained scalars.
        statistics: Scalars of the state.
        gflop: As `gnpcli.models.registry.Entry.gflop`, for images of this shape; None where the
            backend does not count.
    """

    layers: tuple[Layer, ...]
    parameters: int
    statistics: int
    gflop: float | None


def summarize(model: Model, image_shape: ImageShape) -> Summary:
    """Trace a model for images of shape ``(H, W, C)``."""
    trees: list[Any] = []

    def init() -> tuple[Params, State]:
        # As they are: `eval_shape` sorts what it returns.
        trees[:] = model.init(jax.random.key(0), image_shape)
        return trees[0], trees[1]

    params, state = jax.eval_shape(init)
    layers: dict[str, Layer] = {}
    for is_statistic, tree in ((0, trees[0]), *((1, tree) for tree in trees[1].values())):
        for (*parents, name), leaf in _leaves(tree):
            path = "/".join(parents) or name  # what stands alone at the root is a layer of its own
            layer = layers.setdefault(path, Layer(path, {}, 0, 0))
            counts = [layer.parameters, layer.statistics]
            counts[is_statistic] += math.prod(leaf.shape)
            layers[layer.name] = Layer(
                layer.name, {**layer.shapes, name: tuple(leaf.shape)}, *counts
            )
    return Summary(
        tuple(layers.values()),
        sum(layer.parameters for layer in layers.values()),
        sum(layer.statistics for layer in layers.values()),
        _gflop(model, params, state, image_shape),
    )


def group(layers: Iterable[Layer], depth: int) -> tuple[Layer, ...]:
    """Put together the layers whose names begin with the same `depth` parts.

    Their arrays are no longer told apart.
    """
    grouped: dict[str, Layer] = {}
    for layer in layers:
        name = "/".join(layer.name.split("/")[:depth])
        shapes = layer.shapes if layer.name == name else {}
        parameters, statistics = layer.parameters, layer.statistics
        if old := grouped.get(name):
            shapes = {}
            parameters += old.parameters
            statistics += old.statistics
        grouped[name] = Layer(name, shapes, parameters, statistics)
    return tuple(grouped.values())


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not isinstance(tree, Mapping):
        yield path, tree
        return
    for name, inner in tree.items():
        yield from _leaves(inner, (*path, name))


def _gflop(model: Model, params: Any, state: Any, image_shape: ImageShape) -> float | None:
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    forward = jax.jit(
        lambda params, state, image: model.apply(params, state, image, False, None)[0]
    )
    with cpu.tuning(False):
        flops = (forward.lower(params, state, image).cost_analysis() or {}).get("flops")
    return None if flops is None else float(flops) / 1e9
