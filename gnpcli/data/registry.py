"""Data sources by name: check a `DataConfig`, describe what it names, load it.

Importing this package imports neither jax nor numpy; a source is imported when it is used. The
types are in `gnpcli.data.base`, the batches in `gnpcli.data.feeds.memory`. Adding a source is one
module with `describe` and `load` (see `SourceModule`) and one line of `SOURCES`.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from gnpcli.data.archives.places import data_dirs
from gnpcli.data.progress import Progress
from gnpcli.errors import ConfigError, suggest

if TYPE_CHECKING:
    from gnpcli.config.schema import DataConfig
    from gnpcli.data.archives.fetch import Origin
    from gnpcli.data.archives.published import Located, PublishedDataset
    from gnpcli.data.base import DataInfo, Dataset
    from gnpcli.data.listing import Listing


class SourceModule(Protocol):
    """What a source's module holds."""

    def describe(self, config: DataConfig) -> DataInfo | None:
        """Answer `gnpcli.data.registry.describe` for this source."""

    def load(self, config: DataConfig, progress: Progress | None) -> Dataset:
        """Read the images. A source with a validation split of its own refuses
        `validation_fraction` itself.
        """


@dataclass(frozen=True)
class Source:
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
    """Whether it is a folder of image files: `data.stream` and `data.val_labels`."""
    by_hand: str | None = None
    """What a person has to do to have it; None where the module has a `PUBLISHED` that is
    downloaded and prepared.
    """


SOURCES: dict[str, Source] = {
    "digits": Source(
        "gnpcli.data.sources.digits",
        "handwritten digits, bundled with gnp",
        by_hand="it is bundled with gnp: nothing to do",
    ),
    "cifar10": Source(
        "gnpcli.data.sources.cifar10",
        "photographs in 10 classes",
        takes_dir=True,
        takes_splits=True,
    ),
    "cifar100": Source(
        "gnpcli.data.sources.cifar100",
        "photographs in 100 classes",
        takes_dir=True,
        takes_splits=True,
    ),
    "svhn_cropped": Source(
        "gnpcli.data.sources.svhn_cropped", "house numbers, SVHN", takes_dir=True, takes_splits=True
    ),
    "fashion_mnist": Source(
        "gnpcli.data.sources.fashion_mnist",
        "pictures of clothes",
        takes_dir=True,
        takes_splits=True,
    ),
    "imagenet": Source(
        "gnpcli.data.sources.imagenet",
        "photographs in 1,000 classes, full size",
        takes_dir=True,
        takes_files=True,
        by_hand="it takes an account at https://image-net.org: unpack ILSVRC2012_img_train.tar, and the tar of each "
        "class in it, to DIR/train/<wnid>/*.JPEG, and ILSVRC2012_img_val.tar to "
        "DIR/val/<wnid>/*.JPEG or, with "
        "data.val_labels, to DIR/val/*.JPEG; then give --data-dir DIR",
    ),
    "folder:DIR": Source(
        "gnpcli.data.sources.folder",
        "your own images: DIR/train/<class>/ and DIR/test/<class>/ or DIR/val/<class>/",
        takes_files=True,
        by_hand="it is read as it is: put images into DIR/train/<class>/ and DIR/test/<class>/",
    ),
    "tfds:NAME": Source(
        "gnpcli.data.sources.tfds_any",
        "an image classification set that TFDS has prepared",
        takes_dir=True,
        takes_splits=True,
        by_hand="it is read where TFDS has prepared it; where TensorFlow is installed, `tfds build NAME "
        "--file_format=array_record` does so",
    ),
}
"""Sources by name. ``scheme:WORD`` stands for every name that begins with ``scheme:`` and goes on.
"""


def check_data(config: DataConfig) -> None:
    """Check that `config` names a source and gives it what it needs. Reads no file.

    Raises:
        ConfigError: On an unknown name (``data.name``, with the choices and the closest one), a
            scheme without its argument, or a key of the data section that the source has no use for
            (`Source`).
    """
    _source(config)


def describe(config: DataConfig) -> DataInfo | None:
    """Say how much data `config` names, without decoding images; None where the data is absent and
    nothing is known.

    A source with published sizes answers from them where no images are present (`DataInfo.present`
    is then False). Nothing is ever downloaded here.

    Raises:
        ConfigError: As `check_data`; also a `validation_fraction` that the data cannot serve.
        DataError: A folder that `load_dataset` would refuse, as far as its names and file sizes
            show it.
    """
    return _module(config).describe(config)


