"""The evaluation step, and the step that takes BatchNorm statistics anew."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gnpcli.data.feeds.base import EvalFeed, FeedData, TrainFeed
from gnpcli.devices.mesh import on_mesh, replicated, split_batch
from gnpcli.models.base import Model, Params, State
from gnpcli.step.averaging import batch_statistics
from gnpcli.step.batch import step_batch
from gnpcli.step.losses import MetricSums, metric_sums
from gnpcli.step.programs import EvalStep, RecalibrationStep


def make_eval_step(model: Model, feed: EvalFeed, mesh: Mesh) -> EvalStep:
    """Build the jitted `EvalStep`.

    The model is in evaluation mode, the padding is masked out, and the loss has neither smoothing
    nor L2.
    """

    @on_mesh(mesh)
    def step(
        sums: MetricSums, params: Params, model_state: State, source: FeedData, index: jax.Array
    ) -> MetricSums:
        images, labels, mask = split_batch(mesh, feed.batch(source, index))
        logits, _ = model.apply(params, model_state, images, False, None)
        return MetricSums(*map(jnp.add, sums, metric_sums(logits, labels, mask)))

    return jax.jit(step, donate_argnums=0, out_shardings=replicated(mesh))


def make_recalibration_step(model: Model, feed: TrainFeed, mesh: Mesh) -> RecalibrationStep:
    """Build the jitted step that averages the model's statistics over training batches.

    Every batch counts the same.

    Returns:
        ``(average, params, model_state, key, step, source) -> average``: from the mean over
        batches 0 to `step` - 1 the mean over batches 0 to `step`. The model is in training mode,
        with the augmentation and the dropout of that step of a run whose base key is `key`.
        `model_state` gives the leaves that no batch moves.
    """

    @on_mesh(mesh)
    def recalibrate(
        average: State,
        params: Params,
        model_state: State,
        key: jax.Array,
        step: jax.Array,
        source: FeedData,
    ) -> State:
        images, _, model_key = step_batch(key, step, feed, source, mesh)

        def new_state(state: State) -> State:
            return model.apply(params, state, images, True, model_key)[1]

        batch = batch_statistics(new_state, model_state)
        share = 1 / (step + 1).astype(jnp.float32)
        mean: State = jax.tree.map(lambda old, new: old + share * (new - old), average, batch)
        return mean

    return jax.jit(recalibrate, donate_argnums=0, out_shardings=replicated(mesh))
