"""Data sets whose sizes, classes and archives are published: described, found, prepared, loaded.

A data set is looked for as an image folder, ``<name>/{train,test}/<class>/``, where its classes can
be the names of folders, and as prepared by TFDS, ``<name>/<version>/``. Where there is neither,
`PublishedDataset.load` prepares it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gnpcli.config.schema import DataConfig
from gnpcli.data.archives import places, tfds
from gnpcli.data.archives.facts import PublishedFacts, check_disjoint, split_names
from gnpcli.data.archives.fetch import Origin
from gnpcli.data.base import DataInfo, Dataset, DataSpec, Split
from gnpcli.data.images.layout import Layout, scan
from gnpcli.data.progress import ProgressListener
from gnpcli.data.validation import validation_counts
from gnpcli.errors import DataError

_FOLDER_SPLITS = {"train", "test"}
"""What an image folder of a published data set holds."""


@dataclass(frozen=True)
class Located:
    """Where a data set lies."""

    path: str
    format: str
    """``image folder``, or one of `gnpcli.data.archives.tfds.FORMATS`."""
    counts: dict[str, int] | None
    """Images of each split; None where they would have to be counted."""
    num_bytes: int | None
    """Size on disk; None where it would have to be counted."""


@dataclass(frozen=True, kw_only=True)
class PublishedDataset(PublishedFacts):
    """A data set that is described, found, prepared and loaded by its published facts."""

    def describe(self, config: DataConfig) -> DataInfo:
        """Answer `gnpcli.data.registry.describe_data` from the images, or the published sizes."""
        train, test = self._splits(config)
        folder = self._image_folder(config.dir, (*train, test))
        if folder is not None:
            return self._describe_folder(folder, config)
        prepared = self._prepared(config.dir, (*train, test))
        if prepared is None:
            counts = {split: sum(numbers) for split, numbers in self.class_counts.items()}
        else:
            counts = prepared.counts
        class_counts = self._training_class_counts(prepared, train, config.validation_fraction)
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

    def load(self, config: DataConfig, progress: ProgressListener | None = None) -> Dataset:
        """Return the splits found at `data.dir` or in a default place; prepare them where none are.

        An image folder goes before a prepared TFDS folder where both are there. It has no splits
        but ``train`` and ``test``.

        Raises:
            ConfigError: On splits that the data set does not have.
            DataError: If a folder with other classes is there, an image or record is bad, or the
                archives cannot be fetched or unpacked.
        """
        train, test = self._splits(config)
        folder = self._image_folder(config.dir, (*train, test))
        if folder is not None:
            return self._load_folder(folder, config, progress)
        prepared = self._prepared(config.dir, (*train, test))
        if prepared is None:
            origin = Origin.from_environment()
            located, _ = self.prepare(config.dir, (*train, test), origin, progress)
            prepared = tfds.examine(located.path, name=self.name, splits=(*train, test))
        return self._load_prepared(prepared, train, test, config, progress)

    def locate(
        self, directory: str | None, splits: Sequence[str] = ("train", "test")
    ) -> Located | None:
        """Return where the data set lies with `splits`; None where it does not.

        Raises:
            DataError: As `gnpcli.data.archives.tfds.find` and `gnpcli.data.archives.tfds.examine`.
        """
        folder = self._image_folder(directory, splits)
        if folder is not None:
            return Located(folder, "image folder", None, None)
        prepared = self._prepared(directory, splits)
        return None if prepared is None else _located(prepared)

    def prepare(
        self,
        directory: str | None,
        splits: Sequence[str],
        origin: Origin,
        progress: ProgressListener | None,
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
        from gnpcli.data.archives.prepare import prepare

        self.check_splits(splits, None)
        required = self.required_splits
        wanted = [split for split in self.class_counts if split in splits or split in required]
        found = self.locate(directory, wanted)
        if found is not None:
            return found, True
        prepared = prepare(self, places.target_dir(directory), wanted, origin, progress)
        return _located(prepared), False

    def _splits(self, config: DataConfig) -> tuple[tuple[str, ...], str]:
        """Return the splits to train on and the one to test on."""
        train = split_names(config.train_split or "train")
        test = config.test_split or "test"
        self.check_splits(train, "data.train_split")
        self.check_splits((test,), "data.test_split")
        check_disjoint(train, test)
        return train, test

    def _training_class_counts(
        self, prepared: tfds.Prepared | None, train: Sequence[str], validation_fraction: float
    ) -> list[int]:
        """Return the training images of each class, published or counted.

        Only a prepared part of a data set has to be counted, and only for validation.
        """
        published = [self.class_counts[split] for split in train]
        if prepared is not None and validation_fraction > 0:
            is_whole = all(
                prepared.counts[split] == sum(self.class_counts[split]) for split in train
            )
            if not is_whole:
                from gnpcli.data.archives.records import read_labels

                labels = read_labels(prepared, self._features(prepared), train).tolist()
                return [labels.count(label) for label in range(len(self.class_names))]
        return [sum(numbers) for numbers in zip(*published, strict=True)]

    def _image_folder(self, directory: str | None, splits: Sequence[str]) -> str | None:
        """Return the image folder that holds `splits`; None where there is none.

        A data set has none where a class could not be the name of a folder, or where the folders'
        order would not be that of the classes.
        """
        names = list(self.class_names)
        is_sorted = names == sorted(names)
        if not is_sorted or any("/" in name for name in names):
            return None
        if not _FOLDER_SPLITS.issuperset(splits):
            return None
        return places.image_folder(self.name, directory)

    def _prepared(self, directory: str | None, splits: Sequence[str]) -> tfds.Prepared | None:
        """Return the first prepared folder that holds `splits`.

        Returns None where there is no folder, and where only optional splits are missing.
        """
        found: list[tfds.Prepared] = []
        for place in places.candidates(self.name, directory):
            root = tfds.find(place)
            if root is None:
                continue
            prepared = tfds.examine(root, name=self.name)
            if prepared.holds(splits):
                return prepared
            found.append(prepared)
        required = [split for split in splits if split not in self.optional_splits]
        if found and not found[0].holds(required):
            tfds.check_splits(found[0], splits)
        return None

    def _features(self, prepared: tfds.Prepared) -> tfds.Features:
        """Return what the prepared examples hold, which has to be what is published."""
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

    def _load_prepared(
        self,
        prepared: tfds.Prepared,
        train: tuple[str, ...],
        test: str,
        config: DataConfig,
        progress: ProgressListener | None,
    ) -> Dataset:
        from gnpcli.data.archives.records import load_arrays
        from gnpcli.data.images.pixels import decoding

        arrays = load_arrays(
            prepared,
            self._features(prepared),
            groups={"train": train, "test": (test,)},
            image_size=config.image_size,
            decoding=decoding(config),
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
        return Dataset(
            spec,
            train=Split(arrays["train"], arrays["train_labels"]),
            validation=None,
            test=Split(arrays["test"], arrays["test_labels"]),
        )

    def _describe_folder(self, folder: str, config: DataConfig) -> DataInfo:
        from gnpcli.data.images.assemble import describe_layout

        return describe_layout(
            self._scan(folder, config),
            name=self.name,
            image_size=config.image_size,
            is_streamed=False,
            validation_fraction=config.validation_fraction,
        )

    def _load_folder(
        self, folder: str, config: DataConfig, progress: ProgressListener | None
    ) -> Dataset:
        from gnpcli.data.images.assemble import decoded_dataset
        from gnpcli.data.images.pixels import decoding

        dataset = decoded_dataset(
            self._scan(folder, config),
            name=self.name,
            image_size=config.image_size,
            decoding=decoding(config),
            progress=progress,
        )
        if dataset.spec.channels != self.channels:
            raise DataError(f"{folder} holds grey images only: {self.title} is in colour")
        if self.mean is None or self.std is None:
            return dataset
        return dataset.with_statistics(self.mean, self.std)

    def _scan(self, root: str, config: DataConfig) -> Layout:
        layout = scan(root, validation_fraction=config.validation_fraction)
        if layout.class_names == self.class_names:
            return layout
        missing = sorted(set(self.class_names) - set(layout.class_names))
        strange = sorted(set(layout.class_names) - set(self.class_names))
        what = f"it lacks {_few(missing)}" if missing else f"it also holds {_few(strange)}"
        raise DataError(
            f"{root}/train is not {self.title}: {what}; for other images use --dataset "
            f"folder:{root}"
        )


def _located(prepared: tfds.Prepared) -> Located:
    return Located(prepared.root, prepared.format, prepared.counts, prepared.num_bytes)


def _few(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > 10 else ""
    return ", ".join(names[:10]) + more
