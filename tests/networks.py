"""Members of the model families, for tests: of any sizes, and tiny ones of every family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from gnpcli.models.base import Model
from gnpcli.models.family import Images, Tiny
from gnpcli.models.registry import MODELS, find_model, model_options

ONE_OF_EACH = {entry.family: name for name, entry in MODELS.items()}
"""The last model of each family, by family: the one with the most options."""


def build(
    name: str,
    sizes: Mapping[str, int] | None = None,
    *,
    image_size: int = 32,
    channels: int = 3,
    num_classes: int = 10,
    dtype: str = "float32",
    **options: Any,
) -> Model:
    """Build a registered model; with `sizes` another member of its family."""
    entry = find_model(name)
    own = entry.sizes if sizes is None else sizes
    images = Images(image_size, channels, num_classes)
    return entry.load().build(own, model_options(name, **options), images, dtype)


def tiny(family: str) -> Tiny:
    """Return the sizes of the smallest member of a family."""
    smallest = find_model(ONE_OF_EACH[family]).load().tiny
    assert smallest is not None
    return smallest


def build_tiny(family: str, **options: Any) -> Model:
    """Build the smallest member of a family, for RGB images and 3 classes."""
    own = tiny(family)
    given = {**own.options, **options}
    return build(ONE_OF_EACH[family], own.sizes, image_size=own.image_size, num_classes=3, **given)


def arrays_of(network: Any) -> dict[str, np.ndarray]:
    """Return the state dict of a PyTorch network as arrays."""
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def imported_logits(model: Model, name: str, tensors: Mapping[str, Any], images: Any) -> jax.Array:
    """Return the logits of `model` with weights from a state dict of its family, which have its
    shapes.

    Args:
        model: See `build`.
        name: A registered name of the family.
        tensors: The state dict.
        images: ``[B, H, W, C]``.
    """
    params, state = find_model(name).load().from_torch(tensors)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images.shape[1:]))
    assert jax.tree.map(np.shape, (params, state)) == jax.tree.map(np.shape, shapes)
    apply = jax.jit(model.apply, static_argnames="train")
    return apply(params, state, images, train=False, key=None)[0]
