"""``tfds:NAME`` or ``tfds:NAME/CONFIG``: any image classification set that TFDS has prepared, held
in memory.

    DATA_DIR/NAME[/CONFIG]/<version>/

Trained on ``train`` and tested on ``test``, or on ``validation`` where there is no ``test``, unless
`data.train_split` and `data.test_split` name others; where both are there, ``validation`` is the
validation split. Normalised by the channel statistics of the images trained on.
"""

from __future__ import annotations

import contextlib
import os

from gnpcli.config.schema import DataConfig
from gnpcli.data.archives import places, tfds
from gnpcli.data.archives.facts import check_disjoint, split_names
from gnpcli.data.base import DataInfo, Dataset, DataSpec, Split
from gnpcli.data.progress import ProgressListener
from gnpcli.data.validation import validation_counts
from gnpcli.errors import ConfigError, DataError, suggest


def describe(config: DataConfig) -> DataInfo | None:
    """Answer `gnpcli.data.registry.describe_data` from dataset_info.json; from the records what that
    does not tell.
    """
    from gnpcli.data.archives.records import first_size, read_labels

    name = _name(config)
    root = _find(name, config.dir)
    if root is None:
        return None
    prepared, groups = _groups(root, config)
    features = tfds.read_features(prepared)
    counts = {
        group: sum(prepared.counts[split] for split in splits) for group, splits in groups.items()
    }
    num_validation = counts.get("validation", 0)
    if config.validation_fraction > 0:
        labels = read_labels(prepared, features, groups["train"]).tolist()
        class_counts = [labels.count(label) for label in range(len(features.class_names))]
        num_validation = sum(validation_counts(class_counts, config.validation_fraction))
        counts["train"] -= num_validation
    return DataInfo(
        name=config.name,
        num_train=counts["train"],
        num_validation=num_validation,
        num_test=counts.get("test", 0),
        image_size=config.image_size
        or features.shape[1]
        or first_size(prepared, groups["train"][0])[0],
        channels=features.shape[2],
        num_classes=len(features.class_names),
        present=True,
    )


def load(config: DataConfig, progress: ProgressListener | None = None) -> Dataset:
    """Return the splits of the prepared folder found at `data.dir` or in a default place.

    Raises:
        ConfigError: On splits that the data set does not have.
        DataError: If nothing is there, it is no image classification set, its images are not
            squares of one size and `image_size` is null, or a record is bad.
    """
    from gnpcli.data.archives.records import load_arrays

    name = _name(config)
    root = _find(name, config.dir)
    if root is None:
        raise _absent(name, config.dir)
    prepared, groups = _groups(root, config)
    features = tfds.read_features(prepared)
    arrays = load_arrays(
        prepared, features, groups=groups, image_size=config.image_size, progress=progress
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
    """Return the folders in `gnpcli.data.archives.places.data_dirs` that are laid out as by TFDS,
    by ``NAME[/CONFIG]``.
    """
    found: dict[str, str] = {}
    for place in places.data_dirs(directory):
        for name in _folders(place):
            inner = _folders(os.path.join(place, name))
            for candidate in (name, *(f"{name}/{config}" for config in inner)):
                with contextlib.suppress(DataError):
                    root = tfds.find(os.path.join(place, candidate))
                    # A version is a folder of its data set, and no configuration of it.
                    if root is not None and root != os.path.join(place, candidate):
                        found.setdefault(candidate, root)
    return found


def _name(config: DataConfig) -> str:
    return config.name.partition(":")[2].strip().strip("/")


def _find(name: str, directory: str | None) -> str | None:
    for place in places.candidates(name, directory):
        if (root := tfds.find(place)) is not None:
            return root
    return None


def _absent(name: str, directory: str | None) -> DataError:
    there = prepared_names(directory)
    where = " or ".join(places.candidates(name, directory))
    if configs := [known for known in there if known.startswith(f"{name}/")]:
        return DataError(
            f"tfds:{name} has to be one of {', '.join(f'tfds:{known}' for known in configs)}"
        )
    known = f" (there: {', '.join(sorted(there))})" if there else ""
    return DataError(
        f"no data set prepared by TFDS in {where}{suggest(name, there)}{known}: give its data_dir "
        "with --data-dir "
        "(data.dir)"
    )


def _groups(root: str, config: DataConfig) -> tuple[tfds.Prepared, dict[str, tuple[str, ...]]]:
    """Return the prepared folder and its splits under the names of `gnpcli.data.base.Dataset`."""
    prepared = tfds.examine(root, name=_name(config).partition("/")[0])
    train = split_names(config.train_split or "train")
    test = config.test_split or next(
        (s for s in ("test", "validation") if prepared.holds([s]) and s not in train), None
    )
    for key, splits in (
        ("train_split", train),
        ("test_split", (test,) if test is not None else ()),
    ):
        for split in splits:
            if not prepared.holds([split]):
                known = [name for name, count in prepared.counts.items() if count]
                raise ConfigError(
                    f"{config.name} has no split {split!r} (its splits: {', '.join(known)})",
                    key=f"data.{key}",
                )
    groups = {"train": train}
    if test is not None:
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


def _folders(place: str) -> list[str]:
    """Return the folders in `place`; none if it is an image folder, which may hold a million files."""
    try:
        with os.scandir(place) as entries:
            names = sorted(
                entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()
            )
    except OSError:
        return []
    return [] if "train" in names else names
