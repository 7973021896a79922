"""The loss of a trained model over a fixed subset of images, as a function of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh

from gnpcli.config import RunConfig
from gnpcli.data.base import DataSpec, FileSplit, Split
from gnpcli.data.feeds.make import make_eval_feed
from gnpcli.devices.mesh import on_mesh, replicated, split_batch
from gnpcli.errors import DataError
from gnpcli.models.base import Model, Params, State
from gnpcli.step.losses import MetricSums, metric_sums, zero_sums

Batch = tuple[jax.Array, jax.Array, jax.Array]
"""Normalised images float32 ``[B, H, W, C]``, labels int32 ``[B]`` and a mask bool ``[B]``, split
over the devices.
"""


class Sums:
    """Compiled sums over one batch of what a landscape is made of; parameters are arguments, so
    runs share them.

    Args:
        model: In float32.
        mesh: Where batches are split; everything else is replicated.
    """

    def __init__(self, model: Model, mesh: Mesh):
        @on_mesh(mesh)
        def sums(params: Params, state: State, batch: Batch) -> MetricSums:
            images, labels, mask = split_batch(mesh, batch)
            logits, _ = model.apply(params, state, images, False, None)
            return metric_sums(logits, labels, mask)

        def loss(params: Params, state: State, batch: Batch) -> jax.Array:
            return sums(params, state, batch).loss

        def add_sums(total: MetricSums, params: Params, state: State, batch: Batch) -> MetricSums:
            return MetricSums(*map(jnp.add, total, sums(params, state, batch)))

        def add_loss(
            total: jax.Array,
            params: Params,
            state: State,
            batch: Batch,
            moves: tuple[Params, Params],
            far: jax.Array,
        ) -> jax.Array:
            point = jax.tree.map(lambda w, a, b: w + far[0] * a + far[1] * b, params, *moves)
            return total + loss(point, state, batch)

        def add_gradient(total: Params, params: Params, state: State, batch: Batch) -> Params:
            added: Params = jax.tree.map(jnp.add, total, jax.grad(loss)(params, state, batch))
            return added

        def add_product(
            total: jax.Array, params: Params, state: State, batch: Batch, vector: jax.Array
        ) -> jax.Array:  # fmt: skip
            _, unravel = ravel_pytree(params)

            gradient = jax.grad(lambda point: loss(point, state, batch))
            return total + ravel_pytree(jax.jvp(gradient, (params,), (unravel(vector),))[1])[0]

        def compiled(function: Callable[..., Any]) -> Any:
            return jax.jit(function, donate_argnums=0, out_shardings=replicated(mesh))

        self.add_sums, self.add_loss = compiled(add_sums), compiled(add_loss)
        self.add_gradient, self.add_product = compiled(add_gradient), compiled(add_product)


class Landscape:
    """The mean cross-entropy over a subset: no label smoothing, no L2, the model in evaluation
    mode, all in float32.

    In evaluation mode there is no dropout, and BatchNorm normalises with the running averages of
    the trained model, also away from it. Every example counts once whatever the batch size and the
    number of devices; matrix products are made in full float32 on every device, and sums over
    batches are float32.

    Args:
        sums: Of the model.
        params: Where the landscape is looked at; float32, replicated.
        state: Of the model.
        subset: The images, all kept on the devices, normalised.
        spec: Of the data that the model was trained on.
        config: Of the run; its `data.batch_size` images are looked at together.
        mesh: As in `sums`.
        on_pass: Called after each pass over the subset with the number of its images.

    Raises:
        DataError: No image of the subset can be read.
    """

    def __init__(
        self,
        sums: Sums,
        params: Params,
        state: State,
        subset: Split | FileSplit,
        spec: DataSpec,
        config: RunConfig,
        mesh: Mesh,
        on_pass: Callable[[int], None] = lambda images: None,
    ):
        feed = make_eval_feed(subset, spec, config.data, mesh, dtype=jnp.float32)
        prepare = jax.jit(lambda source, index: split_batch(mesh, feed.batch(source, index)))
        self._batches = [
            prepare(source, np.int32(index)) for index, source in enumerate(feed.sources())
        ]
        self._sums, self._state, self._sharding = sums, state, replicated(mesh)
        self._on_pass = on_pass
        self.params = params
        self.skipped: Sequence[str] = feed.skipped
        self.num_parameters: int = sum(leaf.size for leaf in jax.tree.leaves(params))
        self.num_examples = len(subset) - len(feed.skipped)
        """Images of the subset that could be read."""
        if self.num_examples == 0:
            raise DataError(
                f"none of the {len(subset)} images could be read, the first is {feed.skipped[0]}"
            )

    def evaluate(self) -> dict[str, float]:
        """Return `loss` and `error_rate` at the parameters."""
        total = self._accumulate(self._sums.add_sums, zero_sums())
        return {
            "loss": float(total.loss) / self.num_examples,
            "error_rate": int(total.errors) / self.num_examples,
        }

    def loss_at(self, first: Params, second: Params, far: tuple[float, float]) -> float:
        """Return the loss at ``params + far[0] * first + far[1] * second``."""
        total = self._accumulate(
            self._sums.add_loss,
            jnp.zeros((), jnp.float32),
            (first, second),
            np.asarray(far, np.float32),
        )
        return float(total) / self.num_examples

    def gradient(self) -> Params:
        """Return the gradient of the loss at the parameters."""
        total = self._accumulate(self._sums.add_gradient, jax.tree.map(jnp.zeros_like, self.params))
        mean: Params = jax.tree.map(lambda leaf: leaf / self.num_examples, total)
        return mean

    def hessian_product(self, vector: np.ndarray) -> np.ndarray:
        """Return the Hessian of the loss times a vector, exactly (forward over reverse): float32
        ``[P]`` to ``[P]``.

        The vector's entries are the parameters in the order of `jax.flatten_util.ravel_pytree`.
        """
        total = self._accumulate(
            self._sums.add_product,
            jnp.zeros(vector.shape, jnp.float32),
            np.asarray(vector, np.float32),
        )
        return np.asarray(total) / np.float32(self.num_examples)

    def _accumulate(self, add: Any, total: Any, *arguments: Any) -> Any:
        total, arguments = jax.device_put((total, arguments), self._sharding)
        with jax.default_matmul_precision("highest"):
            for batch in self._batches:
                total = add(total, self.params, self._state, batch, *arguments)
        total = jax.block_until_ready(total)
        self._on_pass(self.num_examples)
        return total
