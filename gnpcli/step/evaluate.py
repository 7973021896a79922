"""The evaluation step, and the step that takes BatchNorm statistics anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gnpcli.data.feeds.base import EvalFeed, FeedData, TrainFeed
from gnpcli.devices.mesh import on_mesh, replicated, split_batch
from gnpcli.models.base import Model
from gnpcli.step.averaging import batch_statistics
from gnpcli.step.batch import step_batch
from gnpcli.step.losses import MetricSums, metric_sums

EvalStep = Callable[[MetricSums, Any, Any, Any, jax.Array], MetricSums]
"""``(sums, params, model_state, source, index) -> sums`` with batch `index` of the source added."""


def make_eval_step(model: Model, feed: EvalFeed, mesh: Mesh) -> Any:
    """Build the jitted `EvalStep`: the model in evaluation mode, the padding masked out, neither
    smoothing nor L2.
    """

    @on_mesh(mesh)
    def step(
        sums: MetricSums, params: Any, model_state: Any, source: FeedData, index: jax.Array
    ) -> MetricSums:
        images, labels, mask = split_batch(mesh, feed.batch(source, index))
        logits, _ = model.apply(params, model_state, images, False, None)
        return MetricSums(*map(jnp.add, sums, metric_sums(logits, labels, mask)))

    return jax.jit(step, donate_argnums=0, out_shardings=replicated(mesh))


def make_recalibration_step(model: Model, feed: TrainFeed, mesh: Mesh) -> Any:
    """Build the jitted step that averages the model's statistics over training batches, each
    counting the same.

    Returns:
        ``(average, params, model_state, key, step, source) -> average``: the mean over batches 0 to
        `step` from that over batches 0 to `step` - 1, in training mode, with the augmentation and
        dropout of that step of a run whose base key is `key`. `model_state` gives the leaves that
        no batch moves.
    """

    @on_mesh(mesh)
    def recalibrate(
        average: Any,
        params: Any,
        model_state: Any,
        key: jax.Array,
        step: jax.Array,
        source: FeedData,
    ) -> Any:
        images, _, model_key = step_batch(key, step, feed, source, mesh)
        batch = batch_statistics(
            lambda state: model.apply(params, state, images, True, model_key)[1], model_state
        )
        share = 1 / (step + 1).astype(jnp.float32)
        return jax.tree.map(lambda mean, value: mean + share * (value - mean), average, batch)

    return jax.jit(recalibrate, donate_argnums=0, out_shardings=replicated(mesh))
