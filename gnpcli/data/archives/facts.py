"""The published facts of a data set: its splits, its classes, and the archives that hold it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gnpcli.data.archives.fetch import Archive
from gnpcli.errors import ConfigError

Example = dict[str, Any]
"""``image``, uint8 ``[H, W, C]``, ``label``, and whatever else TFDS keeps of an image."""


@dataclass(frozen=True, kw_only=True)
class PublishedFacts:
    """What is published of a data set. Splits, classes and their order are those of TFDS."""

    name: str
    """As in `data.name`, which is TFDS's name."""
    title: str
    """As people write it."""
    class_names: tuple[str, ...]
    """Name of label 0, 1, ..."""
    image_size: int
    """Side in pixels; images are square."""
    channels: int
    """1 (grey) or 3 (RGB)."""
    class_counts: Mapping[str, tuple[int, ...]]
    """Images of each class, by split."""
    optional_splits: tuple[str, ...] = ()
    """Splits that are prepared only where they are asked for."""
    archives: Mapping[str, tuple[Archive, ...]]
    """The archives that hold a split, by split."""
    examples: Callable[[str, Mapping[str, str]], Iterator[Example]]
    """Called with a split and the paths of its archives by file name. Yields the split's examples
    in the order of the archives.
    """
    more_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Class names of further features, by feature."""
    mean: tuple[float, ...] | None = None
    """Per channel over the split ``train``, of pixel values in [0, 1], as published to four places.

    None measures the images that are trained on.
    """
    std: tuple[float, ...] | None = None
    """As `mean`: the deviation over all pixels, not the mean of each image's own."""

    @property
    def required_splits(self) -> tuple[str, ...]:
        """The splits that are always prepared."""
        return tuple(split for split in self.class_counts if split not in self.optional_splits)

    def archives_of(self, splits: Sequence[str]) -> list[Archive]:
        """Return the archives that hold `splits`, each once, in order."""
        by_name: dict[str, Archive] = {}
        for split in splits:
            for archive in self.archives[split]:
                by_name[archive.filename] = archive
        return list(by_name.values())

    def check_splits(self, splits: Sequence[str], key: str | None) -> None:
        """Check that the data set has `splits`.

        Args:
            splits: Names.
            key: Configuration key that names them; None where no key does.

        Raises:
            ConfigError: At the first split that it does not have.
        """
        for split in splits:
            if split not in self.class_counts:
                choices = ", ".join(self.class_counts)
                raise ConfigError(
                    f"{self.name} has no split {split!r} (its splits: {choices})", key=key
                )


def split_names(text: str) -> tuple[str, ...]:
    """Return the split names that `text` joins by ``+``, in order.

    Raises:
        ConfigError: If a name is empty or stands twice.
    """
    names = tuple(name.strip() for name in text.split("+"))
    if "" in names or len(set(names)) < len(names):
        raise ConfigError(
            f"{text!r} should name splits once each, joined by +", key="data.train_split"
        )
    return names


def check_disjoint(train: Sequence[str], test: str) -> None:
    """Check that no split is both trained on and tested on.

    Raises:
        ConfigError: If `test` is one of `train`.
    """
    if test in train:
        raise ConfigError(
            f"the split {test!r} would be trained on and tested on", key="data.test_split"
        )
