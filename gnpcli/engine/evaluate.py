"""Evaluation: of a split during training, and of a checkpoint on its own or another data set."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from jax.sharding import Mesh

from gnpcli.config.weights import Weights
from gnpcli.data.base import Dataset
from gnpcli.data.feeds.make import make_train_feed
from gnpcli.devices.mesh import make_mesh
from gnpcli.engine.evaluated import load_evaluand
from gnpcli.engine.evaluator import Evaluator, Recalibration
from gnpcli.engine.loading import load_with_progress, warn_of_skipped
from gnpcli.engine.same_data import check_unchanged, is_same
from gnpcli.errors import CheckpointError
from gnpcli.keys import run_keys
from gnpcli.models.base import State
from gnpcli.runs.contents import Measured
from gnpcli.runs.trained import Trained
from gnpcli.terminal.screen import Screen


class Evaluated(Measured):
    """What a checkpoint is worth on a split."""

    step: int
    """Of the checkpoint."""
    dataset: str
    split: str
    weights: Weights
    """Which weights were evaluated."""


def evaluate_trained(
    trained: Trained,
    *,
    data: Mapping[str, Any],
    split: str,
    screen: Screen,
    recalibrate: int | None = None,
    accept_changed_data: bool = False,
) -> Evaluated:
    """Evaluate a trained model on its own data set or on another.

    Args:
        trained: From `gnpcli.runs.trained.open_trained`.
        data: Keys of the `data` section to override, such as `name` and `dir`.
        split: ``test``, ``val`` or ``train``.
        screen: Told of warnings, and of how far the loading is.
        recalibrate: Training batches over which BatchNorm statistics are taken anew; 0 takes the
            saved ones. None recalibrates the averaged weights as the run itself does, and leaves
            the raw ones alone.
        accept_changed_data: Evaluate also on data that have changed since the training.

    Returns:
        What is measured, and of what.

    Raises:
        CheckpointError: The model has no statistics to recalibrate, or its data have changed.
        DataError: The data does not fit the model, or has no such split.
    """
    num_batches = _batches_to_recalibrate(trained, recalibrate)
    config = trained.config.replaced({f"data.{key}": value for key, value in data.items()})
    mesh = make_mesh(config)
    check = partial(check_unchanged, trained, accept=accept_changed_data, screen=screen)
    found = load_evaluand(trained, config, split, screen)
    own = found.dataset
    if own is not None and is_same(config.data, trained.config.data):
        check(own.spec, config)
    model_state = trained.model_state
    if num_batches and model_state:
        # The run's own training images, wherever they lie now, also to evaluate on another data
        # set.
        if own is None or "name" in data:
            own = load_with_progress(trained.config, screen)
            check(own.spec, trained.config)
        model_state = recalibrated(trained, own, mesh, num_batches)
    evaluator = Evaluator(found.images, trained.spec, config, trained.model, mesh)
    result = evaluator(trained.params, model_state)
    warn_of_skipped(screen, evaluator.feed.skipped, split)
    return {
        "step": trained.step,
        "dataset": config.data.name,
        "split": split,
        "weights": trained.weights,
        **result,
    }


def _batches_to_recalibrate(trained: Trained, asked: int | None) -> int:
    """Return over how many batches statistics are taken anew; 0 keeps the saved ones."""
    if asked and not trained.model_state:
        raise CheckpointError(
            f"{trained.config.model.name} has no BatchNorm statistics to recalibrate: leave "
            "--recalibrate out"
        )
    if asked is not None:
        return asked
    return trained.config.train.recalibrate_batches if trained.weights == "ema" else 0


def recalibrated(trained: Trained, dataset: Dataset, mesh: Mesh, num_batches: int) -> State:
    """Return the state of a trained model with BatchNorm statistics taken anew.

    Args:
        trained: Its weights and its training feed are used.
        dataset: The run's own. Its training images are read.
        mesh: Batches are split over it.
        num_batches: How many batches, from the first one of the run on.
    """
    train = trained.config.train
    order = run_keys(train.seed).order
    feed = make_train_feed(
        dataset.train, trained.spec, trained.config.data, mesh, key=order, dtype=train.dtype
    )
    try:
        recalibration = Recalibration(
            trained.model, feed, mesh, seed=train.seed, num_batches=num_batches
        )
        return recalibration(trained.params, trained.model_state)
    finally:
        feed.close()
