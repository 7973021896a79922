"""Several trained models measured side by side: the same images, the same directions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from gnpcli.config.resolved import Resolved
from gnpcli.data.base import Dataset, FileSplit, Split
from gnpcli.devices.mesh import make_mesh
from gnpcli.engine.evaluate import recalibrated
from gnpcli.engine.loading import load_with_progress, warn_of_skipped
from gnpcli.engine.same_data import check_unchanged
from gnpcli.errors import DataError
from gnpcli.keys import measurement_generator
from gnpcli.measure.flatness import Plan, Work, measure_flatness
from gnpcli.measure.landscape import Landscape, Sums
from gnpcli.models.base import State
from gnpcli.models.registry import build_for
from gnpcli.runs.location import locate
from gnpcli.runs.trained import Trained, open_trained
from gnpcli.terminal.loading import LoadingDisplay
from gnpcli.terminal.screen import Screen

RADII_IN_R = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Distances along the gradient where none are given, as multiples of r."""
USUAL_R = 0.05
"""What r is where no run has one: that of SAM's paper (arXiv 2010.01412)."""


@dataclass(frozen=True)
class Inspection:
    """What was measured of one run."""

    folder: Path
    config: Resolved
    result: dict[str, Any] = field(repr=False)
    """JSON-able; see `inspect`."""


def inspect(
    paths: Sequence[Path],
    plan: Plan,
    *,
    data_dir: str | None,
    step: int | None,
    best: bool,
    quiet: bool,
    accept_changed_data: bool = False,
) -> list[Inspection]:
    """Measure the flatness of trained models, one after the other.

    All see the same images and the same directions. L is the mean cross-entropy over a subset,
    without label smoothing and L2, the model in evaluation mode, in float32
    (`gnpcli.measure.landscape.Landscape`); w are the trained parameters.

    Args:
        paths: Run folders, or checkpoints.
        plan: What to measure.
        data_dir: Where the data sets lie; None is where the runs found them.
        step: Which checkpoint of each; None takes the last good one.
        best: Take the one with the lowest error instead.
        quiet: Print only warnings.
        accept_changed_data: Measure also on data that have changed since the training.

    Returns:
        For each run its configuration and a `result`: `run`, `step`, `weights` (``raw`` or ``ema``,
        what the run itself evaluated), `dataset`, `split`, `num_parameters`, `r` (of the run, or
        null) and `elapsed_s`; in `subsets`, for ``train`` and the held-out split (``test``, else
        ``val``), the `num_examples`, `loss`, `error_rate` and `gradient_norm` (``||grad L||``). Of
        `split` alone: `eigenvalues` of the Hessian of L, falling, with `residuals`,
        `hessian_products` and `num_missing` (`hessian.Spectrum`); `gradient_rise`, a list of
        `distance` and `rise`, ``L(w + distance * grad L / ||grad L||) - L(w)``; `random_rise`, a
        list of `distance`, `mean`, `std` (n - 1, null for one direction) and `rises`,
        ``L(w + distance * d) - L(w)`` over the filter-normalised random directions d; `surface`
        (null without one) with `plane`, `x` and `y` ``[R]`` and `loss` ``[R][R]``, ``loss[i][j]``
        at ``x[j]`` of the first direction and ``y[i]`` of the second. The unit of an axis is the
        filter-normalised direction, or the L2 distance along the gradient.

    Raises:
        CheckpointError, DataError: As in evaluating, and a split that a data set does not have.
        ConfigError: More eigenvalues than parameters.
        DivergenceError: The loss of a model is not finite.
    """
    screen = Screen(quiet=quiet)
    opened = [open_trained(locate(path), step=step, best=best, screen=screen) for path in paths]
    plan = _with_radii(plan, [trained.config for trained in opened])
    shared = _Shared(screen, accept_changed_data)
    found = []
    for path, trained in zip(paths, opened, strict=True):
        result = _inspect_one(path, trained, plan, data_dir, shared, screen)
        found.append(Inspection(path, trained.config, result))
    return found


def _with_radii(plan: Plan, configs: Sequence[Resolved]) -> Plan:
    if plan.radii:
        return plan
    own = [r for r in map(_radius, configs) if r is not None]
    base = own[0] if own else USUAL_R
    return replace(plan, radii=tuple(sorted({*own, *(factor * base for factor in RADII_IN_R)})))


def _radius(config: Resolved) -> float | None:
    """Return the radius that a run was regularized with."""
    return config.gr.r if config.gr.how.penalises and config.gr.r else None


