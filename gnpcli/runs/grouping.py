"""Which runs are samples of the same thing, and what to call them. Knows configurations only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from gnpcli.config.recipe import DATA_KEYS, recipe
from gnpcli.config.resolved import Resolved


class Configured(Protocol):
    """A run: a folder and its configuration."""

    @property
    def folder(self) -> Path:
        """Where it is."""
        ...

    @property
    def config(self) -> Resolved:
        """What it trained."""
        ...


Run = TypeVar("Run", bound=Configured)


def by_seed(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Put runs together that differ only in their seed, and label the groups by the keys in which
    they differ.

    What decides no result (`gnpcli.config.recipe`) keeps no two runs apart. A second run of the
    same configuration and seed is a group of its own: it is no other sample. A label is
    ``key=value`` for up to three keys that differ among the groups, always with the data set where
    there are several, and the name of the folder where that says nothing or too much.
    """
    sets: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        setting = tuple((key, repr(value)) for key, value in recipe(run.config).items())
        again = sum(
            run.config.train.seed == other.config.train.seed
            for (seen, _), others in sets.items()
            if seen == setting
            for other in others
        )
        sets.setdefault((setting, again), []).append(run)
    groups = list(sets.values())
    return dict(zip(_labels([group[0] for group in groups]), groups, strict=True))


def data_sets(runs: Sequence[Configured]) -> list[str]:
    """Return the different images that runs were trained and measured on, as texts; of one, losses
    compare.
    """
    kinds = [
        {key: value for key, value in recipe(run.config).items() if key in DATA_KEYS}
        for run in runs
    ]
    differing = [key for key in DATA_KEYS if len({repr(kind[key]) for kind in kinds}) > 1]
    texts = []
    for kind in kinds:
        rest = ", ".join(
            f"{key.rpartition('.')[2]}={kind[key]}" for key in differing if key != "data.name"
        )
        texts.append(f"{kind['data.name']} ({rest})" if rest else str(kind["data.name"]))
    return sorted(set(texts))


def _labels(firsts: Sequence[Configured]) -> list[str]:
    names = [run.folder.resolve().name for run in firsts]
    if len(firsts) == 1:
        return names
    recipes = [recipe(run.config) for run in firsts]
    # Without gradient regularization a recipe has no other keys of it: that there is none is what
    # differs.
    common = [key for key in recipes[0] if all(key in own for own in recipes)]
    keys = [key for key in common if len({repr(own[key]) for own in recipes}) > 1]
    shown = keys if 0 < len(keys) <= 3 else [key for key in keys if key == "data.name"]
    labels = [
        ", ".join(
            f"{'data' if key == 'data.name' else key.rpartition('.')[2]}={own[key]}"
            for key in shown
        )
        for own in recipes
    ]
    if len(keys) > 3 or len(set(labels)) < len(labels):
        labels = [
            ", ".join(filter(None, (name, label)))
            for name, label in zip(names, labels, strict=True)
        ]
    if len(set(labels)) < len(labels):
        labels = [str(run.folder) for run in firsts]
    return labels