def load_dataset(config: DataConfig, progress: Progress | None = None) -> Dataset:
    """Load all splits into memory; sets `config.validation_fraction` of every training class aside
    where it is not 0.

    Args:
        config: Names the source; `batch_size` and `augment` play no part here.
        progress: Called while images are fetched, prepared or decoded; not for what is bundled or
            found in the cache.

    Raises:
        ConfigError: As `describe`.
        DataError: Images that are missing and cannot be fetched, unreadable, or of different sizes.
    """
    from gnpcli.data.validation import carve_validation

    dataset = _module(config).load(config, progress)
    if config.mean is not None and config.std is not None:
        dataset = dataset.with_statistics(config.mean, config.std)
    return (
        carve_validation(dataset, config.validation_fraction)
        if config.validation_fraction
        else dataset
    )


def list_sources(directory: str | None) -> list[Listing]:
    """Return every source of the registry and what else TFDS has prepared, from names and small
    files alone.

    Args:
        directory: `data.dir`; None looks in the default places.
    """
    from gnpcli.config.schema import DataConfig
    from gnpcli.data import listing
    from gnpcli.data.archives import places

    rows = []
    for name, source in SOURCES.items():
        if ":" in name:
            rows.append(listing.Listing(name=name, about=source.about))
        elif source.by_hand is None:
            rows.append(listing.list_published(_published(source), source.about, directory))
        elif source.takes_files:
            where = places.image_folder(name, directory)
            published = describe(DataConfig(name=name, dir=directory)) if where is None else None
            rows.append(listing.list_image_folder(name, source.about, where, published))
        else:
            rows.append(listing.list_bundled(describe(DataConfig(name=name)), source.about))
    names = {row.name for row in rows}
    return rows + [
        row
        for row in listing.list_prepared(directory)
        if row.name.removeprefix("tfds:") not in names
    ]


def list_published(name: str, directory: str | None) -> Listing | None:
    """Return what is known of one published data set and where it lies; None for every other
    source.

    Args:
        name: As in `data.name`.
        directory: `data.dir`; None looks in the default places.
    """
    from gnpcli.data import listing

    source = SOURCES.get(name)
    if source is None or source.by_hand is not None:
        return None
    return listing.list_published(_published(source), source.about, directory)


def prepare_source(
    name: str, directory: str | None, splits: str | None, origin: Origin, progress: Progress | None
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
        ConfigError: If it is no source, has no such splits, or is not prepared here, with what to
            do by hand.
        DataError: If it cannot be fetched, unpacked or written.
    """
    from gnpcli.config.schema import DataConfig
    from gnpcli.data.archives.facts import split_names

    source = _source(DataConfig(name=name))
    if source.by_hand is not None:
        raise ConfigError(f"{name} cannot be prepared for you: {source.by_hand}")
    return _published(source).prepare(
        directory, split_names(splits) if splits else (), origin, progress
    )


def _source(config: DataConfig) -> Source:
    name = config.name
    source = SOURCES.get(name) if ":" not in name else None
    if source is None:
        source = _scheme(name, config.dir)
    if config.dir is not None and not source.takes_dir:
        remedy = "the folder is part of the name" if ":" in name else f"{name} is bundled with gnp"
        raise ConfigError(
            f"data.dir is not used by {name!r}: {remedy}; leave it out", key="data.dir"
        )
    for key, is_taken, takers in (
        ("train_split", source.takes_splits, "data sets of TFDS"),
        ("test_split", source.takes_splits, "data sets of TFDS"),
        ("val_labels", source.takes_files, "folders of images"),
        ("stream", source.takes_files, "folders of images"),
    ):
        if getattr(config, key) and not is_taken:  # stream: false is what they do
            raise ConfigError(
                f"data.{key} is for {takers}, not for {name!r}: leave it out", key=f"data.{key}"
            )
    return source


def _scheme(name: str, directory: str | None) -> Source:
    schemes = {known.partition(":")[0]: known for known in SOURCES if ":" in known}
    scheme, _, argument = name.partition(":")
    if scheme in schemes:
        known = schemes[scheme]
        if not argument.strip():
            what = {"DIR": "directory", "NAME": "data set"}[known.partition(":")[2]]
            raise ConfigError(f"{name!r} names no {what}: write {known}", key="data.name")
        return SOURCES[known]
    hint = suggest(name, SOURCES)
    if not hint and os.path.isdir(os.path.expanduser(name)):
        hint = f" - did you mean 'folder:{name}'?"
    elif not hint and any(
        name and os.path.isdir(os.path.join(place, name)) for place in data_dirs(directory)
    ):
        hint = f" - did you mean 'tfds:{name}'?"
    raise ConfigError(
        f"unknown data set {name!r}{hint} (choices: {', '.join(SOURCES)})", key="data.name"
    )


def _module(config: DataConfig) -> SourceModule:
    return cast(SourceModule, importlib.import_module(_source(config).module))


def _published(source: Source) -> PublishedDataset:
    return cast("PublishedDataset", importlib.import_module(source.module).PUBLISHED)