class _Shared:
    """What runs of the same data or of the same model load and compile once."""

    def __init__(self, screen: Screen, accept_changed_data: bool):
        self._screen = screen
        self._accept = accept_changed_data
        self._datasets: dict[str, Dataset] = {}
        self._sums: dict[tuple[object, ...], Sums] = {}

    def dataset(self, config: Resolved, trained: Trained) -> Dataset:
        """Load the data of a run, which must not have changed."""
        key = config.data.model_dump_json()
        if key not in self._datasets:
            self._datasets[key] = load_with_progress(config, self._screen)
        found = self._datasets[key]
        check_unchanged(trained, found.spec, config, accept=self._accept, screen=self._screen)
        return found

    def sums(self, config: Resolved, trained: Trained, mesh: Mesh) -> Sums:
        """Build the model of a run."""
        key = (config.model.model_dump_json(), str(trained.spec), mesh.size)
        if key not in self._sums:
            self._sums[key] = Sums(build_for(config, trained.spec), mesh)
        return self._sums[key]


def _inspect_one(
    path: Path,
    trained: Trained,
    plan: Plan,
    data_dir: str | None,
    shared: _Shared,
    screen: Screen,
) -> dict[str, Any]:
    start = time.perf_counter()
    config = _inspected(trained, plan, data_dir)
    mesh = make_mesh(config)
    dataset = shared.dataset(config, trained)
    subsets = _subsets(dataset, plan, config.data.name)
    sums = shared.sums(config, trained, mesh)
    state = _evaluated_state(trained, dataset, mesh)
    with _Display(str(path), screen.console, screen.line, quiet=screen.is_quiet) as display:
        work = Work(str(path), display)
        landscapes = {}
        for name, subset in subsets.items():
            landscape = Landscape(
                sums, trained.params, state, subset, trained.spec, config, mesh, work
            )
            warn_of_skipped(screen, landscape.skipped, name)
            landscapes[name] = landscape
        name = f"{path} at step {trained.step}"
        return {
            "run": str(path),
            "step": trained.step,
            "weights": trained.weights,
            "dataset": config.data.name,
            "split": plan.split,
            "num_parameters": landscapes[plan.split].num_parameters,
            "r": _radius(config),
            **measure_flatness(landscapes, plan, work, screen, name),
            "elapsed_s": round(time.perf_counter() - start, 3),
        }


def _inspected(trained: Trained, plan: Plan, data_dir: str | None) -> Resolved:
    """Return the run's configuration with the batches and the compute type of an inspection."""
    config, devices = trained.config, trained.mesh.size
    changes: dict[str, Any] = {
        "data.batch_size": -(-plan.batch_size // devices) * devices,
        "data.eval_batch_size": None,
        "gr.groups": 1,
        "train.accumulate": 1,
        "train.dtype": "float32",
    }
    if data_dir is not None:
        changes["data.dir"] = data_dir
    return config.replaced(changes)


def _evaluated_state(trained: Trained, dataset: Dataset, mesh: Mesh) -> State:
    """Return the model state that the run itself evaluated its weights with."""
    batches = trained.config.train.recalibrate_batches
    if trained.weights == "ema" and trained.model_state and batches:
        state: State = recalibrated(trained, dataset, mesh, batches)
        return state
    return trained.model_state


def _subsets(dataset: Dataset, plan: Plan, name: str) -> dict[str, Split | FileSplit]:
    """Return the images of ``train``, of the held-out split, and of `plan.split`.

    Raises:
        DataError: The data set, called `name`, has no `plan.split`.
    """
    splits = {"train": dataset.train, "val": dataset.validation, "test": dataset.test}
    if splits[plan.split] is None:
        raise DataError(f"{name} has no {plan.split} split")
    held_out = "test" if dataset.test is not None else "val"
    subsets: dict[str, Split | FileSplit] = {}
    for split_name in dict.fromkeys(("train", held_out, plan.split)):
        split = splits[split_name]
        assert split is not None
        subsets[split_name] = _subset(split, plan)
    return subsets


def _subset(split: Split | FileSplit, plan: Plan) -> Split | FileSplit:
    """Return `plan.examples` images drawn without replacement, in their order.

    A split that has no more is taken whole.
    """
    chosen = np.zeros(len(split), bool)
    drawn = measurement_generator(plan.seed).permutation(len(split))[: plan.examples]
    chosen[drawn] = True
    return split.take(chosen)


class _Display(LoadingDisplay):
    PLAIN_EVERY_S = 10.0
