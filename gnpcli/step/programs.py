"""The types of the jitted programs that a run consists of."""

from __future__ import annotations

from typing import Any, ParamSpec, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np
from jax.stages import Lowered

from gnpcli.data.feeds.base import FeedData
from gnpcli.models.base import Params, State
from gnpcli.step.losses import MetricSums
from gnpcli.step.state import TrainState

P = ParamSpec("P")
R = TypeVar("R", covariant=True)

Metrics = dict[str, jax.Array]
"""Scalars by name, float32 but for counts, which are int32."""


@runtime_checkable  # for the checks of signatures in the tests
class Program(Protocol[P, R]):
    """A jitted function. It can be called, and it can be lowered without being run."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Compile for the arguments, unless that is done already, and run."""
        ...

    def lower(self, *args: P.args, **kwargs: P.kwargs) -> Lowered:
        """Trace for the arguments, or for `jax.ShapeDtypeStruct` in their places."""
        ...


TrainStep = Program[[TrainState, FeedData], tuple[TrainState, Metrics]]
"""``(state, source) -> (state, metrics)``. The given state is donated: its buffers are gone."""

EvalStep = Program[[MetricSums, Params, State, FeedData, jax.Array | np.int32], MetricSums]
"""``(sums, params, model_state, source, index) -> sums`` with batch `index` added.

`sums` is donated.
"""

RecalibrationStep = Program[
    [State, Params, State, jax.Array, jax.Array | np.int32, FeedData], State
]
"""``(average, params, model_state, key, step, source) -> average``.

See `gnpcli.step.evaluate.make_recalibration_step`. `average` is donated.
"""

Diagnosis = Program[[TrainState, FeedData], dict[str, Params]]
"""``(state, source) -> findings``, see `gnpcli.step.probes.make_diagnosis`. Donates nothing."""

RoundingMeasure = Program[[TrainState, FeedData], jax.Array]
"""``(state, source) -> share``, see `gnpcli.step.probes.make_rounding_measure`. Donates nothing."""

OptimizerStatistics = Program[[Any], Metrics]
"""``opt_state -> metrics``, see `gnpcli.step.optimizer.make_statistics`. Donates nothing.

The state is a tree that is the optimizer's own.
"""
