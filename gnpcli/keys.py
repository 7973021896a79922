"""Every random stream of a run, each a function of the seed and of where it is drawn."""

from __future__ import annotations

from typing import NamedTuple

import jax


class RunKeys(NamedTuple):
    """The independent random streams of a run, all from its seed."""

    init: jax.Array
    """Initial parameters."""
    steps: jax.Array
    """Augmentation and dropout; becomes `TrainState.key`."""
    order: jax.Array
    """Order of the examples; epoch e is shuffled with ``fold_in(order, e)``."""


def run_keys(seed: int) -> RunKeys:
    """Return the random streams of a run."""
    return RunKeys(*jax.random.split(jax.random.key(seed), 3))


def augment_key(steps_key: jax.Array, step: jax.Array | int) -> jax.Array:
    """Return the key of a step's augmentation; `steps_key` is `TrainState.key`."""
    return step_keys(steps_key, step)[0]


def step_keys(steps_key: jax.Array, step: jax.Array | int) -> jax.Array:
    """Return the keys of augmentation and of the model, of one step."""
    return jax.random.split(jax.random.fold_in(steps_key, step))
