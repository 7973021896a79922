"""Evaluation of a split: every example exactly once."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gnpcli.config.resolved import Resolved
from gnpcli.data.base import DataSpec, FileSplit, Split
from gnpcli.data.feeds.base import TrainFeed
from gnpcli.data.feeds.make import make_eval_feed
from gnpcli.devices.mesh import replicated
from gnpcli.errors import DataError
from gnpcli.keys import run_keys
from gnpcli.models.base import Model
from gnpcli.runs.contents import Measured
from gnpcli.step.evaluate import make_eval_step, make_recalibration_step
from gnpcli.step.losses import zero_sums


class Evaluator:
    """Evaluation of one split, every example exactly once whatever the batch size and device count."""

    def __init__(
        self, split: Split | FileSplit, spec: DataSpec, config: Resolved, model: Model, mesh: Mesh
    ):
        self.feed = make_eval_feed(split, spec, config.data, mesh, dtype=config.train.dtype)
        self._step = make_eval_step(model, self.feed, mesh)
        self._sharding = replicated(mesh)
        self._num_classes, self._num_examples = spec.num_classes, len(split.labels)

    def __call__(self, params: Any, model_state: Any) -> Measured:
        """Return `error_rate`, `loss` (mean cross-entropy), `num_examples`, and `top5_error_rate`
        beyond 5 classes.

        Raises:
            DataError: If no image of the split could be read (``data.unreadable: skip``).
        """
        sums = jax.device_put(zero_sums(), self._sharding)
        for index, source in enumerate(self.feed.sources()):
            sums = self._step(sums, params, model_state, source, np.int32(index))
        sums = jax.device_get(sums)
        count = int(sums.num_examples)
        assert count == self._num_examples - len(self.feed.skipped)
        if count == 0:
            raise DataError(
                f"none of the {self._num_examples} images could be read, the first is "
                f"{self.feed.skipped[0]}"
            )
        result: Measured = {
            "error_rate": int(sums.errors) / count,
            "loss": float(sums.loss) / count,
            "num_examples": count,
        }
        if self._num_classes > 5:
            result["top5_error_rate"] = int(sums.top5_errors) / count
        return result


class Recalibration:
    """BatchNorm statistics for given weights: averages over training batches, none of them weighted
    by its age.

    Averaged weights need it: their activations have other moments than those of any weights that
    the running averages were taken at (stochastic weight averaging, arXiv 1803.05407, section 3.2;
    PreciseBN, arXiv 2105.07576, section 3).

    Args:
        model: As trained.
        feed: Of the training split; the batches are those of the run's steps 0, 1, ...
        mesh: Where a batch is split.
        seed: Of the run.
        num_batches: How many, at least 1.
    """

    def __init__(self, model: Model, feed: TrainFeed, mesh: Mesh, *, seed: int, num_batches: int):
        self._step = make_recalibration_step(model, feed, mesh)
        self._feed, self._num_batches, self._sharding = feed, num_batches, replicated(mesh)
        self._key = jax.device_put(run_keys(seed).steps, self._sharding)

    def __call__(self, params: Any, model_state: Any) -> Any:
        """Return `model_state` with new statistics; a model without any comes back at once."""
        if not jax.tree.leaves(model_state):
            return model_state
        average = jax.device_put(jax.tree.map(jnp.zeros_like, model_state), self._sharding)
        for step in range(self._num_batches):
            source = self._feed.source(step)
            average = self._step(average, params, model_state, self._key, np.int32(step), source)
        return average
