"""Data sources by name: check a `DataConfig`, describe what it names, load it.

Importing this module imports neither jax nor numpy; a source is imported when it is used. To add a
source, write one module with `describe` and `load` (see `SourceModule`) and add one line to
`SOURCES`.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, cast

from gnpcli.config.paths import expanded, is_url
from gnpcli.data.archives.places import data_dirs
from gnpcli.data.progress import ProgressListener
from gnpcli.errors import ConfigError, suggest

if TYPE_CHECKING:
    from gnpcli.config.schema import DataConfig
    from gnpcli.data.archives.fetch import Origin
    from gnpcli.data.archives.published import Located, PublishedDataset
    from gnpcli.data.base import DataInfo, Dataset, DataSpec, FileSplit, Split
    from gnpcli.data.listing import Listing


class SourceModule(Protocol):
    """What a source's module holds."""

    def describe(self, config: DataConfig) -> DataInfo | None:
        """Answer `describe_data` for this source. The registry puts `config.name` in."""

    def load(self, config: DataConfig, progress: ProgressListener | None) -> Dataset:
        """Read the images of all splits. The registry puts `config.name` in.

        `load_dataset` sets `validation_fraction` aside afterwards. A source with a validation split
        of its own refuses that key itself.
        """


class FilesModule(SourceModule, Protocol):
    """What the module of a source holds that is a folder of image files."""

    def load_held_out(
        self, config: DataConfig, split: str, like: DataSpec, progress: ProgressListener | None
    ) -> tuple[DataSpec, Split | FileSplit] | None:
        """Answer `load_held_out` for this source."""


@dataclass(frozen=True)
class SourceEntry:
    """One line of the registry."""

    module: str
    """Module with `describe` and `load`, imported at first use."""
    about: str
    """What a listing says."""
    takes_dir: bool = False
    """Whether `data.dir` means anything to it."""
    takes_splits: bool = False
    """Whether it has named splits: `data.train_split` and `data.test_split`."""
    takes_files: bool = False
    """Whether it is a folder of image files: `data.stream` and `data.val_labels`.

    Its module is a `FilesModule`.
    """
    argument: str = ""
    """What stands behind the colon of ``scheme:WORD``, in words."""
    by_hand: str | None = None
    """What a person has to do to have it.

    None where the module has a `PUBLISHED` that is downloaded and prepared.
    """


SOURCES: dict[str, SourceEntry] = {
    "digits": SourceEntry(
        "gnpcli.data.sources.digits",
        "handwritten digits, bundled with gnp",
        by_hand="it is bundled with gnp: nothing to do",
    ),
    "cifar10": SourceEntry(
        "gnpcli.data.sources.cifar10",
        "photographs in 10 classes",
        takes_dir=True,
        takes_splits=True,
    ),
    "cifar100": SourceEntry(
        "gnpcli.data.sources.cifar100",
        "photographs in 100 classes",
        takes_dir=True,
        takes_splits=True,
    ),
    "svhn_cropped": SourceEntry(
        "gnpcli.data.sources.svhn_cropped", "house numbers, SVHN", takes_dir=True, takes_splits=True
    ),
    "fashion_mnist": SourceEntry(
        "gnpcli.data.sources.fashion_mnist",
        "pictures of clothes",
        takes_dir=True,
        takes_splits=True,
    ),
    "imagenet": SourceEntry(
        "gnpcli.data.sources.imagenet",
        "photographs in 1,000 classes, full size",
        takes_dir=True,
        takes_files=True,
        by_hand="it takes an account at https://image-net.org: unpack ILSVRC2012_img_train.tar, "
        "and the tar of each class in it, to DIR/train/<wnid>/*.JPEG, and ILSVRC2012_img_val.tar "
        "to DIR/val/<wnid>/*.JPEG or, with data.val_labels, to DIR/val/*.JPEG; then give "
        "--data-dir DIR",
    ),
    "folder:DIR": SourceEntry(
        "gnpcli.data.sources.folder",
        "your own images: DIR/train/<class>/ and DIR/test/<class>/ or DIR/val/<class>/",
        takes_files=True,
        argument="directory",
        by_hand="it is read as it is: put images into DIR/train/<class>/ and DIR/test/<class>/",
    ),
    "tfds:NAME": SourceEntry(
        "gnpcli.data.sources.tfds_any",
        "an image classification set that TFDS has prepared",
        takes_dir=True,
        takes_splits=True,
        argument="data set",
        by_hand="it is read where TFDS has prepared it; where TensorFlow is installed, `tfds build "
        "NAME --file_format=array_record` does so",
    ),
    "arrays:NAME": SourceEntry(
        "gnpcli.data.sources.arrays",
        "NumPy arrays of a Python program of yours (docs/library.md)",
        argument="data set",
        by_hand="it is what a Python program gave to gnpcli.engine.train",
    ),
}
"""Sources by name. ``scheme:WORD`` stands for every name that begins with ``scheme:``."""


