"""Loading of a run's data, with what a person sees of it."""

from __future__ import annotations

from collections.abc import Sequence

from gnpcli.config.resolved import Resolved
from gnpcli.data.base import Dataset
from gnpcli.data.registry import load_dataset
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
    """Load the data set, saying how far it is fetched, prepared and decoded."""
    with loading(config, screen) as display:
        return load_dataset(config.data, display)


def loading(config: Resolved, screen: Screen) -> LoadingDisplay:
    """Return what shows how far the loading of a data set is."""
    return LoadingDisplay(config.data.name, screen.console, screen.line, quiet=screen.is_quiet)
