"""Evaluation of a split: every example exactly once."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Mesh

from gnpcli.config.resolved import Resolved
from gnpcli.data.base import DataSpec, FileSplit, Split
from gnpcli.data.feeds.base import TrainFeed
from gnpcli.data.feeds.make import make_eval_feed
from gnpcli.devices.mesh import place_tree
from gnpcli.engine.pending import keep_up
from gnpcli.errors import DataError
from gnpcli.keys import run_keys
from gnpcli.models.base import Model, Params, State
from gnpcli.runs.contents import Measured
from gnpcli.step.evaluate import make_eval_step, make_recalibration_step
from gnpcli.step.losses import MetricSums, zero_sums


class Evaluator:
    """Evaluation of one split.

    Every example counts exactly once, whatever the batch size and the number of devices.

    Args:
        split: What is evaluated.
        spec: Of the data that the model was trained on.
        config: Of the run.
        model: What is evaluated.
        mesh: Batches are split over it.
    """

    def __init__(
        self, split: Split | FileSplit, spec: DataSpec, config: Resolved, model: Model, mesh: Mesh
    ):
        self.feed = make_eval_feed(split, spec, config.data, mesh, dtype=config.train.dtype)
        self._step = make_eval_step(model, self.feed, mesh)
        self._mesh = mesh
        self._num_classes = spec.num_classes
        self._num_examples = len(split.labels)

    def __call__(self, params: Params, model_state: State) -> Measured:
        """Return error rate and mean cross-entropy over the examples that could be read.

        `top5_error_rate` is told beyond 5 classes.

        Raises:
            DataError: No image of the split could be read (``data.unreadable: skip``).
        """
        sums = self._sums(params, model_state)
        count = int(sums.num_examples)
        skipped = self.feed.skipped
        assert count == self._num_examples - len(skipped)
        if count == 0:
            first = skipped[0]
            raise DataError(
                f"none of the {self._num_examples} images could be read, the first is {first}"
            )
        result: Measured = {
            "error_rate": int(sums.errors) / count,
            "loss": float(sums.loss) / count,
            "num_examples": count,
        }
        if self._num_classes > 5:
            result["top5_error_rate"] = int(sums.top5_errors) / count
        return result

    def _sums(self, params: Params, model_state: State) -> MetricSums:
        """Return the sums over the split, on the host."""
        sums = place_tree(zero_sums(), self._mesh)
        for index, source in enumerate(self.feed.sources()):
            sums = self._step(sums, params, model_state, source, np.int32(index))
            keep_up(index, sums)
        on_host: MetricSums = jax.device_get(sums)
        return on_host


class Recalibration:
    """BatchNorm statistics for given weights.

    They are averages over training batches, each of which counts the same. Averaged weights need
    them: the running averages were taken at other weights, whose activations have other moments
    (stochastic weight averaging, arXiv 1803.05407, section 3.2; PreciseBN, arXiv 2105.07576,
    section 3).

    Args:
        model: As trained.
        feed: Of the training split; the batches are those of the run's steps 0, 1, ...
        mesh: Batches are split over it.
        seed: Of the run.
        num_batches: How many, at least 1.
    """

    def __init__(self, model: Model, feed: TrainFeed, mesh: Mesh, *, seed: int, num_batches: int):
        self._step = make_recalibration_step(model, feed, mesh)
        self._feed = feed
        self._num_batches = num_batches
        self._mesh = mesh
        self._key = place_tree(run_keys(seed).steps, mesh)

    def __call__(self, params: Params, model_state: State) -> State:
        """Return `model_state` with new statistics; a model without any comes back at once."""
        if not jax.tree.leaves(model_state):
            return model_state
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), model_state)
        average: State = place_tree(zeros, self._mesh)
        for step in range(self._num_batches):
            source = self._feed.source(step)
            average = self._step(average, params, model_state, self._key, np.int32(step), source)
            keep_up(step, average)
        return average
