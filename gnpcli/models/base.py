"""What the engine sees of a model: two functions on plain nested dicts.

The library that a model is written in does not show.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from flax.core import meta

from gnpcli.devices import cpu
from gnpcli.devices.sharding import Layout, at_use, gathering, is_gathering
from gnpcli.errors import ConfigError

Params = dict[str, Any]
"""Trained arrays, nested dicts, float32 whatever the compute type."""
State = dict[str, Any]
"""Arrays that change without a gradient.

``{"batch_stats": {...}}`` in float32, or ``{}`` without BatchNorm.
"""
HEAD = "head"
"""Name of the classifier, at the root of the parameters.

It is a dense layer, and the only one that knows the classes.
"""
ImageShape = tuple[int, int, int]
"""Shape of one image, ``(H, W, C)``; a tuple, so that it can be a static argument of `jax.jit`."""


class InitFn(Protocol):
    """Draws the initial parameters and state."""

    def __call__(self, key: jax.Array, image_shape: ImageShape) -> tuple[Params, State]: ...


class ApplyFn(Protocol):
    """Runs the network on a batch."""

    def __call__(
        self, params: Params, state: State, images: jax.Array, train: bool, key: jax.Array | None
    ) -> tuple[jax.Array, State]: ...


@dataclass(frozen=True)
class Model:
    """A network as a pair of pure functions.

    `jax.jit`, `jax.grad` and `jax.eval_shape` can trace both.

    Attributes:
        init: ``init(key, image_shape) -> (params, state)``. `image_shape` is ``(H, W, C)`` of one
            image, static. Parameters and state do not depend on a batch size. Run it under
            `jax.jit`: only the draws remain of it.
        apply: ``apply(params, state, images, train, key) -> (logits, state)``. `images` are float32
            ``[B, H, W, C]``, already normalised. Logits are float32 ``[B, classes]``. `train` is a
            Python bool. In train mode dropout draws from `key`, which may be None for a model whose
            rates are all 0. BatchNorm normalises with the statistics of the batch and returns the
            updated running averages. In eval mode nothing is random, `key` is ignored and may be
            None, and the state comes back as it went in.
        clean_apply: What the clean pass of a GR step runs in train mode, where that is not `apply`.
            It has the same values and another gradient. None takes `apply`.
        gathers: Whether both gather split parameters themselves, each where it is used
            (`gnpcli.devices.sharding.at_use`).
    """

    init: InitFn
    apply: ApplyFn
    clean_apply: ApplyFn | None = None
    gathers: bool = False


def starting_from(model: Model, params: Params, state: State) -> Model:
    """Return `model` with an `init` that returns `params` and `state`, traced or not.

    That `init` draws nothing.
    """
    return replace(model, init=lambda key, image_shape: (params, state))


def split_over(model: Model, layout: Layout) -> Model:
    """Return `model` for parameters that lie as in `layout`."""

    def wrapped(apply: ApplyFn) -> ApplyFn:
        def split(
            params: Params, state: State, images: jax.Array, train: bool, key: jax.Array | None
        ) -> tuple[jax.Array, State]:
            with gathering(layout):
                whole = params if model.gathers else jax.tree.map(at_use, params)
                return apply(whole, state, images, train, key)

        return split

    if not layout.is_split:
        return model
    clean = None if model.clean_apply is None else wrapped(model.clean_apply)
    return replace(model, apply=wrapped(model.apply), clean_apply=clean)


def from_linen(module: nn.Module, clean: nn.Module | None = None) -> Model:
    """Adapt a Flax Linen module whose call is ``module(images, train=bool) -> logits`` to `Model`.

    Its ``params`` collection becomes the parameters, and all others the state. Its ``dropout``
    stream is seeded with the key of `Model.apply`.

    Args:
        module: The network.
        clean: The network of the clean pass where that is another, see `Model.clean_apply`.
    """

    def init(key: jax.Array, image_shape: ImageShape) -> tuple[Params, State]:
        images = jnp.zeros((1, *image_shape), jnp.float32)
        # Eval mode: initialisation needs no dropout stream and must not move the running averages.
        variables = dict(module.init({"params": key}, images, train=False))
        return variables.pop("params"), variables

    return Model(init, _applying(module), None if clean is None else _applying(clean), gathers=True)


class _AtUse(struct.PyTreeNode, meta.AxisMetadata[jax.Array]):
    """A parameter that a module gathers when it asks for it: Flax opens such boxes."""

    value: jax.Array

    def unbox(self) -> jax.Array:
        return at_use(self.value)

    def replace_boxed(self, val: Any) -> Any:
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> _AtUse:
        return self

    def remove_axis(self, index: int, params: dict[Any, Any]) -> _AtUse:
        return self


def _boxed(params: Params) -> Params:
    boxed: Params = jax.tree.map(_AtUse, params)
    return boxed


def _applying(module: nn.Module) -> ApplyFn:
    def apply(
        params: Params, state: State, images: jax.Array, train: bool, key: jax.Array | None
    ) -> tuple[jax.Array, State]:
        variables = {"params": _boxed(params) if is_gathering() else params, **state}
        # NumPy images with NumPy parameters would be computed by NumPy, in its types.
        images = jnp.asarray(images)
        if not train:
            return module.apply(variables, images, train=False), state
        rngs = {} if key is None else {"dropout": key}
        logits, moved = module.apply(variables, images, train=True, rngs=rngs, mutable=list(state))
        return logits, dict(moved)

    return apply


def check_model(model: object, image_shape: ImageShape, classes: int) -> Model:
    """Return `model` if it is one of these classes. Only shapes are computed.

    Raises:
        ConfigError: It is no `Model`, or its functions do not return what `Model` says.
    """
    if not isinstance(model, Model):
        raise _broken(f"build returns {_called(model)}, not a gnpcli.models.base.Model")
    initial = jax.eval_shape(lambda: model.init(jax.random.key(0), image_shape))
    if not _is_pair(initial):
        raise _broken(f"init returns {_called(initial)}, not (params, state)")
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)

    def evaluate(params: Params, state: State, images: jax.Array) -> tuple[jax.Array, State]:
        return model.apply(params, state, images, False, None)

    result = jax.eval_shape(evaluate, *initial, images)
    if not _is_pair(result):
        raise _broken(f"apply returns {_called(result)}, not (logits, state)")
    shape = getattr(result[0], "shape", None)
    if shape != (2, classes):
        got = _called(result[0]) if shape is None else f"logits of shape {shape}"
        raise _broken(f"for 2 images of {classes} classes it returns {got}, not (2, {classes})")
    return model


def _is_pair(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2


def _called(value: object) -> str:
    return f"a {type(value).__name__}"


def _broken(problem: str) -> ConfigError:
    return ConfigError(f"the code of the model is wrong: {problem}", "model.name")


def parameter_shapes(model: Model, image_shape: ImageShape) -> Params:
    """Return the shapes and dtypes of the parameters for images of shape ``(H, W, C)``.

    Nothing is computed.
    """
    return initial_shapes(model, image_shape)[0]


_shapes: WeakKeyDictionary[Model, dict[ImageShape, tuple[Params, State]]] = WeakKeyDictionary()


def initial_shapes(model: Model, image_shape: ImageShape) -> tuple[Params, State]:
    """Return the shapes and dtypes of parameters and state for images of shape ``(H, W, C)``.

    Nothing is computed. A model is traced once: a deep one takes seconds.
    """
    known = _shapes.setdefault(model, {})
    if image_shape not in known:
        with cpu.tuning(False):  # shapes do not depend on it, and there is less to trace
            known[image_shape] = jax.eval_shape(lambda: model.init(jax.random.key(0), image_shape))
    return known[image_shape]


def count_parameters(model: Model, image_shape: ImageShape) -> int:
    """Return the number of trained scalars for images of shape ``(H, W, C)``.

    Only shapes are computed.
    """
    return sum(
        math.prod(leaf.shape) for leaf in jax.tree.leaves(parameter_shapes(model, image_shape))
    )
