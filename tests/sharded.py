"""Runs with and without a split state, for tests on several devices."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.stages import Compiled

from gnpcli.data.registry import load_dataset
from gnpcli.devices.mesh import make_mesh
from gnpcli.engine.task import Task, build_task
from gnpcli.recipes.presets import resolve
from gnpcli.step.state import TrainState

PLAIN = [
    "model.name=tests.wide:wide",
    "data.batch_size=48",
    "optimizer.name=sgd",
    "optimizer.lr=0.05",
    "optimizer.weight_decay=0",
    "schedule.warmup_epochs=0",
    "gr.strategy=constant",
]
"""SGD: the first steps of an adaptive optimizer divide gradients that are zero up to rounding."""


def make_task(*assignments: str) -> Task:
    """Return the task of a configuration on the digits."""
    config = resolve(None, [*PLAIN, *assignments])
    data = load_dataset(config.data)
    return build_task(config, data.train, data.spec, make_mesh(config))


class Trained(NamedTuple):
    """Where a run of some steps ended."""

    task: Task
    start: TrainState
    """Where it began, as NumPy's arrays."""
    state: TrainState
    metrics: dict[str, float]
    programs: list[Compiled]
    """What it ran."""


def trained(steps: int, *assignments: str) -> Trained:
    """Run some steps of a configuration."""
    task = make_task(*assignments)
    state = task.init()
    start = on_host(state)
    programs: dict[str, Compiled] = {}
    for step in range(steps):
        kind, source = task.kind_at(step), task.parts.feed.source(step)
        if kind not in programs:
            programs[kind] = task.step_at(step).lower(state, source).compile()
        state, metrics = programs[kind](state, source)
    numbers = {name: float(value) for name, value in metrics.items()}
    return Trained(task, start, state, numbers, list(programs.values()))


def on_host(state: TrainState) -> TrainState:
    """Return the arrays of a state as NumPy's."""
    return jax.tree.map(np.asarray, state._replace(key=jax.random.key_data(state.key)))


def norm(tree: Any) -> float:
    """Return the L2 norm over all leaves."""
    squares = [np.square(np.asarray(leaf, np.float64)).sum() for leaf in jax.tree.leaves(tree)]
    return float(np.sqrt(sum(squares)))


def apart(one: Any, other: Any) -> float:
    """Return the distance of two trees, relative to the length of the first."""
    return norm(jax.tree.map(np.subtract, one, other)) / norm(one)


def collectives(text: str) -> Counter[str]:
    """Return how many there are of each collective operation in a compiled program."""
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    return Counter(re.findall(rf" ({kinds})(?:-start)?\(", text))
