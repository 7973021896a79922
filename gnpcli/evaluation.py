"""Evaluation: of a split during training, and of a checkpoint on its own or another data set."""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from gnpcli.checkpoint import Checkpoints
from gnpcli.config import CheckpointConfig, RunConfig
from gnpcli.config.loader import differences
from gnpcli.data import load_dataset
from gnpcli.data.base import Dataset, DataSpec, Split
from gnpcli.data.feed import EvalFeed
from gnpcli.errors import CheckpointError, DataError
from gnpcli.losses import zero_sums
from gnpcli.models import build_model
from gnpcli.models.base import Model
from gnpcli.runlog import Screen
from gnpcli.runs import Location, config_from_meta, read_config
from gnpcli.sharding import abstract, make_mesh, placer, replicated
from gnpcli.steps import make_eval_step


class Evaluator:
    """Evaluation of one split, every example exactly once whatever the batch size and device count."""

    def __init__(self, split: Split, spec: DataSpec, config: RunConfig, model: Model, mesh: Mesh):
        self._feed = EvalFeed(split, spec, config.data, place=placer(mesh))
        self._source = self._feed.source()
        self._step = make_eval_step(model, self._feed, mesh)
        self._sharding = replicated(mesh)
        self._num_classes, self._num_examples = spec.num_classes, len(split.labels)

    def __call__(self, params: Any, model_state: Any) -> dict[str, float | int]:
        """Return `error_rate`, `loss` (mean cross-entropy), `num_examples`, and `top5_error_rate` beyond 5 classes."""
        sums = jax.device_put(zero_sums(), self._sharding)
        for index in range(self._feed.num_batches):
            sums = self._step(sums, params, model_state, self._source, np.int32(index))
        sums = jax.device_get(sums)
        count = int(sums.num_examples)
        assert count == self._num_examples
        result: dict[str, float | int] = {
            "error_rate": int(sums.errors) / count,
            "loss": float(sums.loss) / count,
            "num_examples": count,
        }
        if self._num_classes > 5:
            result["top5_error_rate"] = int(sums.top5_errors) / count
        return result


def load_with_progress(config: RunConfig, screen: Screen) -> Dataset:
    """Load the data set, saying how far decoding is."""
    told = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told > 2:
            told = time.monotonic()
            screen.line(f"reading {config.data.name}: {done}/{total} images")

    return load_dataset(config.data, progress)


def evaluate(
    location: Location, *, data: dict[str, Any], split: str, step: int | None, best: bool, quiet: bool
) -> dict[str, Any]:
    """Evaluate a checkpoint on its own data set or on another.

    Args:
        location: From `gnpcli.runs.locate`.
        data: Keys of the `data` section to override, such as `name` and `dir`.
        split: ``test``, ``val`` or ``train``.
        step: Which checkpoint; None takes the one of `location`, else the last good one.
        best: Take the one with the lowest error instead.
        quiet: Print only warnings.

    Returns:
        The result of `Evaluator`, with `step`, `dataset` and `split`.

    Raises:
        CheckpointError: Nothing usable, or a checkpoint of another model than the run's.
        DataError: The data does not fit the model, or has no such split.
    """
    screen = Screen(quiet=quiet)
    run_config = read_config(location.run_dir) if location.run_dir else None
    checkpoints = Checkpoints(location.checkpoints, CheckpointConfig(), read_only=True)
    try:
        step = step if step is not None else location.step
        if best:
            step = checkpoints.best_step()
            if step is None:
                raise CheckpointError(f"no checkpoint in {location.checkpoints} has an error rate to be the best by")
        if step is not None and step not in checkpoints.steps():
            known = ", ".join(map(str, checkpoints.steps())) or "none"
            raise CheckpointError(f"no checkpoint of step {step} in {location.checkpoints} (there: {known})")

        def load(at: int) -> tuple[RunConfig, DataSpec, Any, Any]:
            meta = checkpoints.read_meta(at)
            config, spec = config_from_meta(meta), DataSpec.from_dict(meta["data"])
            if run_config is not None and config.model != run_config.model:
                raise CheckpointError(
                    f"the checkpoint of step {at} in {location.checkpoints} is of {config.model.name}, "
                    f"but the run's {location.run_dir}/config.yaml says {run_config.model.name}: "
                    + "; ".join(differences(config, run_config))
                )
            mesh = make_mesh(config)
            model, like = _abstract_model(config, spec, mesh)
            return config, spec, model, checkpoints.restore_model(at, *like)

        def on_damaged(at: int, error: CheckpointError) -> None:
            screen.line(f"warning: {error}; falling back to the one before", style="yellow")

        if step is None:
            found = checkpoints.restore_latest(load, on_damaged=on_damaged)
            if found is None:
                raise CheckpointError(f"no usable checkpoint in {location.checkpoints}")
            step, loaded = found
        else:
            loaded = load(step)
    finally:
        checkpoints.close()
    config, spec, model, (params, model_state) = loaded
    config = config.model_copy(update={"data": config.data.model_copy(update=data)})
    mesh = make_mesh(config)
    dataset = load_with_progress(config, screen)
    _check_fit(dataset.spec, spec, config)
    chosen = {"train": dataset.train, "val": dataset.validation, "test": dataset.test}[split]
    if chosen is None:
        raise DataError(f"{config.data.name} has no {split} split")
    if dataset.spec.class_names != spec.class_names:
        screen.line(f"warning: the classes of {config.data.name} have other names than in training", style="yellow")
    result = Evaluator(chosen, spec, config, model, mesh)(params, model_state)
    return {"step": step, "dataset": config.data.name, "split": split, **result}


def _abstract_model(config: RunConfig, spec: DataSpec, mesh: Mesh) -> tuple[Model, tuple[Any, Any]]:
    model = build_model(
        config.model,
        num_classes=spec.num_classes,
        image_size=spec.image_size,
        channels=spec.channels,
        dtype=config.train.dtype,
    )
    shape = (spec.image_size, spec.image_size, spec.channels)
    return model, abstract(lambda: model.init(jax.random.key(0), shape), mesh)


def _check_fit(given: DataSpec, trained: DataSpec, config: RunConfig) -> None:
    for what, have, want in (
        ("classes", given.num_classes, trained.num_classes),
        ("pixels a side", given.image_size, trained.image_size),
        ("channels", given.channels, trained.channels),
    ):
        if have != want:
            raise DataError(f"{config.data.name} has {have} {what}, but {config.model.name} was trained with {want}")
