"""Every random stream of a run: each is a function of the seed and of where it is drawn.

| stream | drawn from | drawn in |
|---|---|---|
| initial parameters | `RunKeys.init` | `models`, once |
| order of an epoch, images in memory | `epoch_key` | `data.feeds.memory`, on the devices |
| augmentation of a batch | `step_keys`, the first | `data.augment.pipeline`, in the step |
| dropout and the like | `step_keys`, the second | `models.layers`, in the step |
| the same in slice i of a batch | ``fold_in(key, i)`` | `gnp.slices`, in the step |
| which steps are penalised | `coins` | `step.schedules`, once |
| order of an epoch, streamed images | `file_order_generator` | `data.feeds.chunks`, on the host |
| crop, flip and policy of a streamed image | `image_generator` | `data.feeds.chunks`, on the host |
| images and start vectors of a measurement | `measurement_generator` | `measure`, on the host |
| directions of a measurement | `measurement_key` | `measure` |

Streams of JAX are Threefry keys; those of the host are NumPy generators. Importing this module does
not import JAX: the processes that decode images need none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import jax

_COIN = 0x636F696E
"""Second half of the key of the coins, so that the stream shares its numbers with no other."""

_ORDER, _ROW = 0, 1
"""What is drawn on the host from one seed: orders of epochs, and rows of batches."""


class RunKeys(NamedTuple):
    """The independent streams of a run on the devices."""

    init: jax.Array
    """Initial parameters."""
    steps: jax.Array
    """Augmentation and dropout. It becomes `TrainState.key`."""
    order: jax.Array
    """Order of the examples."""


def run_keys(seed: int) -> RunKeys:
    """Return the streams of a run on the devices; `seed` is ``train.seed``."""
    import jax

    return RunKeys(*jax.random.split(jax.random.key(seed), 3))


def step_keys(steps_key: jax.Array, step: jax.Array | int) -> jax.Array:
    """Return the keys of augmentation and of the model in a step, ``[2]``.

    Args:
        steps_key: `RunKeys.steps`.
        step: Number of the step, 0 for the first; traced or not.
    """
    import jax

    return jax.random.split(jax.random.fold_in(steps_key, step))


def augment_key(steps_key: jax.Array, step: jax.Array | int) -> jax.Array:
    """Return the key of a step's augmentation; arguments as of `step_keys`."""
    return step_keys(steps_key, step)[0]


def epoch_key(order_key: jax.Array, epoch: jax.Array | int) -> jax.Array:
    """Return the key that shuffles an epoch, 0 for the first, of images in memory.

    Args:
        order_key: `RunKeys.order`.
        epoch: Traced or not.
    """
    import jax

    return jax.random.fold_in(order_key, epoch)


def host_seed(order_key: jax.Array) -> tuple[int, ...]:
    """Return the numbers of `RunKeys.order`, which seed the streams of the host."""
    import jax

    return tuple(np.asarray(jax.random.key_data(order_key)).ravel().tolist())


def file_order_generator(seed: Sequence[int], epoch: int) -> np.random.Generator:
    """Return the stream that shuffles an epoch, 0 for the first, of streamed images.

    Args:
        seed: From `host_seed`.
        epoch: Number of the epoch.
    """
    return np.random.default_rng([*seed, _ORDER, epoch])


def image_generator(seed: Sequence[int], step: int, row: int) -> np.random.Generator:
    """Return the stream of crop, flip and policy of a streamed image.

    Args:
        seed: From `host_seed`.
        step: Number of the step in the run.
        row: Place of the image in the global batch.
    """
    return np.random.default_rng([*seed, _ROW, step, row])


def coins(seed: int, count: int) -> npt.NDArray[np.float64]:
    """Return a number in [0, 1) for each of the first `count` steps of a run.

    A longer run begins with the same ones: the stream is counter-based (Philox, SC 2011, doi
    10.1145/2063384.2063405), so number t depends on `seed` and t alone.
    """
    return np.random.Generator(np.random.Philox(key=[seed, _COIN])).random(count)


def measurement_generator(seed: int) -> np.random.Generator:
    """Return the stream of a measurement on the host: which images, which start vector."""
    return np.random.default_rng(seed)


def measurement_key(seed: int) -> jax.Array:
    """Return the stream of a measurement on the devices: random directions."""
    import jax

    return jax.random.key(seed)
