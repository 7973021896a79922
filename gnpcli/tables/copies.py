"""Which published data sets a table was run on in a copy of images."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from gnpcli.config.schema import RunConfig
from gnpcli.terminal.words import listing

_LOSSY = {"jpg", "jpeg"}


def data_copies(configs: Iterable[RunConfig]) -> list[str]:
    """Say which published data sets were read from a folder of images.

    Such a copy may hold other pixels than the original. Where the folder is not here any more, that
    is said: a result must not pass for more than is known of it.
    """
    places = {(config.data.name, config.data.dir or "") for config in configs}
    lines = [_copy(name, directory) for name, directory in sorted(places)]
    return [line for line in lines if line is not None]


def _copy(name: str, directory: str) -> str | None:
    """Return what is to be said about a data set.

    None where it is the original, and where it is no published one.
    """
    from gnpcli.data.registry import list_published

    found = list_published(name, directory or None)
    if found is None:
        return None
    if found.where is None:
        return f"data: {name} is not on this machine now, so that its copy cannot be told"
    if found.format != "image folder":
        return None
    kinds = _suffixes(Path(found.where))
    files = listing(sorted(kinds)) or "image"
    lossy = ", re-encoded with losses" if kinds & _LOSSY else ""
    return f"data: a copy of {name} in a folder of {files} files{lossy}"


def _suffixes(folder: Path) -> set[str]:
    """Return the kinds of files in the first class of a folder of images."""
    classes = (path for path in (folder / "train").iterdir() if path.is_dir())
    first = next(classes, None)
    if first is None:
        return set()
    suffixes = {Path(name).suffix.lower() for name in os.listdir(first)[:100]}
    return {suffix.removeprefix(".") for suffix in suffixes if suffix}
