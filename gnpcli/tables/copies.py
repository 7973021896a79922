"""Which published data sets a table was run on in a copy of images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from gnpcli.config import RunConfig
from gnpcli.terminal.words import listing

if TYPE_CHECKING:
    from gnpcli.data.listing import Listing


def data_copies(configs: Iterable[RunConfig]) -> list[str]:
    """Say which published data sets were read from a folder of images.

    Such a copy may hold other pixels than the original. Where the folder is not here any more, that
    is said: a result must not pass for more than is known of it.
    """
    from gnpcli.data.registry import list_published

    names = sorted({(config.data.name, config.data.dir or "") for config in configs})
    lines = []
    for name, directory in names:
        found = list_published(name, directory or None)
        line = None if found is None else _copy_text(name, found)
        if line is not None:
            lines.append(line)
    return lines


def _copy_text(name: str, found: Listing) -> str | None:
    """Return what is to be said about a published data set; None where it is the original."""
    if found.where is None:
        return f"data: {name} is not on this machine now, so that its copy cannot be told"
    if found.format != "image folder":
        return None
    kinds = _suffixes(found.where)
    files = listing(kinds) or "image"
    lossy = ", re-encoded with losses" if {"jpg", "jpeg"} & set(kinds) else ""
    return f"data: a copy of {name} in a folder of {files} files{lossy}"


def _suffixes(folder: str) -> Sequence[str]:
    """Return the kinds of files in the first class of a folder of images."""
    with os.scandir(os.path.join(folder, "train")) as entries:
        first = next((entry.path for entry in entries if entry.is_dir()), None)
    names = os.listdir(first)[:100] if first else []
    return sorted({name.rpartition(".")[2].lower() for name in names if "." in name})
