"""Which runs are samples of the same thing, and what to call them. Knows configurations only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

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


ConfiguredRun = TypeVar("ConfiguredRun", bound=Configured)

_MAX_KEYS = 3
"""Keys in a label; of more, the name of the folder says it better."""


def by_seed(runs: Sequence[ConfiguredRun]) -> dict[str, list[ConfiguredRun]]:
    """Put runs together that differ only in their seed, and label the groups.

    A key that decides no result (`gnpcli.config.recipe`) keeps no two runs apart. A second run of
    the same configuration and seed is a group of its own, because it is not another sample.

    A label is ``key=value`` for each key that differs among the groups. Where more than three
    differ, only the data set is kept of them, behind the name of the folder. The name also comes
    before labels that would be equal.
    """
    groups: dict[tuple[str, int], list[ConfiguredRun]] = {}
    repeats: Counter[tuple[str, int]] = Counter()
    for run in runs:
        setting = repr(recipe(run.config))
        sample = (setting, run.config.train.seed)
        groups.setdefault((setting, repeats[sample]), []).append(run)
        repeats[sample] += 1
    firsts = [group[0] for group in groups.values()]
    return dict(zip(_labels(firsts), groups.values(), strict=True))


def data_sets(runs: Sequence[Configured]) -> list[str]:
    """Return the different images that runs were trained and measured on, as texts.

    Losses and errors compare where there is only one.
    """
    recipes = [recipe(run.config) for run in runs]
    differing = [key for key in _differing(recipes, DATA_KEYS) if key != "data.name"]
    texts = set()
    for own in recipes:
        details = ", ".join(f"{_last(key)}={own[key]}" for key in differing)
        name = str(own["data.name"])
        texts.add(f"{name} ({details})" if details else name)
    return sorted(texts)


def _labels(firsts: Sequence[Configured]) -> list[str]:
    """Return a label for each group, given its first run; no two are equal."""
    names = [run.folder.resolve().name for run in firsts]
    if len(firsts) == 1:
        return names
    recipes = [recipe(run.config) for run in firsts]
    # A recipe without gradient regularization has none of its keys: only common keys tell.
    common = [key for key in recipes[0] if all(key in own for own in recipes)]
    keys = _differing(recipes, common)
    if 0 < len(keys) <= _MAX_KEYS:
        labels = [_settings(own, keys) for own in recipes]
    else:
        labels = [_settings(own, [key for key in keys if key == "data.name"]) for own in recipes]
    if len(keys) > _MAX_KEYS or _has_equal(labels):
        pairs = zip(names, labels, strict=True)
        labels = [f"{name}, {label}" if label else name for name, label in pairs]
    if _has_equal(labels):
        labels = [str(run.folder) for run in firsts]
    return labels


def _differing(recipes: Sequence[dict[str, Any]], keys: Sequence[str]) -> list[str]:
    """Return the keys whose values are not the same in all recipes."""
    return [key for key in keys if len({repr(own[key]) for own in recipes}) > 1]


def _settings(own: dict[str, Any], keys: Sequence[str]) -> str:
    return ", ".join(f"{_short(key)}={own[key]}" for key in keys)


def _short(key: str) -> str:
    return "data" if key == "data.name" else _last(key)


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _has_equal(labels: Sequence[str]) -> bool:
    return len(set(labels)) < len(labels)
