"""The loss of a trained model over a fixed subset of images, as a function of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Float32, Int

from gnpcli.config.resolved import Resolved
from gnpcli.data.base import DataSpec, FileSplit, Split
from gnpcli.data.feeds.make import make_eval_feed
from gnpcli.devices.mesh import place_tree, replicated, split_batch
from gnpcli.errors import DataError
from gnpcli.models.base import Model, Params, State
from gnpcli.step.losses import MetricSums, metric_sums, zero_sums

Batch = tuple[Float[Array, "B H W C"], Int[Array, " B"], Bool[Array, " B"]]
"""Normalised images, labels, and which of them count, split over the devices."""

Total = TypeVar("Total")


class Sums:
    """Compiled sums over one batch of what a landscape is made of.

    Each takes a running total first and returns it with the batch added. Parameters are arguments,
    so that runs of one model share the programs.

    Args:
        model: In float32.
        mesh: Where batches are split; everything else is replicated.
    """

    def __init__(self, model: Model, mesh: Mesh):
        self._model, self._mesh = model, mesh
        self.add_sums = self._compiled(self._add_sums)
        self.add_loss = self._compiled(self._add_loss)
        self.add_gradient = self._compiled(self._add_gradient)
        self.add_product = self._compiled(self._add_product)

    def _compiled(self, add: Callable[..., Total]) -> Callable[..., Total]:
        """Compile a sum; the total is donated."""
        program: Callable[..., Total] = jax.jit(
            add, donate_argnums=0, out_shardings=replicated(self._mesh)
        )
        return program

    def _sums(self, params: Params, state: State, batch: Batch) -> MetricSums:
        images, labels, mask = split_batch(self._mesh, batch)
        logits, _ = self._model.apply(params, state, images, False, None)
        return metric_sums(logits, labels, mask)

    def _loss(self, params: Params, state: State, batch: Batch) -> Float[Array, ""]:
        return self._sums(params, state, batch).loss

    def _add_sums(
        self, total: MetricSums, params: Params, state: State, batch: Batch
    ) -> MetricSums:
        return MetricSums(*map(jnp.add, total, self._sums(params, state, batch)))

    def _add_loss(
        self,
        total: Float[Array, ""],
        params: Params,
        state: State,
        batch: Batch,
        directions: tuple[Params, Params],
        far: Float[Array, 2],
    ) -> Float[Array, ""]:
        """Add the loss at ``params + far[0] * directions[0] + far[1] * directions[1]``."""
        point = jax.tree.map(lambda w, a, b: w + far[0] * a + far[1] * b, params, *directions)
        return total + self._loss(point, state, batch)

    def _add_gradient(self, total: Params, params: Params, state: State, batch: Batch) -> Params:
        gradient = jax.grad(self._loss)(params, state, batch)
        added: Params = jax.tree.map(jnp.add, total, gradient)
        return added

    def _add_product(
        self,
        total: Float[Array, " P"],
        params: Params,
        state: State,
        batch: Batch,
        vector: Float[Array, " P"],
    ) -> Float[Array, " P"]:
        """Add the Hessian times a vector, forward over reverse."""
        _, unravel = ravel_pytree(params)
        gradient = jax.grad(lambda point: self._loss(point, state, batch))
        product = jax.jvp(gradient, (params,), (unravel(vector),))[1]
        return total + ravel_pytree(product)[0]


class Landscape:
    """The mean cross-entropy over a subset, in float32, the model in evaluation mode.

    There is no label smoothing and no L2. In evaluation mode there is no dropout, and BatchNorm
    normalises with the running averages of the trained model, also away from it. Every example
    counts once whatever the batch size and the number of devices. Matrix products are made in full
    float32 on every device, and sums over batches are float32.

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
        config: Resolved,
        mesh: Mesh,
        on_pass: Callable[[int], None] = lambda images: None,
    ):
        feed = make_eval_feed(subset, spec, config.data, mesh, dtype=jnp.float32)
        prepare = jax.jit(lambda source, index: split_batch(mesh, feed.batch(source, index)))
        self._batches: list[Batch] = [
            prepare(source, np.int32(index)) for index, source in enumerate(feed.sources())
        ]
        self._sums, self._state, self._mesh = sums, state, mesh
        self._on_pass = on_pass
        self.params = params
        skipped = feed.skipped
        self.skipped: Sequence[str] = skipped
        self.num_parameters: int = sum(leaf.size for leaf in jax.tree.leaves(params))
        self.num_examples = len(subset) - len(skipped)
        """Images of the subset that could be read."""
        if self.num_examples == 0:
            raise DataError(
                f"none of the {len(subset)} images could be read, the first is {skipped[0]}"
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
        zero = jnp.zeros((), jnp.float32)
        place = np.asarray(far, np.float32)
        total = self._accumulate(self._sums.add_loss, zero, (first, second), place)
        return float(total) / self.num_examples

    def gradient(self) -> Params:
        """Return the gradient of the loss at the parameters."""
        zeros = jax.tree.map(jnp.zeros_like, self.params)
        total = self._accumulate(self._sums.add_gradient, zeros)
        mean: Params = jax.tree.map(lambda leaf: leaf / self.num_examples, total)
        return mean

    def hessian_product(self, vector: Float32[np.ndarray, " P"]) -> Float32[np.ndarray, " P"]:
        """Return the Hessian of the loss times a vector, exactly (forward over reverse).

        The vector's entries are the parameters in the order of `jax.flatten_util.ravel_pytree`.
        """
        zeros = jnp.zeros(vector.shape, jnp.float32)
        total = self._accumulate(self._sums.add_product, zeros, np.asarray(vector, np.float32))
        return np.asarray(total) / np.float32(self.num_examples)

    def _accumulate(self, add: Callable[..., Total], zero: Total, *arguments: object) -> Total:
        """Return the sum over all batches, starting from `zero`."""
        total: Total
        total, arguments = place_tree((zero, arguments), self._mesh)
        with jax.default_matmul_precision("highest"):
            for batch in self._batches:
                total = add(total, self.params, self._state, batch, *arguments)
        jax.block_until_ready(total)
        self._on_pass(self.num_examples)
        return total
