"""What data there is: the registered sources, and what else TFDS has prepared.

Only names and small JSON files are read. The answer is quick also where a million images lie.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from gnpcli.data.archives import tfds
from gnpcli.data.archives.published import PublishedDataset
from gnpcli.data.base import DataInfo
from gnpcli.data.sources.tfds_any import prepared_names
from gnpcli.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Listing:
    """One data set. What is None is not known without counting, or does not apply."""

    name: str
    """As in `data.name`."""
    about: str = ""
    splits: dict[str, int] | None = None
    """Images of each split: of those that are present, else as published."""
    num_classes: int | None = None
    image_size: int | None = None
    channels: int | None = None
    where: str | None = None
    """Folder where it lies; None where it is absent, or is no folder."""
    format: str | None = None
    """``bundled``, ``image folder``, or one of `gnpcli.data.archives.tfds.FORMATS`.

    None where the data is absent.
    """
    num_bytes: int | None = None
    """What it takes on disk."""
    download_bytes: int | None = None
    """What preparing it would fetch, where it is absent."""
    problem: str | None = None
    """What is wrong with the folder that is there."""


def list_published(published: PublishedDataset, about: str, directory: str | None) -> Listing:
    """Return what is known of a published data set and where it lies, if it is present."""
    required = published.required_splits
    found, problem = None, None
    try:
        found = published.locate(directory, required)
    except DataError as error:
        problem = str(error)
    listing = Listing(
        name=published.name,
        about=about,
        splits={split: sum(published.class_counts[split]) for split in required},
        num_classes=len(published.class_names),
        image_size=published.image_size,
        channels=published.channels,
        problem=problem,
    )
    if found is None:
        archives = published.archives_of(required)
        return replace(listing, download_bytes=sum(archive.num_bytes for archive in archives))
    return replace(
        listing,
        splits=found.counts or listing.splits,
        where=found.path,
        format=found.format,
        num_bytes=found.num_bytes,
    )


def list_bundled(info: DataInfo | None, about: str) -> Listing:
    """Return what is known of a data set that comes with the package."""
    assert info is not None
    return Listing(
        name=info.name,
        about=about,
        splits={"train": info.num_train, "test": info.num_test},
        num_classes=info.num_classes,
        image_size=info.image_size,
        channels=info.channels,
        format="bundled",
    )


def list_absent_folder(name: str, about: str, published: DataInfo | None) -> Listing:
    """Return what is published of an image folder that is absent.

    Args:
        name: As in `data.name`.
        about: What it is.
        published: Its sizes; None where they are not known.
    """
    if published is None:
        return Listing(name=name, about=about)
    return Listing(
        name=name,
        about=about,
        splits={"train": published.num_train, "val": published.num_test},
        num_classes=published.num_classes,
        channels=published.channels,
    )


def list_prepared(directory: str | None) -> list[Listing]:
    """Return the image classification sets that TFDS has prepared, as ``tfds:NAME``.

    Other sets, and those that cannot be read, are left out.
    """
    found = []
    for name, root in sorted(prepared_names(directory).items()):
        try:
            found.append(_list_prepared_folder(name, root))
        except DataError:
            continue
    return found


def _list_prepared_folder(name: str, root: str) -> Listing:
    prepared = tfds.examine(root, name=name.partition("/")[0])
    features = tfds.read_features(prepared)
    height, width, channels = features.shape
    return Listing(
        name=f"tfds:{name}",
        splits={split: count for split, count in prepared.counts.items() if count},
        num_classes=len(features.class_names),
        image_size=width if width == height else None,
        channels=channels,
        where=os.path.abspath(root),
        format=prepared.format,
        num_bytes=prepared.num_bytes,
    )
