"""An evaluation that counts the rows which it computes, and the programs that it is made of."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from gnpcli.config.resolved import Resolved
from gnpcli.data.base import DataSpec, FileSplit, Split
from gnpcli.data.feeds import base
from gnpcli.devices.mesh import make_mesh
from gnpcli.engine.evaluator import Evaluator
from gnpcli.models.base import Model
from gnpcli.recipes.presets import resolve

SIDE, CLASSES = 4, 7
SPEC = DataSpec(
    name="toy",
    class_names=tuple(map(str, range(CLASSES))),
    image_size=SIDE,
    channels=3,
    mean=(0.5,) * 3,
    std=(0.25,) * 3,
)


def configuration(most: int) -> Resolved:
    """Return one whose evaluation takes at most so many images at a time."""
    sizes = ["data.batch_size=256", f"data.eval_batch_size={most}", "data.workers=0"]
    return resolve(None, sizes)


def in_memory(count: int) -> Split:
    """Return random images."""
    draws = np.random.default_rng(count)
    images = draws.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
    return Split(images, draws.integers(0, CLASSES, count).astype(np.int32))


def in_files(split: Split, folder: Path) -> FileSplit:
    """Write images as files, to be streamed."""
    folder.mkdir(parents=True)
    paths = [str(folder / f"{index:04d}.png") for index in range(len(split))]
    for path, image in zip(paths, split.images, strict=True):
        Image.fromarray(image).save(path)
    return FileSplit(paths, split.labels)


def evaluate(split: Split | FileSplit, most: int) -> dict[str, Any]:
    """Evaluate a linear model, and return what is measured with `rows` and `programs`."""
    traced: list[int] = []
    steps = itertools.count()
    weights = np.random.default_rng(1).normal(size=(SIDE * SIDE * 3, CLASSES))

    def apply(params: Any, state: Any, images: jax.Array, train: bool, key: Any) -> Any:
        traced.append(len(images))
        return images.reshape(len(images), -1) @ params["weights"], state

    config = configuration(most)
    model = Model(init=None, apply=apply)  # type: ignore[arg-type]
    evaluator = Evaluator(split, SPEC, config, model, make_mesh(config))
    step = evaluator._step

    def counting(*arguments: Any) -> Any:
        next(steps)
        return step(*arguments)

    evaluator._step = counting  # type: ignore[assignment]
    measured = evaluator({"weights": jnp.asarray(weights, jnp.float32)}, {})
    return {**measured, "rows": traced[0] * next(steps), "programs": len(traced)}


def evaluate_padded(split: Split | FileSplit, most: int) -> dict[str, Any]:
    """Evaluate with every batch filled up to the largest size."""
    usual = base.eval_batches
    places = [module for module in _feeds() if hasattr(module, "eval_batches")]
    for module in places:
        module.eval_batches = lambda count, *_: base.EvalBatches(-(-count // most), most)
    try:
        return evaluate(split, most)
    finally:
        for module in places:
            module.eval_batches = usual


def _feeds() -> list[Any]:
    from gnpcli.data.feeds import memory, streamed

    return [memory, streamed]
