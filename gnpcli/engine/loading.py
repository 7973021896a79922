"""Loading of a run's data, with what a person sees of it."""

from __future__ import annotations

from collections.abc import Sequence

from gnpcli.config.resolved import Resolved
from gnpcli.data.base import Dataset, DataSpec
from gnpcli.data.registry import load_dataset
from gnpcli.devices.processes import peers
from gnpcli.errors import DataError
from gnpcli.terminal import words
from gnpcli.terminal.loading import LoadingDisplay
from gnpcli.terminal.screen import Screen


def warn_of_skipped(screen: Screen, skipped: Sequence[str], split: str) -> None:
    """Say how many files of a split could not be read and were skipped, and name the first ones."""
    if skipped:
        screen.warn(
            f"{len(skipped)} unreadable image(s) of the {split} split skipped: {words.few(skipped)}"
        )


def load_with_progress(config: Resolved, screen: Screen) -> Dataset:
    """Load the data set, saying how far it is fetched, prepared and decoded.

    Raises:
        DataError: As `load_dataset`; or as `check_same_images`.
    """
    with loading(config, screen) as display:
        dataset = load_dataset(config.data, display)
    check_same_images(dataset.spec)
    return dataset


def check_same_images(spec: DataSpec) -> None:
    """Refuse several processes that find different images: each would take its rows of others.

    Raises:
        DataError: In all processes, with the first that differs from process 0.
    """
    digests = peers.gathered("images", spec.digest)
    for index, digest in enumerate(digests):
        if digest != digests[0]:
            raise DataError(
                f"process {index} finds other images of {spec.name} than process 0: give all of "
                "them the same"
            )


def loading(config: Resolved, screen: Screen) -> LoadingDisplay:
    """Return what shows how far the loading of a data set is."""
    return LoadingDisplay(config.data.name, screen.console, screen.line, quiet=screen.is_quiet)
