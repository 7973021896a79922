"""A configuration traced through both of its train steps, on images that are not there."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from gnpcli.config.resolved import Resolved
from gnpcli.data.base import DataSpec, FileSplit, Split
from gnpcli.data.registry import describe_data
from gnpcli.devices.mesh import make_mesh
from gnpcli.engine.task import Task, build_task


def abstract_task(config: Resolved) -> tuple[Task, Any, Any]:
    """Return the task of a configuration on images that are not there, its state and its source.

    Of the arrays of the state there are shapes and types alone.
    """
    info = describe_data(config.data)
    assert info is not None, "the data set must be known without its files"
    count, shape = 2 * config.data.batch_size, (info.image_size, info.image_size, info.channels)
    labels = np.zeros(count, np.int32)
    split = (
        FileSplit([f"{index}.jpg" for index in range(count)], labels)
        if info.is_streamed
        else Split(np.zeros((count, *shape), np.uint8), labels)
    )
    spec = DataSpec(
        name=config.data.name,
        class_names=tuple(map(str, range(info.num_classes))),
        image_size=info.image_size,
        channels=info.channels,
        mean=(0.5,) * info.channels,
        std=(0.5,) * info.channels,
    )
    task = build_task(config, split, spec, make_mesh(config))
    with jax.numpy_dtype_promotion("standard"):  # optax mixes types
        state = jax.eval_shape(task.init)
    if not info.is_streamed:
        return task, state, task.parts.feed.source(0)
    size = config.data.batch_size
    images = jax.ShapeDtypeStruct((size, *shape), np.uint8)
    source = {"images": images, "labels": jax.ShapeDtypeStruct((size,), np.int32)}
    return task, state, source


def trace(config: Resolved) -> None:
    """Assert of plain and GNP step what `check_step` does."""
    task, state, source = abstract_task(config)
    with jax.numpy_dtype_promotion("standard"):
        for step in (task.steps["plain"], task.steps["gnp"]):
            check_step(state, *jax.eval_shape(step, state, source))


def kinds(tree: Any) -> Any:
    """Return shape and type of each leaf."""
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def check_step(state: Any, new_state: Any, metrics: Any) -> None:
    """Assert that a step keeps the shapes and types of the state and returns scalars: float32, and
    counts. The parameters are float32.
    """
    assert kinds(new_state) == kinds(state)
    assert all(value.shape == () for value in metrics.values())
    types = {name: value.dtype for name, value in metrics.items() if "skip" not in name}
    assert set(types.values()) == {np.dtype(np.float32)}, types
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(state.params))