def check_data(config: DataConfig) -> None:
    """Check that `config` names a source and gives it what it needs. Reads no file.

    Raises:
        ConfigError: On an unknown name (``data.name``, with the choices and the closest one), a
            scheme without its argument, or a key of the data section that the source has no use for
            (`SourceEntry`).
    """
    _entry(config)


def can_stream(config: DataConfig) -> bool:
    """Return whether `data.stream` means anything to the source of `config`."""
    return _entry(config).takes_files


def describe_data(config: DataConfig) -> DataInfo | None:
    """Return how much data `config` names; None where it is absent and nothing is known of it.

    No image is decoded and nothing is downloaded. A source with published sizes answers with them
    where no images are present (`DataInfo.present` is False then).

    Raises:
        ConfigError: As `check_data`, or on a `validation_fraction` that the data cannot serve.
        DataError: On a folder that `load_dataset` would refuse, as far as its names and file sizes
            show it.
    """
    info = _module(config).describe(config)
    return None if info is None else replace(info, name=config.name)


def load_dataset(config: DataConfig, progress: ProgressListener | None = None) -> Dataset:
    """Load all splits, decoded into memory or as names of files to stream.

    Where `config.validation_fraction` is above 0, it is set aside of every training class. Where
    `config.mean` and `config.std` are given, they replace the statistics.

    Args:
        config: Names the source; `batch_size` and `augment` play no part here.
        progress: Called while images are fetched, prepared or decoded. It is not called for what is
            bundled or found in the cache.

    Raises:
        ConfigError: As `describe_data`.
        DataError: If images are missing and cannot be fetched, are unreadable, or differ in size.
    """
    dataset = _module(config).load(config, progress)
    named = replace(dataset, spec=replace(dataset.spec, name=config.name))
    return as_configured(named, config)


def load_held_out(
    config: DataConfig, split: str, like: DataSpec, progress: ProgressListener | None = None
) -> tuple[DataSpec, Split | FileSplit] | None:
    """Load one split of a data set that has no training images, to evaluate a trained model on.

    Args:
        config: Names the data set.
        split: ``test`` or ``val``.
        like: What the model was trained on.
        progress: As of `load_dataset`.

    Returns:
        `like` with the name, the classes and the image size of the split, and the split with labels
        of those classes. None where `load_dataset` is to be asked: there are training images, or
        the source does not do without.

    Raises:
        DataError: As `load_dataset`, or if there is no such split.
    """
    if not _entry(config).takes_files:
        return None
    module = cast(FilesModule, _module(config))
    return module.load_held_out(config, split, replace(like, name=config.name), progress)


def as_configured(dataset: Dataset, config: DataConfig) -> Dataset:
    """Return a data set with the statistics and the validation split that `config` asks for.

    It also has its fingerprint, that of all images before the split.

    Raises:
        ConfigError: `config.mean` is of another number of channels, or `config.validation_fraction`
            is too small, or above 0 for a data set with a validation split.
    """
    from gnpcli.data.validation import carve_validation

    dataset = dataset.identified()
    if config.mean is not None and config.std is not None:
        dataset = dataset.with_statistics(config.mean, config.std)
    if config.validation_fraction > 0 and dataset.validation is not None:
        raise ConfigError(
            f"{dataset.spec.name} has a validation split of its own: set data.validation_fraction "
            "to 0",
            key="data.validation_fraction",
        )
    if config.validation_fraction > 0:
        dataset = carve_validation(dataset, config.validation_fraction)
    return dataset


def list_sources(directory: str | None) -> list[Listing]:
    """Return every source of the registry, and what else TFDS has prepared.

    Only names and small files are read.

    Args:
        directory: `data.dir`; None looks in the default places.
    """
    from gnpcli.data.listing import list_prepared

    rows = [_list_source(name, entry, directory) for name, entry in SOURCES.items()]
    names = {row.name for row in rows}
    for row in list_prepared(directory):
        if row.name.removeprefix("tfds:") not in names:
            rows.append(row)
    return rows


