"""What data there is: the registered sources, and what else TFDS has prepared in the places where
they are looked for.

Only names and small JSON files are read, so that the answer is quick also where a million images
lie.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

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
    """``bundled``, ``image folder``, or one of `gnpcli.data.archives.tfds.FORMATS`; None where it
    is absent.
    """
    num_bytes: int | None = None
    """What it takes on disk."""
    download_bytes: int | None = None
    """What preparing it would fetch, where it is absent."""
    problem: str | None = None
    """What is wrong with the folder that is there."""


def list_published(published: PublishedDataset, about: str, directory: str | None) -> Listing:
    """Return what is known of a published data set and where it lies, if it is present."""
    required = [split for split in published.class_counts if split not in published.optional_splits]
    try:
        found, problem = published.locate(directory, required), None
    except DataError as error:
        found, problem = None, str(error)
    counts = {split: sum(published.class_counts[split]) for split in required}
    archives = {
        archive.filename: archive.num_bytes
        for split in required
        for archive in published.archives[split]
    }
    return Listing(
        name=published.name,
        about=about,
        splits=counts if found is None or found.counts is None else found.counts,
        num_classes=len(published.class_names),
        image_size=published.image_size,
        channels=published.channels,
        where=found.path if found is not None else None,
        format=found.format if found is not None else None,
        num_bytes=found.num_bytes if found is not None else None,
        download_bytes=sum(archives.values()) if found is None else None,
        problem=problem,
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


def list_image_folder(
    name: str, about: str, where: str | None, published: DataInfo | None
) -> Listing:
    """Return what is known of a named source that is a folder of images, which may be a million and
    are not counted.

    Args:
        name: Of the source.
        about: What it is.
        where: The folder; None where it is absent.
        published: Its published sizes, where it is absent.
    """
    if where is not None or published is None:
        return Listing(name=name, about=about, where=where, format="image folder")
    return Listing(
        name=name,
        about=about,
        splits={"train": published.num_train, "val": published.num_test},
        num_classes=published.num_classes,
        channels=published.channels,
    )


def list_prepared(directory: str | None) -> list[Listing]:
    """Return the image classification sets that TFDS has prepared, as ``tfds:NAME``; others are
    left out.
    """
    found = []
    for name, root in sorted(prepared_names(directory).items()):
        try:
            prepared = tfds.examine(root, name=name.partition("/")[0])
            features = tfds.read_features(prepared)
        except DataError:
            continue
        height, width, channels = features.shape
        found.append(
            Listing(
                name=f"tfds:{name}",
                splits={split: count for split, count in prepared.counts.items() if count},
                num_classes=len(features.class_names),
                image_size=width if width == height else None,
                channels=channels,
                where=os.path.abspath(root),
                format=prepared.format,
                num_bytes=prepared.num_bytes,
            )
        )
    return found
