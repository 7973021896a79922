"""Whether a data set still is the one that a model was trained on."""

from __future__ import annotations

from collections.abc import Sequence

from gnpcli.config.resolved import Resolved
from gnpcli.config.schema import DataConfig
from gnpcli.data.base import DataSpec, numbered
from gnpcli.data.changes import CHOOSES_IMAGES, data_changes, moved_names
from gnpcli.errors import CheckpointError
from gnpcli.runs.trained import Trained
from gnpcli.terminal.screen import Screen


def accepted_changes(
    before: DataSpec, now: DataSpec, what: str, *, accept: bool, screen: Screen
) -> list[str]:
    """Refuse data that have changed since a model was trained on them.

    Args:
        before: What the model was trained on.
        now: What is there.
        what: Names the model in messages.
        accept: Go on with changed data, where they have the sizes that the model needs.
        screen: Told of accepted changes, and of a model that does not know its images.

    Returns:
        The changes that were accepted, a phrase each.

    Raises:
        CheckpointError: The data have changed. The message names what differs.
    """
    changes = data_changes(before, now)
    if not changes:
        if before.fingerprint is None:
            screen.warn(
                f"{what} has no fingerprint of its images, which older versions did not "
                "keep: whether they are still the same cannot be told"
            )
        return []
    is_given = now.name.startswith("arrays:")
    where = "the arrays of `data`" if is_given else f"{now.name} holds now"
    told = f"{what} is of other images than {where}: {'; '.join(changes)}"
    if _sizes(before) != _sizes(now):
        raise CheckpointError(f"{told}; its model does not fit these: put the old ones back")
    if not accept:
        raise CheckpointError(
            f"{told}; put the old ones back, or go on with these by --accept-changed-data"
        )
    screen.warn(f"{told}; going on with these, as asked")
    return changes


def check_unchanged(
    trained: Trained, now: DataSpec, config: Resolved, *, accept: bool, screen: Screen
) -> None:
    """Refuse changed data where a configuration names the data set that a model was trained on.

    Another data set is refused where its classes have the labels of others. Weights from elsewhere
    name no classes and know no images: any data set is as good.

    Raises:
        CheckpointError: As `accepted_changes`.
    """
    spec = trained.spec
    if spec.fingerprint is None and spec.class_names == numbered(spec.num_classes):
        return
    what = f"the checkpoint of step {trained.step}"
    if is_same(config.data, trained.config.data):
        accepted_changes(spec, now, what, accept=accept, screen=screen)
    else:
        _check_labels(spec, now, accept)


def is_same(data: DataConfig, other: DataConfig) -> bool:
    """Return whether two sections name the same images, wherever they lie."""
    return all(getattr(data, key) == getattr(other, key) for key in CHOOSES_IMAGES)


def _check_labels(trained: DataSpec, now: DataSpec, accept: bool) -> None:
    """Refuse a data set with classes of the same names under other labels."""
    moved = moved_names(trained.class_names, now.class_names)
    if moved and not accept:
        raise CheckpointError(
            f"{now.name} has other labels than in training: {moved}; sort its classes as "
            "in training, or go on as it is by --accept-changed-data"
        )


def _sizes(spec: DataSpec) -> Sequence[int]:
    return spec.num_classes, spec.image_size, spec.channels
