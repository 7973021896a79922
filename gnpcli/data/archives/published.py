"""Data sets whose sizes, classes and archives are published: one mechanism to describe, find,
prepare and load them.

Each is looked for as an image folder, ``<name>/{train,test}/<class>/``, where its classes can be
the names of folders, and as prepared by TFDS, ``<name>/<version>/``; where it is neither,
`Published.load` prepares it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gnpcli.config.schema import DataConfig
from gnpcli.data.archives import places, tfds
from gnpcli.data.archives.fetch import Archive, Origin
from gnpcli.data.base import DataInfo, Dataset, DataSpec, Split, validation_counts
from gnpcli.data.images.layout import Layout, scan
from gnpcli.data.progress import Progress
from gnpcli.errors import ConfigError, DataError

Example = dict[str, Any]
"""``image``, uint8 ``[H, W, C]``, ``label``, and whatever else TFDS keeps of an image of this data
set.
"""


@dataclass(frozen=True)
class Located:
    """Where a data set lies."""

    path: str
    format: str
    """``image folder``, or one of `gnpcli.data.archives.tfds.FORMATS`."""
    counts: dict[str, int] | None
    """Images of each split, where they need not be counted."""
    num_bytes: int | None
    """What it takes on disk, where that need not be counted."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """The published facts of a data set. Splits, classes and their order are those of TFDS."""

    name: str
    """As in `data.name`, which is TFDS's name."""
    title: str
    """As people write it."""
    class_names: tuple[str, ...]
    image_size: int
    channels: int
    class_counts: Mapping[str, tuple[int, ...]]
    """By split: images of each class."""
    optional_splits: tuple[str, ...] = ()
    """Splits that are prepared only where they are asked for."""
    archives: Mapping[str, tuple[Archive, ...]]
    """By split: the archives that hold it."""
    examples: Callable[[str, Mapping[str, str]], Iterator[Example]]
    """From a split and the paths of its archives by file name to its examples, in the order of the
    archives.
    """
    more_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of the classes of further features."""
    mean: tuple[float, ...] | None = None
    """Per channel over the split ``train``, of pixel values in [0, 1]; None measures the images
    trained on.

    As they are published, to four places: with their deviation over all pixels, not the mean of
        each image's own."""
    std: tuple[float, ...] | None = None

    def describe(self, config: DataConfig) -> DataInfo:
        """Answer `gnpcli.data.registry.describe` from the images where they are present, else from
        the published sizes.
        """
        train, test = self._splits(config)
        if (folder := self._image_folder(config.dir, (*train, test))) is not None:
            from gnpcli.data.sources.folder import describe_layout

            return describe_layout(self._scan(folder, config), config)
        prepared = self._prepared(config.dir, (*train, test))
        counts = {split: sum(numbers) for split, numbers in self.class_counts.items()}
        class_counts = [
            sum(numbers)
            for numbers in zip(*(self.class_counts[split] for split in train), strict=True)
        ]
        if prepared is not None:
            # Only a part of a data set has classes of unknown sizes, and only validation has to
            # know them.
            if config.validation_fraction > 0 and any(
                prepared.counts[split] != counts[split] for split in train
            ):
                from gnpcli.data.archives.records import read_labels

                labels = read_labels(prepared, self._features(prepared), train).tolist()
                class_counts = [labels.count(label) for label in range(len(self.class_names))]
            counts = prepared.counts
        num_validation = sum(validation_counts(class_counts, config.validation_fraction))
        return DataInfo(
            name=self.name,
            num_train=sum(counts[split] for split in train) - num_validation,
            num_validation=num_validation,
            num_test=counts[test],
            image_size=config.image_size or self.image_size,
            channels=self.channels,
            num_classes=len(self.class_names),
            present=prepared is not None,
        )

    def load(self, config: DataConfig, progress: Progress | None = None) -> Dataset:
        """Return the splits of the folder found at `data.dir` or in a default place, preparing it
        where there is none.

        An image folder goes before a prepared TFDS folder where both are there; it has no splits
        but ``train`` and ``test``.

        Raises:
            ConfigError: On splits that the data set does not have.
            DataError: If a folder is there whose classes are other ones, on a bad image or record,
                or if the archives cannot be fetched or unpacked.
        """
        train, test = self._splits(config)
        if (folder := self._image_folder(config.dir, (*train, test))) is not None:
            return self._load_folder(folder, config, progress)
        prepared = self._prepared(config.dir, (*train, test))
        if prepared is None:
            located, _ = self.prepare(
                config.dir, (*train, test), Origin.from_environment(), progress
            )
            prepared = tfds.examine(located.path, name=self.name, splits=(*train, test))
        from gnpcli.data.archives.records import load_arrays

        arrays = load_arrays(
            prepared,
            self._features(prepared),
            groups={"train": train, "test": (test,)},
            image_size=config.image_size,
            progress=progress,
        )
        mean, std = arrays["statistics"].tolist()
        spec = DataSpec(
            name=self.name,
            class_names=self.class_names,
            image_size=config.image_size or self.image_size,
            channels=self.channels,
            mean=self.mean or tuple(mean),
            std=self.std or tuple(std),
        )
        splits = {
            group: Split(arrays[group], arrays[f"{group}_labels"]) for group in ("train", "test")
        }
        return Dataset(spec, splits["train"], None, splits["test"])

    def locate(
        self, directory: str | None, splits: Sequence[str] = ("train", "test")
    ) -> Located | None:
        """Say where the data set lies, if it is present with `splits`.

        Raises:
            DataError: As `gnpcli.data.archives.tfds.find` and `gnpcli.data.archives.tfds.examine`.
        """
        if (folder := self._image_folder(directory, splits)) is not None:
            return Located(folder, "image folder", None, None)
        prepared = self._prepared(directory, splits)
        return _located(prepared) if prepared is not None else None

    def prepare(
        self,
        directory: str | None,
        splits: Sequence[str],
        origin: Origin,
        progress: Progress | None,
    ) -> tuple[Located, bool]:
        """Fetch and prepare `splits` and all that are not optional, unless they are there.

        Args:
            directory: `data.dir`; None takes the first default place.
            splits: Names of splits, in any order.
            origin: Where archives come from.
            progress: Told of downloads and of the images written.

        Returns:
            Where the data set lies, and whether it was there already.

        Raises:
            ConfigError: On splits that the data set does not have.
            DataError: As `locate` and `gnpcli.data.archives.prepare.prepare`.
        """
        self._check_names(splits, None)
        wanted = [
            split
            for split in self.class_counts
            if split in splits or split not in self.optional_splits
        ]
        if (found := self.locate(directory, wanted)) is not None:
            return found, True
        from gnpcli.data.archives.prepare import prepare

        return _located(
            prepare(self, places.target_dir(directory), wanted, origin, progress)
        ), False

    def _splits(self, config: DataConfig) -> tuple[tuple[str, ...], str]:
        train = split_names(config.train_split or "train")
        test = config.test_split or "test"
        self._check_names(train, "data.train_split")
        self._check_names((test,), "data.test_split")
        check_disjoint(train, test)
        return train, test

    def _check_names(self, splits: Sequence[str], key: str | None) -> None:
        for split in splits:
            if split not in self.class_counts:
                choices = ", ".join(self.class_counts)
                raise ConfigError(
                    f"{self.name} has no split {split!r} (its splits: {choices})", key=key
                )

    def _image_folder(self, directory: str | None, splits: Sequence[str]) -> str | None:
        """Return the image folder that holds `splits`; None where a class could not be the name of
        a folder.
        """
        if not {"train", "test"}.issuperset(splits) or list(self.class_names) != sorted(
            self.class_names
        ):
            return None
        if any("/" in name for name in self.class_names):
            return None
        return places.image_folder(self.name, directory)

    def _prepared(self, directory: str | None, splits: Sequence[str]) -> tfds.Prepared | None:
        """Return the first prepared folder that holds `splits`; None also where only optional ones
        are missing.
        """
        found: list[tfds.Prepared] = []
        for place in places.candidates(self.name, directory):
            if (root := tfds.find(place)) is not None:
                prepared = tfds.examine(root, name=self.name)
                if prepared.holds(splits):
                    return prepared
                found.append(prepared)
        if found and not found[0].holds(
            [split for split in splits if split not in self.optional_splits]
        ):
            tfds.check_splits(found[0], splits)
        return None

    def _features(self, prepared: tfds.Prepared) -> tfds.Features:
        features = tfds.read_features(prepared)
        want = (self.image_size, self.image_size, self.channels)
        if features.shape != want:
            raise DataError(
                f"{prepared.root} holds images that are not {'x'.join(map(str, want))} pixels"
            )
        if features.class_names != self.class_names:
            names = _few(self.class_names)
            raise DataError(
                f"{prepared.root} does not name its classes {names} in this order: prepare it anew"
            )
        return features

    def _load_folder(self, folder: str, config: DataConfig, progress: Progress | None) -> Dataset:
        from gnpcli.data.sources.folder import assemble, load_images

        layout = self._scan(folder, config)
        images = load_images(layout, config.image_size, progress)
        if images["train"].shape[-1] != self.channels:
            raise DataError(f"{folder} holds grey images only: {self.title} is in colour")
        mean, std = images["statistics"].tolist()
        return assemble(layout, images, name=self.name, mean=self.mean or mean, std=self.std or std)

    def _scan(self, root: str, config: DataConfig) -> Layout:
        layout = scan(root, validation_fraction=config.validation_fraction)
        if layout.class_names != self.class_names:
            missing = sorted(set(self.class_names) - set(layout.class_names))
            strange = sorted(set(layout.class_names) - set(self.class_names))
            what = f"it lacks {_few(missing)}" if missing else f"it also holds {_few(strange)}"
            raise DataError(
                f"{root}/train is not {self.title}: {what}; for other images use --dataset "
                f"folder:{root}"
            )
        return layout


def split_names(text: str) -> tuple[str, ...]:
    """Return the splits of `data.train_split`, in order.

    Raises:
        ConfigError: If one is named twice, or an empty one.
    """
    names = tuple(name.strip() for name in text.split("+"))
    if "" in names or len(set(names)) < len(names):
        raise ConfigError(
            f"{text!r} should name splits once each, joined by +", key="data.train_split"
        )
    return names


def check_disjoint(train: Sequence[str], test: str) -> None:
    """Check that the images tested on are not trained on.

    Raises:
        ConfigError: If `test` is one of `train`.
    """
    if test in train:
        raise ConfigError(
            f"the split {test!r} would be trained on and tested on", key="data.test_split"
        )


def _located(prepared: tfds.Prepared) -> Located:
    return Located(prepared.root, prepared.format, prepared.counts, prepared.num_bytes)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