def _list_source(name: str, entry: SourceEntry, directory: str | None) -> Listing:
    """Return what is known of one source from names and small files."""
    from gnpcli.config.schema import DataConfig
    from gnpcli.data import listing
    from gnpcli.data.archives.places import image_folder

    if ":" in name:
        return listing.Listing(name=name, about=entry.about)
    if entry.by_hand is None:
        return listing.list_published(_published(entry), entry.about, directory)
    if not entry.takes_files:
        return listing.list_bundled(describe_data(DataConfig(name=name)), entry.about)
    where = image_folder(name, directory)
    if where is not None:
        return listing.Listing(name=name, about=entry.about, where=where, format="image folder")
    info = describe_data(DataConfig(name=name, dir=directory))
    return listing.list_absent_folder(name, entry.about, info)


def list_published(name: str, directory: str | None) -> Listing | None:
    """Return what is known of a published data set and where it lies; None for any other source.

    Args:
        name: As in `data.name`.
        directory: `data.dir`; None looks in the default places.
    """
    entry = SOURCES.get(name)
    if entry is None or entry.by_hand is not None:
        return None
    return _list_source(name, entry, directory)


def prepare_source(
    name: str,
    directory: str | None,
    splits: str | None,
    origin: Origin,
    progress: ProgressListener | None,
) -> tuple[Located, bool]:
    """Download and prepare a data set, unless it is there.

    Args:
        name: As in `data.name`.
        directory: `data.dir`; None takes the default places.
        splits: Further splits, joined by ``+``; None takes none.
        origin: Where archives come from.
        progress: Told of downloads and of the images written.

    Returns:
        Where it lies, and whether it was there already.

    Raises:
        ConfigError: If it is no source, has no such splits, or is not prepared here. The message
            says what to do by hand.
        DataError: If it cannot be fetched, unpacked or written.
    """
    from gnpcli.config.schema import DataConfig
    from gnpcli.data.archives.facts import split_names

    entry = _entry(DataConfig(name=name))
    if entry.by_hand is not None:
        raise ConfigError(f"{name} cannot be prepared for you: {entry.by_hand}")
    more = split_names(splits) if splits else ()
    return _published(entry).prepare(directory, more, origin, progress)


def _entry(config: DataConfig) -> SourceEntry:
    """Return the entry of `config`'s source; errors as `check_data`."""
    entry = SOURCES.get(config.name)
    if entry is None or ":" in config.name:
        entry = _entry_of_scheme(config.name, config.dir)
    if config.dir is not None and not entry.takes_dir:
        is_scheme = ":" in config.name
        remedy = "the folder is part of the name" if is_scheme else "it is not read from a folder"
        raise ConfigError(
            f"data.dir is not used by {config.name!r}: {remedy}; leave it out", key="data.dir"
        )
    for_splits = (entry.takes_splits, "data sets of TFDS")
    for_files = (entry.takes_files, "folders of images")
    _refuse("train_split", config.train_split, config.name, *for_splits)
    _refuse("test_split", config.test_split, config.name, *for_splits)
    _refuse("val_labels", config.val_labels, config.name, *for_files)
    _refuse("stream", config.stream, config.name, *for_files)
    return entry


def _refuse(key: str, value: str | bool | None, name: str, is_taken: bool, takers: str) -> None:
    """Refuse a key that is set though the source has no use for it.

    ``stream: false`` is what every other source does, and no value is an empty text: what is false
    is as good as not set.
    """
    if value and not is_taken:
        raise ConfigError(
            f"data.{key} is for {takers}, not for {name!r}: leave it out", key=f"data.{key}"
        )


def _entry_of_scheme(name: str, directory: str | None) -> SourceEntry:
    """Return the entry of a name such as ``folder:DIR``."""
    scheme, _, argument = name.partition(":")
    for known, entry in SOURCES.items():
        if ":" in known and known.partition(":")[0] == scheme:
            if not argument.strip():
                raise ConfigError(
                    f"{name!r} names no {entry.argument}: write {known}", key="data.name"
                )
            return entry
    hint = suggest(name, SOURCES) or _folder_hint(name, directory)
    raise ConfigError(
        f"unknown data set {name!r}{hint} (choices: {', '.join(SOURCES)})", key="data.name"
    )


def _folder_hint(name: str, directory: str | None) -> str:
    """Return what to write for a name that is a folder; nothing where it is none."""
    if not is_url(name) and os.path.isdir(expanded(name, "data.name")):
        return f" - did you mean 'folder:{name}'?"
    if name and any(os.path.isdir(os.path.join(place, name)) for place in data_dirs(directory)):
        return f" - did you mean 'tfds:{name}'?"
    return ""


def _module(config: DataConfig) -> SourceModule:
    return cast(SourceModule, importlib.import_module(_entry(config).module))


def _published(entry: SourceEntry) -> PublishedDataset:
    return cast("PublishedDataset", importlib.import_module(entry.module).PUBLISHED)
