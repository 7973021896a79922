"""Where named data sets are looked for, and where missing ones are put. No file is opened."""

from __future__ import annotations

import os

from gnpcli.config.paths import expanded, expanded_variable


def data_dirs(directory: str | None) -> list[str]:
    """Return the folders in which data sets lie under their names, in the order of looking.

    Args:
        directory: `data.dir`. None stands for the default places: ``$GNP_DATA_DIR``, ``./data``,
            ``$TFDS_DATA_DIR``, and the folder that TFDS uses by default. A variable that is not set
            stands for none.
    """
    if directory is not None:
        return [expanded(directory, "data.dir")]
    found = [
        expanded_variable("GNP_DATA_DIR"),
        "data",
        expanded_variable("TFDS_DATA_DIR"),
        _tfds_default(),
    ]
    return list(dict.fromkeys(place for place in found if place))


def candidates(name: str, directory: str | None) -> list[str]:
    """Return the folders that may hold the data set `name`; `data.dir` may itself be one."""
    below = [os.path.join(place, name) for place in data_dirs(directory)]
    return below if directory is None else [expanded(directory, "data.dir"), *below]


def target_dir(directory: str | None) -> str:
    """Return the one of `data_dirs` in which missing data sets are prepared; it need not exist."""
    if directory is not None:
        return expanded(directory, "data.dir")
    own, shared = expanded_variable("GNP_DATA_DIR"), expanded_variable("TFDS_DATA_DIR")
    return own or shared or _tfds_default()


def image_folder(name: str, directory: str | None, split: str = "train") -> str | None:
    """Return the first of `candidates` that holds a split of an image folder; None without one."""
    for place in candidates(name, directory):
        if os.path.isdir(os.path.join(place, split)):
            return place
    return None


def _tfds_default() -> str:
    return expanded("~/tensorflow_datasets")
