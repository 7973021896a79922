"""What has changed of a data set since a model was trained on it, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from gnpcli.data.base import DataSpec
from gnpcli.data.fingerprint import SplitFingerprint
from gnpcli.terminal.words import listing, number, plural

CHOOSES_IMAGES = (
    "name",
    "train_split",
    "test_split",
    "val_labels",
    "image_size",
    "stream",
    "background",
    "exif_orientation",
)
"""Keys of ``data`` that make it another data set. Where it lies and how it is fed do not."""

_MOST_NAMES = 4
"""Classes that a message names; of more, it gives the number."""


def data_changes(before: DataSpec, now: DataSpec) -> list[str]:
    """Return what differs, a phrase each; nothing where the data are the same.

    A class that has another name and the same training images counts as renamed. The name of the
    data set, which says where it lies, plays no part. Nor do mean and standard deviation, which
    are those of the images or the configuration's, unless one of the two has no fingerprint.
    """
    renamed = _renamed(before, now)
    phrases = name_changes(before.class_names, now.class_names, renamed)
    if before.image_size != now.image_size:
        phrases.append(f"images of {now.image_size} pixels a side instead of {before.image_size}")
    if before.channels != now.channels:
        phrases.append(f"images of {plural(now.channels, 'channel')} instead of {before.channels}")
    if before.fingerprint is None or now.fingerprint is None:
        if not phrases and (before.mean, before.std) != (now.mean, now.std):
            phrases.append("the training images have another mean or standard deviation")
        return phrases
    classes = _matched(before, now, renamed)
    had, have = before.fingerprint.splits, now.fingerprint.splits
    for name in dict.fromkeys([*had, *have]):
        if name not in have:
            phrases.append(f"there is no {name} split any more")
        elif name not in had:
            phrases.append(f"there is a {name} split, and there was none")
        else:
            compared = _Compared(had[name], have[name], classes)
            phrases += [f"{name}: {phrase}" for phrase in compared.changes()]
    return phrases


def name_changes(
    before: Sequence[str], now: Sequence[str], renamed: Mapping[str, str] | None = None
) -> list[str]:
    """Return how the names of the labels differ, a phrase each.

    Args:
        before: Name of label 0, 1, ...
        now: The same, later.
        renamed: Later names by earlier ones, of classes that are known to be the same.
    """
    renamed = renamed or {}
    earlier = {later: name for name, later in renamed.items()}
    phrases = [f"class {name!r} has become {later!r}" for name, later in renamed.items()]
    gone = [name for name in before if name not in now and name not in renamed]
    new = [name for name in now if name not in before and name not in earlier]
    if gone:
        phrases.append(f"{_classes(gone)} {_is(gone)} gone")
    if new:
        phrases.append(f"{_classes(new)} {_is(new)} new")
    moved = moved_names(before, now, renamed)
    return [*phrases, moved] if moved else phrases


def moved_names(
    before: Sequence[str], now: Sequence[str], renamed: Mapping[str, str] | None = None
) -> str:
    """Return which label is of another class, as a phrase; empty where no class has moved.

    Arguments are those of `name_changes`.
    """
    own = [(renamed or {}).get(name, name) for name in before]
    later = {name: label for label, name in enumerate(now)}
    moved = [name for label, name in enumerate(own) if later.get(name, label) != label]
    if not moved:
        return ""
    shared = range(min(len(own), len(now)))
    label = next(label for label in shared if own[label] != now[label])
    count = plural(len(moved), "class", "classes")
    return f"label {label} is {now[label]!r} and was {before[label]!r} ({count} moved)"


def _renamed(before: DataSpec, now: DataSpec) -> dict[str, str]:
    """Return the later names of the classes that only their training images tell to be the same."""
    if before.fingerprint is None or now.fingerprint is None:
        return {}
    had, have = before.fingerprint.train.digests, now.fingerprint.train.digests
    new = {
        digest: name
        for name, digest in zip(now.class_names, have, strict=True)
        if name not in before.class_names
    }
    return {
        name: new[digest]
        for name, digest in zip(before.class_names, had, strict=True)
        if name not in now.class_names and digest in new
    }


@dataclass(frozen=True)
class _Class:
    """A class that is there before and now."""

    name: str
    label: int
    """Before."""
    later: int
    """Its label now."""


def _matched(before: DataSpec, now: DataSpec, renamed: Mapping[str, str]) -> list[_Class]:
    later = {name: label for label, name in enumerate(now.class_names)}
    names = [(name, renamed.get(name, name)) for name in before.class_names]
    return [
        _Class(name, label, later[own]) for label, (name, own) in enumerate(names) if own in later
    ]


@dataclass(frozen=True)
class _Compared:
    """A split before and now."""

    before: SplitFingerprint
    now: SplitFingerprint
    classes: Sequence[_Class]

    def changes(self) -> Iterator[str]:
        """Yield what differs, a phrase each."""
        before, now = self.before, self.now
        if before.of != now.of:
            state = {"pixels": "in memory", "files": "streamed"}
            yield f"the images are {state[now.of]}, and were {state[before.of]}"
            return
        different = [each for each in self.classes if self._differs(each)]
        swapped = self._swapped(different)
        rest = [each for each in different if each not in swapped]
        resized = [each for each in rest if self._is_resized(each)]
        other = [each for each in rest if not self._is_resized(each)]
        had, have = sum(before.counts), sum(now.counts)
        if had != have:
            yield f"{number(have)} images instead of {number(had)}{self._counts(resized)}"
        elif resized:
            yield f"other numbers of images{self._counts(resized)}"
        if swapped:
            yield f"the images of {_classes(_names(swapped))} have changed places"
        if other:
            noun = "pixels" if now.of == "pixels" else "files"
            yield f"other {noun}, or in another order, in {_classes(_names(other))}"
        if not different and had == have and before.order != now.order:
            yield "the images are in another order"

    def _differs(self, each: _Class) -> bool:
        return self.before.digests[each.label] != self.now.digests[each.later]

    def _is_resized(self, each: _Class) -> bool:
        return self.before.counts[each.label] != self.now.counts[each.later]

    def _swapped(self, different: Sequence[_Class]) -> list[_Class]:
        """Return the classes that have the images of each other."""
        had = {self.before.digests[each.label] for each in different}
        have = {self.now.digests[each.later] for each in different}
        both = had & have
        return [
            each
            for each in different
            if {self.before.digests[each.label], self.now.digests[each.later]} <= both
        ]

    def _counts(self, resized: Sequence[_Class]) -> str:
        """Return the counts of the first classes that differ in them, in brackets."""
        if not resized:
            return ""
        shown = [
            f"{each.name}: {number(self.now.counts[each.later])} instead of "
            f"{number(self.before.counts[each.label])}"
            for each in resized[:_MOST_NAMES]
        ]
        more = ", ..." if len(resized) > _MOST_NAMES else ""
        return f" ({', '.join(shown)}{more})"


def _names(classes: Sequence[_Class]) -> list[str]:
    return [each.name for each in classes]


def _classes(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"class {names[0]!r}"
    if len(names) > _MOST_NAMES:
        return f"{number(len(names))} classes"
    return f"classes {listing(repr(name) for name in names)}"


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
