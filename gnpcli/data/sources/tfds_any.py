"""``tfds:NAME`` or ``tfds:NAME/CONFIG``: an image classification set that TFDS has prepared.

    DATA_DIR/NAME[/CONFIG]/<version>/

It is held in memory, trained on ``train`` and tested on ``test``, or on ``validation`` where there
is no ``test``. `data.train_split` and `data.test_split` name others. Where both ``test`` and
``validation`` are there, ``validation`` is the validation split. Images are normalised by the
channel statistics of those trained on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from gnpcli.config.schema import DataConfig
from gnpcli.data.archives import places, tfds
from gnpcli.data.archives.facts import check_disjoint, split_names
from gnpcli.data.base import DataInfo, Dataset, DataSpec, Split
from gnpcli.data.progress import ProgressListener
from gnpcli.data.validation import validation_counts
from gnpcli.errors import ConfigError, DataError, suggest

Groups = dict[str, tuple[str, ...]]
"""The splits of a folder under the names of `gnpcli.data.base.Dataset`."""


def describe(config: DataConfig) -> DataInfo | None:
    """Answer `gnpcli.data.registry.describe_data` from dataset_info.json.

    The records are read for what that file does not tell: the number of images of each class, and
    the size of images of several sizes.
    """
    from gnpcli.data.archives.records import first_size

    name = _name(config)
    root = _find(name, config.dir)
    if root is None:
        return None
    prepared, groups = _groups(root, config)
    features = tfds.read_features(prepared)
    counts: dict[str, int] = {}
    for group, splits in groups.items():
        counts[group] = sum(prepared.counts[split] for split in splits)
    num_carved = _num_carved(prepared, features, groups["train"], config.validation_fraction)
    image_size = config.image_size or features.shape[1]
    if image_size is None:
        image_size, _ = first_size(prepared, groups["train"][0])
    return DataInfo(
        name=config.name,
        num_train=counts["train"] - num_carved,
        num_validation=counts.get("validation", 0) + num_carved,
        num_test=counts.get("test", 0),
        image_size=image_size,
        channels=features.shape[2],
        num_classes=len(features.class_names),
        present=True,
    )


def _num_carved(
    prepared: tfds.Prepared,
    features: tfds.Features,
    splits: Sequence[str],
    validation_fraction: float,
) -> int:
    """Return how many training images are set aside for validation."""
    if validation_fraction == 0:
        return 0
    from gnpcli.data.archives.records import read_labels

    labels = read_labels(prepared, features, splits).tolist()
    class_counts = [labels.count(label) for label in range(len(features.class_names))]
    return sum(validation_counts(class_counts, validation_fraction))


def load(config: DataConfig, progress: ProgressListener | None = None) -> Dataset:
    """Return the splits of the prepared folder found at `data.dir` or in a default place.

    Raises:
        ConfigError: On splits that the data set does not have.
        DataError: If nothing is there, it is no image classification set, its images are not
            squares of one size and `image_size` is null, or a record is bad.
    """
    from gnpcli.data.archives.records import load_arrays
    from gnpcli.data.images.pixels import decoding

    name = _name(config)
    root = _find(name, config.dir)
    if root is None:
        raise _absent(name, config.dir)
    prepared, groups = _groups(root, config)
    features = tfds.read_features(prepared)
    arrays = load_arrays(
        prepared,
        features,
        groups=groups,
        image_size=config.image_size,
        decoding=decoding(config),
        progress=progress,
    )
    mean, std = arrays["statistics"].tolist()
    spec = DataSpec(
        name=config.name,
        class_names=features.class_names,
        image_size=arrays["train"].shape[1],
        channels=features.shape[2],
        mean=tuple(mean),
        std=tuple(std),
    )
    splits = {group: Split(arrays[group], arrays[f"{group}_labels"]) for group in groups}
    return Dataset(spec, splits["train"], splits.get("validation"), splits.get("test"))


def prepared_names(directory: str | None) -> dict[str, str]:
    """Return the folders that are laid out as by TFDS, by ``NAME[/CONFIG]``.

    They are looked for in `gnpcli.data.archives.places.data_dirs`.
    """
    found: dict[str, str] = {}
    for place in places.data_dirs(directory):
        for name in _folders(place):
            inner = _folders(os.path.join(place, name))
            for candidate in (name, *(f"{name}/{config}" for config in inner)):
                root = _prepared_root(os.path.join(place, candidate))
                if root is not None:
                    found.setdefault(candidate, root)
    return found


def _prepared_root(place: str) -> str | None:
    """Return the newest version of the data set in a folder; None where there is none.

    A version is a folder of its data set, and no configuration of it.
    """
    try:
        root = tfds.find(place)
    except DataError:
        return None
    return None if root == place else root


def _name(config: DataConfig) -> str:
    return config.name.partition(":")[2].strip().strip("/")


def _find(name: str, directory: str | None) -> str | None:
    for place in places.candidates(name, directory):
        root = tfds.find(place)
        if root is not None:
            return root
    return None


def _absent(name: str, directory: str | None) -> DataError:
    there = prepared_names(directory)
    configs = [f"tfds:{known}" for known in there if known.startswith(f"{name}/")]
    if configs:
        return DataError(f"tfds:{name} has to be one of {', '.join(configs)}")
    where = " or ".join(places.candidates(name, directory))
    known = f" (there: {', '.join(sorted(there))})" if there else ""
    return DataError(
        f"no data set prepared by TFDS in {where}{suggest(name, there)}{known}: give its data_dir "
        "with --data-dir (data.dir)"
    )


def _groups(root: str, config: DataConfig) -> tuple[tfds.Prepared, Groups]:
    """Return the prepared folder and its splits."""
    prepared = tfds.examine(root, name=_name(config).partition("/")[0])
    train = split_names(config.train_split or "train")
    test = config.test_split or _default_test(prepared, train)
    _check_splits(prepared, train, config.name, "data.train_split")
    groups: Groups = {"train": train}
    if test is not None:
        _check_splits(prepared, (test,), config.name, "data.test_split")
        check_disjoint(train, test)
        groups["test"] = (test,)
    elif config.validation_fraction == 0:
        raise DataError(
            f"{root} has no held-out split: set data.test_split, or data.validation_fraction to "
            "hold out a share"
        )
    if prepared.holds(["validation"]) and "validation" not in (*train, test):
        if config.validation_fraction > 0:
            raise ConfigError(
                f"{config.name} has a validation split of its own: set data.validation_fraction to "
                "0",
                key="data.validation_fraction",
            )
        groups["validation"] = ("validation",)
    return prepared, groups


def _default_test(prepared: tfds.Prepared, train: Sequence[str]) -> str | None:
    for split in ("test", "validation"):
        if prepared.holds([split]) and split not in train:
            return split
    return None


def _check_splits(prepared: tfds.Prepared, splits: Sequence[str], name: str, key: str) -> None:
    for split in splits:
        if not prepared.holds([split]):
            known = ", ".join(split for split, count in prepared.counts.items() if count)
            raise ConfigError(f"{name} has no split {split!r} (its splits: {known})", key=key)


def _folders(place: str) -> list[str]:
    """Return the names of the folders in `place`, sorted.

    There are none in an image folder, which may hold a million files: it has a folder ``train``.
    """
    names = []
    try:
        with os.scandir(place) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.is_dir():
                    names.append(entry.name)
    except OSError:
        return []
    return [] if "train" in names else sorted(names)
