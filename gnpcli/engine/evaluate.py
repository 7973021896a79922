"""Evaluation: of a split during training, and of a checkpoint on its own or another data set."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jax.sharding import Mesh

from gnpcli.config.resolved import Resolved
from gnpcli.config.weights import Weights
from gnpcli.data.base import DataInfo, Dataset, DataSpec, numbered
from gnpcli.data.feeds.make import make_train_feed
from gnpcli.data.registry import describe_data
from gnpcli.devices.mesh import make_mesh
from gnpcli.engine.evaluator import Evaluator, Recalibration
from gnpcli.engine.loading import load_with_progress, warn_of_skipped
from gnpcli.errors import CheckpointError, DataError
from gnpcli.keys import run_keys
from gnpcli.runs.location import Location
from gnpcli.runs.trained import Trained, open_trained
from gnpcli.terminal.screen import Screen


def evaluate(
    location: Location,
    *,
    data: dict[str, Any],
    split: str,
    step: int | None,
    best: bool,
    quiet: bool,
    weights: Weights | None = None,
    recalibrate: int | None = None,
) -> dict[str, Any]:
    """Evaluate a checkpoint on its own data set or on another.

    Args:
        location: From `gnpcli.runs.location.locate`.
        data: Keys of the `data` section to override, such as `name` and `dir`.
        split: ``test``, ``val`` or ``train``.
        step: Which checkpoint; None takes the one of `location`, else the last good one.
        best: Take the one with the lowest error instead.
        quiet: Print only warnings.
        weights: ``raw`` or ``ema``; None takes those that the run itself evaluated.
        recalibrate: Training batches over which BatchNorm statistics are taken anew, 0 for the
            saved ones; None recalibrates the averaged weights as the run itself does, and leaves
            the raw ones alone.

    Returns:
        The result of `Evaluator`, with `step`, `dataset`, `split` and `weights`.

    Raises:
        CheckpointError: Nothing usable, a checkpoint of another model than the run's, no averaged
            weights in it, or statistics to recalibrate asked for of a model without any.
        DataError: The data does not fit the model, or has no such split.
    """
    screen = Screen(quiet=quiet)
    trained = open_trained(location, step=step, best=best, weights=weights, screen=screen)
    config, spec, model = trained.config, trained.spec, trained.model
    model_state = trained.model_state
    if recalibrate and not model_state:
        raise CheckpointError(
            f"{config.model.name} has no BatchNorm statistics to recalibrate: leave --recalibrate "
            "out"
        )
    if recalibrate is None:
        recalibrate = config.train.recalibrate_batches if trained.weights == "ema" else 0
    config = config.replaced({f"data.{key}": value for key, value in data.items()})
    mesh = make_mesh(config)
    # What is known without reading images says whether it is worth reading, or downloading, them.
    info = describe_data(config.data)
    if info is not None and info.is_streamed and config.data.image_size is None:
        config = config.replaced({"data.image_size": spec.image_size})
        info = replace(info, image_size=spec.image_size)
    if info is not None:
        check_fit(info, spec, config)
    dataset = load_with_progress(config, screen)
    check_fit(dataset.spec, spec, config)
    chosen = {"train": dataset.train, "val": dataset.validation, "test": dataset.test}[split]
    if chosen is None:
        raise DataError(f"{config.data.name} has no {split} split")
    if dataset.spec.class_names != spec.class_names:
        if spec.class_names == numbered(spec.num_classes):
            screen.line(
                "the weights name no classes: output k is taken to be class k of "
                f"{config.data.name}, by name"
            )
        else:
            screen.line(
                f"warning: the classes of {config.data.name} have other names than in training",
                style="yellow",
            )
    if recalibrate and model_state:
        # The run's own training images, wherever they lie now, also to evaluate on another data
        # set.
        own = dataset if "name" not in data else load_with_progress(trained.config, screen)
        model_state = recalibrated(trained, own, mesh, recalibrate)
    evaluator = Evaluator(chosen, spec, config, model, mesh)
    result = evaluator(trained.params, model_state)
    warn_of_skipped(screen, evaluator.feed.skipped, split)
    return {
        "step": trained.step, "dataset": config.data.name, "split": split, "weights": trained.weights, **result,
    }  # fmt: skip


def recalibrated(trained: Trained, dataset: Dataset, mesh: Mesh, num_batches: int) -> Any:
    """Return the model state of a trained model with BatchNorm statistics taken anew over training
    batches.

    Args:
        trained: Whose weights and training feed are used.
        dataset: The run's own; its training images are read.
        mesh: Where batches are split.
        num_batches: The first so many of the run.
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


def check_fit(given: DataSpec | DataInfo, trained: DataSpec, config: Resolved) -> None:
    """Refuse data that a model was not trained on the like of.

    Args:
        given: The data.
        trained: What the model was trained on.
        config: Names both in the message.

    Raises:
        DataError: Classes, image size or channels differ.
    """
    sizes = [
        ("classes", given.num_classes, trained.num_classes),
        ("pixels a side", given.image_size, trained.image_size),
    ]
    if isinstance(
        given, DataSpec
    ):  # before all images are read, one coloured image may be among the grey ones
        sizes.append(("channels", given.channels, trained.channels))
    for what, have, want in sizes:
        if have != want:
            raise DataError(
                f"{config.data.name} has {have} {what}, but {config.model.name} was trained with "
                f"{want}"
            )
