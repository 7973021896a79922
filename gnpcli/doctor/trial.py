"""GNP steps on a device, against the same steps on the CPU in float32.

They are the first `STEPS` of a run: a ViT-nano on 32 of the bundled digits, seed 0, SGD, r = 0.05
and alpha = 0.8. What is compared is the two losses of the last, and the sum of the updates. (The
head starts at 0, so that the first step moves nothing else.)

In float32 products are computed in full precision, which an accelerator does not do by default: so
a wrong number shows. In bfloat16 they are what a run computes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from gnpcli.config.resolved import Resolved
from gnpcli.data.registry import load_dataset
from gnpcli.devices.mesh import DATA, GROUP
from gnpcli.engine.task import Task, build_task
from gnpcli.recipes.presets import resolve

ASSIGNMENTS = (
    "optimizer={name: sgd, lr: 0.1, momentum: 0, weight_decay: 0}",
    "schedule={name: constant, warmup_epochs: 0}",
    "gr={strategy: constant, r: 0.05, alpha: 0.8, groups: 1}",
    "data.augment=none",
    "train.clip_norm=null",
)
STEPS = 4
"""That are compared."""
TIMED_STEPS = 5


@dataclass(frozen=True)
class Outcome:
    """What the steps gave."""

    losses: np.ndarray
    """Of the clean and of the perturbed pass of the last step, ``[2]``."""
    update: np.ndarray
    """What they added to the parameters, one after another, ``[P]``."""
    compile_s: float
    step_s: float
    """The median of `TIMED_STEPS` more."""

    @property
    def is_finite(self) -> bool:
        """Whether all of it is."""
        return bool(np.isfinite(self.losses).all() and np.isfinite(self.update).all())


def run_steps(device: jax.Device, dtype: str) -> Outcome:
    """Take the steps on a device.

    Args:
        device: A device of this process.
        dtype: ``float32`` or ``bfloat16``: `train.dtype`.
    """
    with jax.default_device(device), _precision(dtype):
        task = _task(device, dtype)
        state = task.init()
        source = task.parts.feed.source(0)
        before = _flat(state.params)
        start = time.perf_counter()
        step = task.steps["gnp"].lower(state, source).compile()
        compile_s = time.perf_counter() - start
        for _ in range(STEPS):
            state, metrics = step(state, source)
        update = _flat(state.params) - before
        losses = np.array([float(metrics["loss"]), float(metrics["perturbed_loss"])])
        times = []
        for _ in range(TIMED_STEPS):
            start = time.perf_counter()
            state, _ = jax.block_until_ready(step(state, source))
            times.append(time.perf_counter() - start)
    return Outcome(losses, update, compile_s, float(np.median(times)))


def difference(found: Outcome, reference: Outcome) -> float:
    """Return how far an outcome is off: the largest of three relative errors.

    Those of the two losses, and ``||d - d_ref|| / ||d_ref||`` of the updates d.
    """
    losses = np.abs(found.losses - reference.losses) / np.abs(reference.losses)
    scale = np.linalg.norm(reference.update)
    update = np.linalg.norm(found.update - reference.update) / scale
    return float(max(*losses, update))


def _task(device: jax.Device, dtype: str) -> Task:
    config: Resolved = resolve(None, [*ASSIGNMENTS, f"train.dtype={dtype}"])
    dataset = load_dataset(config.data)
    axes = (AxisType.Auto, AxisType.Auto)
    mesh = Mesh(np.asarray([device]).reshape(1, 1), (GROUP, DATA), axis_types=axes)
    return build_task(config, dataset.train, dataset.spec, mesh)


@contextlib.contextmanager
def _precision(dtype: str) -> Iterator[None]:
    if dtype == "float32":
        with jax.default_matmul_precision("highest"):
            yield
    else:
        yield


def _flat(tree: Any) -> np.ndarray:
    leaves = jax.tree.leaves(jax.device_get(tree))
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves])
