"""The split that a trained model is evaluated on: loaded, and labelled as in training."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from gnpcli.config.resolved import Resolved
from gnpcli.data.base import DataInfo, Dataset, DataSpec, FileSplit, Split, numbered
from gnpcli.data.registry import describe_data, load_held_out
from gnpcli.engine.loading import check_same_images, load_with_progress, loading
from gnpcli.engine.same_data import is_same
from gnpcli.errors import DataError
from gnpcli.runs.trained import Trained
from gnpcli.terminal.screen import Screen
from gnpcli.terminal.words import few, plural


@dataclass(frozen=True)
class Evaluand:
    """A split that fits a trained model."""

    images: Split | FileSplit
    """With the labels that their classes have in the model."""
    dataset: Dataset | None
    """All splits, with labels of their own; None where the split was loaded alone."""


def load_evaluand(trained: Trained, config: Resolved, split: str, screen: Screen) -> Evaluand:
    """Load a split of the data set that a model was trained on, or of another.

    Another data set may do without training images. Its classes are those of the same names, in any
    order, and may be fewer.

    Args:
        trained: The model.
        config: Names the data set.
        split: ``test``, ``val`` or ``train``.
        screen: Told of classes that differ, and of how far the loading is.

    Raises:
        DataError: The data does not fit the model, or has no such split.
    """
    # A run knows its own images by all splits: they are compared later.
    is_own = is_same(config.data, trained.config.data) and trained.spec.fingerprint is not None
    if not is_own:
        with loading(config, screen) as display:
            alone = load_held_out(config.data, split, trained.spec, display)
        if alone is not None:
            spec, images = alone
            check_same_images(spec)
            _check_names(spec, trained.spec, config)
            check_fit(spec, trained.spec, config, fewer_classes=True)
            return Evaluand(_as_trained(images, spec, trained.spec, screen), None)
    dataset = load_with_progress(_fitting(config, trained), screen)
    if not is_own:
        _check_names(dataset.spec, trained.spec, config)
    check_fit(dataset.spec, trained.spec, config, fewer_classes=not is_own)
    splits = {"train": dataset.train, "val": dataset.validation, "test": dataset.test}
    chosen = splits[split]
    if chosen is None:
        raise DataError(f"{config.data.name} has no {split} split")
    if not is_own:
        chosen = _as_trained(chosen, dataset.spec, trained.spec, screen)
    return Evaluand(chosen, dataset)


def _fitting(config: Resolved, trained: Trained) -> Resolved:
    """Return `config` with the image size of the model where it leaves streamed images any size.

    What is known without reading images says whether it is worth reading, or downloading, them:
    data that does not fit the model is refused here.
    """
    info = describe_data(config.data)
    if info is None:
        return config
    if info.is_streamed and config.data.image_size is None:
        config = config.replaced({"data.image_size": trained.spec.image_size})
        info = replace(info, image_size=trained.spec.image_size)
    check_fit(info, trained.spec, config, fewer_classes=info.present)
    return config


def _check_names(given: DataSpec, trained: DataSpec, config: Resolved) -> None:
    """Refuse a data set of which some classes are the model's, by name, and others are not.

    Where all have other names, or the model numbers its classes, the number of classes decides.
    """
    known = set(trained.class_names)
    unknown = [name for name in given.class_names if name not in known]
    if not unknown:
        return
    if given.num_classes != trained.num_classes:
        check_fit(given, trained, config)
    if len(unknown) < given.num_classes and not _is_numbered(trained):
        raise DataError(
            f"{given.name} has classes that are not the model's: {few(unknown)}; the model knows "
            f"{few(trained.class_names)}"
        )


def _is_numbered(spec: DataSpec) -> bool:
    return spec.class_names == numbered(spec.num_classes)


def _as_trained(
    split: Split | FileSplit, given: DataSpec, trained: DataSpec, screen: Screen
) -> Split | FileSplit:
    """Return a split with the labels that its classes have in the model, by name.

    Args:
        split: Labelled by the classes of `given`, which `_check_names` has passed.
        given: Of the split.
        trained: Of the model. Where it numbers its classes, they are those of `given` in order.
        screen: Told where classes have other names, or no images.
    """
    names, known = given.class_names, trained.class_names
    if set(names) <= set(known):
        position = {name: label for label, name in enumerate(known)}
        labels = np.asarray([position[name] for name in names], np.int32)[split.labels]
        _warn_of_missing(labels, given, known, screen)
        return replace(split, labels=labels)
    if _is_numbered(trained):
        screen.line(
            f"the weights name no classes: output k is taken to be class k of {given.name}, by name"
        )
    else:
        screen.warn(f"the classes of {given.name} have other names than in training")
    return split


def _warn_of_missing(
    labels: np.ndarray, given: DataSpec, known: tuple[str, ...], screen: Screen
) -> None:
    present = set(np.unique(labels).tolist())
    missing = [name for label, name in enumerate(known) if label not in present]
    if missing:
        screen.warn(
            f"{given.name} has no images of {plural(len(missing), 'class', 'classes')} of "
            f"the model: {few(missing)}"
        )


def check_fit(
    given: DataSpec | DataInfo,
    trained: DataSpec,
    config: Resolved,
    *,
    fewer_classes: bool = False,
) -> None:
    """Refuse data that is unlike what a model was trained on.

    Args:
        given: The data.
        trained: What the model was trained on.
        config: Names both in the message.
        fewer_classes: Allow the data fewer classes than the model has.

    Raises:
        DataError: Classes, image size or channels differ.
    """
    sizes = [("pixels a side", given.image_size, trained.image_size)]
    if given.num_classes > trained.num_classes or not fewer_classes:
        sizes.insert(0, ("classes", given.num_classes, trained.num_classes))
    # Before all images are read, a coloured one may be among the grey ones.
    if isinstance(given, DataSpec):
        sizes.append(("channels", given.channels, trained.channels))
    for what, have, want in sizes:
        if have != want:
            raise DataError(
                f"{config.data.name} has {have} {what}, but {config.model.name} was trained with "
                f"{want}"
            )
