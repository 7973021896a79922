"""The memory that a step of a run needs, as an estimate from shapes alone. Nothing is compiled."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gnpcli.config.resolved import Resolved

if TYPE_CHECKING:
    from gnpcli.data.base import DataInfo
    from gnpcli.models.base import Model


@dataclass(frozen=True)
class StepMemory:
    """Bytes on one device in the largest step of a run.

    An estimate: the compiler joins operations, so that not all that is differentiated through is
    stored, and needs room of its own.
    """

    state: int
    """Parameters, the optimizer's state, and what else the run carries."""
    gradients: int
    """Trees like the parameters that live during a step: gradients, the perturbed point."""
    activations: int
    """What the backward pass needs of the forward pass."""
    images: int
    """The training images in memory that the device has, or a batch of streamed ones."""

    @property
    def total(self) -> int:
        """The sum."""
        return self.state + self.gradients + self.activations + self.images


def step_memory(config: Resolved, model: Model, data: DataInfo, devices: int) -> StepMemory:
    """Estimate the memory of a step on each of `devices`.

    Args:
        config: The run.
        model: From `gnpcli.recipes.plan.fit`.
        data: The sizes of its images.
        devices: How many share a batch.
    """
    import jax

    from gnpcli.data.room import train_on_each
    from gnpcli.models.base import initial_shapes, starting_from
    from gnpcli.step.optimizer import build_optimizer
    from gnpcli.step.state import init_state

    image_shape = (data.image_size, data.image_size, data.channels)
    optimizer = build_optimizer(config.optimizer, config.train)
    state = jax.eval_shape(
        lambda *initial: init_state(
            starting_from(model, *initial),
            image_shape,
            optimizer,
            config.train.seed,
            averages=config.train.ema_decay is not None,
            reuses=config.gr.between == "reuse",
        ),
        *initial_shapes(model, image_shape),
    )
    held = config.data.batch_size
    if not data.is_streamed:
        held = train_on_each(config.data, data.num_train, devices)
    clusters = math.gcd(config.gr.groups, devices)
    return StepMemory(
        state=_held(config, state, devices, devices),
        gradients=_trees(config, clusters)
        * _held(config, state.params, devices, devices // clusters),
        activations=_activations(config, model, state, image_shape, _at_once(config, devices)),
        images=held * math.prod(image_shape),
    )


def _trees(config: Resolved, clusters: int) -> int:
    """Return how many trees like the parameters a step holds at its largest.

    Clusters of devices that each hold all parameters of a split state gather them once.
    """
    gathered = 1 if config.mesh.shard == "fsdp" and clusters > 1 else 0
    if not config.gr.how.penalises:
        return 1 + gathered
    return 3 + gathered  # the clean gradient, the perturbed point and its gradient


def _held(config: Resolved, tree: Any, devices: int, sharing: int) -> int:
    """Return the bytes of a tree on a device.

    Args:
        config: Says whether it is split.
        tree: Parameters, or a state.
        devices: All of them, by which it is decided what can be split.
        sharing: Those that share one copy.
    """
    import jax

    from gnpcli.devices.sharding import split_axis

    leaves = jax.tree.leaves(tree)
    if config.mesh.shard == "none":
        return _bytes(leaves)
    split = [leaf for leaf in leaves if split_axis(leaf.shape, devices) is not None]
    return _bytes(leaves) - _bytes(split) + _bytes(split) // sharing


def _at_once(config: Resolved, devices: int) -> int:
    """Return the examples that a device differentiates through at once."""
    is_whole = config.gr.batch_norm == "synchronised"
    slices = 1 if is_whole else max(config.gr.groups, config.train.accumulate)
    return -(-config.data.batch_size // (slices * devices))


def _activations(
    config: Resolved, model: Model, state: Any, image_shape: tuple[int, int, int], examples: int
) -> int:
    """Return the bytes that reverse-mode differentiation of the loss keeps."""
    import jax
    import jax.numpy as jnp

    from gnpcli.step.objective import make_objective

    objective = make_objective(model, config.train, config.gr)

    def kept(params: Any, model_state: Any, images: Any, labels: Any) -> list[Any]:
        def loss(params: Any) -> Any:
            return objective(params, model_state, images, labels, jax.random.key(0))[0]

        _, backward = jax.vjp(loss, params)
        given = {id(leaf) for leaf in jax.tree.leaves((params, model_state, images, labels))}
        return [leaf for leaf in jax.tree.leaves(backward) if id(leaf) not in given]

    images = jax.ShapeDtypeStruct((examples, *image_shape), jnp.float32)
    labels = jax.ShapeDtypeStruct((examples,), jnp.int32)
    return _bytes(jax.eval_shape(kept, state.params, state.model_state, images, labels))


def _bytes(leaves: Iterable[Any]) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
