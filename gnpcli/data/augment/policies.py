"""Augmentation policies as data: which operation, how often, how strong. Neither JAX nor Pillow.

A policy is a list of choices. Every image draws one of them, all being equally likely, and applies
its steps in turn, each with the step's probability. A signed operation also draws its direction.
AutoAugment (arXiv 1805.09501) draws once from its 25 pairs of steps. RandAugment (arXiv 1909.13719)
draws N times from single steps, all at level M.

A `Scale` turns a level, 0 to 10, into the argument of an operation, linearly. Whole numbers are
truncated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple, TypeAlias

from gnpcli.config.schema import DataConfig
from gnpcli.data.augment import tables

PolicyName: TypeAlias = Literal["cifar", "svhn", "imagenet"]
"""The data that a policy was searched on, and whose magnitudes it uses."""

MAX_LEVEL = 10
"""End of the scale of levels."""

FILL = 128
"""Grey level of what an operation uncovers or cuts out."""

SIGNED = frozenset({"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"})
"""Operations whose argument is negated with probability one half."""

WHOLE = frozenset({"TranslateX", "TranslateY", "Cutout", "Solarize", "SolarizeAdd", "Posterize"})
"""Operations whose argument is a whole number."""

OPERATIONS: dict[str, str] = {
    "Identity": "nothing",
    "ShearX": "shift every row by this multiple of its distance from the top edge",
    "ShearY": "shift every column by this multiple of its distance from the left edge",
    "TranslateX": "shift by pixels along the rows",
    "TranslateY": "shift by pixels along the columns",
    "Rotate": "turn about the centre, in degrees",
    "AutoContrast": "stretch every channel to 0 .. 255",
    "Invert": "replace v by 255 - v",
    "Equalize": "make the histogram of every channel flat",
    "Solarize": "invert the pixels at this threshold (0 .. 256) and above",
    "SolarizeAdd": "add this to the pixels below 128, up to 255",
    "Posterize": "keep this many leading bits (0 .. 8)",
    "Contrast": "blend with a constant: the mean of the image in grey",
    "CountContrast": (
        "blend with a constant: pixels / 256, at most 255, which the GNP papers' code "
        "takes for the mean"
    ),
    "Color": "blend with the image in grey",
    "Brightness": "blend with black",
    "Sharpness": "blend with the image smoothed",
    "Cutout": "paint a square at a uniform place grey; half its side in pixels",
}
"""What an operation's argument is. Blending by f gives ``other + f * (image - other)``: 1 changes
nothing.
"""


class Step(NamedTuple):
    """An operation that is applied with a probability, at a level from 0 to `MAX_LEVEL`."""

    operation: str
    probability: float
    level: float


@dataclass(frozen=True)
class Scale:
    """How levels become arguments."""

    ranges: tuple[tuple[str, float, float], ...]
    """(operation, argument at level 0, argument at level 10)."""
    translate: float
    """Pixels of a translation at level 10."""
    cutout: float
    """Half the side of Cutout's square at level 10, in pixels."""
    side: int | None
    """Image size that `translate` and `cutout` are for: they grow with the image.

    None: they are pixels at any size.
    """

    def argument(self, operation: str, level: float, image_size: int) -> float:
        """Return the argument of an operation, unsigned; 0.0 for one that takes none.

        Args:
            operation: A key of `OPERATIONS`.
            level: 0 to `MAX_LEVEL`.
            image_size: Side of the image in pixels.
        """
        low, high = self._range(operation, image_size)
        value = low + (high - low) * level / MAX_LEVEL
        return float(int(value)) if operation in WHOLE else value

    def _range(self, operation: str, image_size: int) -> tuple[float, float]:
        """Return an operation's arguments at level 0 and at level 10."""
        growth = image_size / self.side if self.side else 1.0
        if operation in ("TranslateX", "TranslateY"):
            return 0.0, self.translate * growth
        if operation == "Cutout":
            return 0.0, self.cutout * growth
        for name, low, high in self.ranges:
            if name == operation:
                return low, high
        return 0.0, 0.0


@dataclass(frozen=True)
class Policy:
    """Choices of which an image draws one, `rounds` times; see the module."""

    choices: tuple[tuple[Step, ...], ...]
    scale: Scale
    rounds: int = 1


_BLENDS = ("Contrast", "CountContrast", "Color", "Brightness", "Sharpness")
_RANGES = (
    ("ShearX", 0.0, 0.3),
    ("ShearY", 0.0, 0.3),
    ("Rotate", 0.0, 30.0),
    ("SolarizeAdd", 0.0, 110.0),
    *((name, 0.1, 1.9) for name in _BLENDS),
)
_PAPER_RANGES = (*_RANGES, ("Solarize", 256.0, 0.0), ("Posterize", 8.0, 4.0))
_UPSTREAM_RANGES = (*_RANGES, ("Solarize", 0.0, 256.0), ("Posterize", 0.0, 4.0))

# The paper's table 6 gives translations to 150 and squares to 60 pixels, of ImageNet images of 331;
# its own CIFAR experiments use 10 and 20 of 32.
CIFAR_SCALE = Scale(_PAPER_RANGES, translate=10.0, cutout=10.0, side=32)
"""The paper's scale on small images, used with the CIFAR and SVHN policies."""
IMAGENET_SCALE = Scale(_PAPER_RANGES, translate=150.0, cutout=30.0, side=331)
"""The paper's scale on ImageNet."""
UPSTREAM_SCALE = Scale(_UPSTREAM_RANGES, translate=250.0, cutout=100.0, side=None)
"""What the GNP papers' code does with AutoAugment at any image size: on 32 pixels a translation
empties the image. Solarize and Posterize act the other way round, weaker at higher levels, down to
no bits left at level 2."""
UPSTREAM_RAND_SCALE = Scale(_UPSTREAM_RANGES, translate=100.0, cutout=40.0, side=None)
"""The same with RandAugment."""

_SCALES: dict[PolicyName, Scale] = {
    "cifar": CIFAR_SCALE,
    "svhn": CIFAR_SCALE,
    "imagenet": IMAGENET_SCALE,
}
_PAPER_LISTS: dict[PolicyName, str] = {
    "cifar": tables.CIFAR,
    "svhn": tables.SVHN,
    "imagenet": tables.IMAGENET,
}
_UPSTREAM_LISTS: dict[PolicyName, str] = {
    "cifar": tables.UPSTREAM_CIFAR,
    "svhn": tables.SVHN,
    "imagenet": tables.UPSTREAM_IMAGENET,
}
_UPSTREAM_NAMES = {"Contrast": "CountContrast"}

_COMMON = (
    "AutoContrast",
    "Equalize",
    "Rotate",
    "Solarize",
    "Color",
    "Posterize",
    "Brightness",
    "Sharpness",
)
_COMMON_MOVES = ("ShearX", "ShearY", "TranslateX", "TranslateY")
RAND_OPERATIONS = ("Identity", "Contrast", *_COMMON, *_COMMON_MOVES)
"""The 14 operations of RandAugment's paper (figure 2)."""
UPSTREAM_RAND_OPERATIONS = (
    "Invert",
    "CountContrast",
    "Cutout",
    "SolarizeAdd",
    *_COMMON,
    *_COMMON_MOVES,
)
"""The 16 operations of the GNP papers' code."""

_DIGITS = frozenset({"digits", "mnist", "svhn_cropped"})


def policy_for(config: DataConfig, name: str, *, is_streamed: bool) -> PolicyName:
    """Return which data's policy and magnitudes fit a data set.

    Args:
        config: `autoaugment_policy` decides where it is set.
        name: Of the data set, as in `data.name`. Sets of digits take SVHN's policy.
        is_streamed: Other streamed images take ImageNet's, and images in memory CIFAR's.
    """
    if config.autoaugment_policy is not None:
        return config.autoaugment_policy
    if name.removeprefix("tfds:") in _DIGITS:
        return "svhn"
    return "imagenet" if is_streamed else "cifar"


def is_flipped(config: DataConfig, name: str, *, is_streamed: bool) -> bool:
    """Return whether images are also mirrored at random.

    ``basic`` mirrors whatever the images are. A policy mirrors all but digits (`policy_for` is
    ``svhn``), whose mirror images are other signs. AutoAugment's paper does not mirror SVHN either.
    """
    if config.augment in ("none", "crop"):
        return False
    if config.augment == "basic":
        return True
    return policy_for(config, name, is_streamed=is_streamed) != "svhn"


def make_policy(config: DataConfig, name: str, *, is_streamed: bool) -> Policy | None:
    """Return the policy that `config` asks for.

    Returns None where `augment` is neither ``autoaugment`` nor ``randaugment``.

    Args:
        config: `augment`, `augment_variant`, `autoaugment_policy`, `randaugment_layers` and
            `randaugment_magnitude` are used.
        name: Of the data set, as in `data.name`.
        is_streamed: Whether its images are decoded batch by batch.
    """
    searched_on = policy_for(config, name, is_streamed=is_streamed)
    if config.augment == "autoaugment":
        return auto_augment(searched_on, config.augment_variant)
    if config.augment == "randaugment":
        return rand_augment(
            searched_on,
            config.augment_variant,
            layers=config.randaugment_layers,
            level=config.randaugment_magnitude,
        )
    return None


@cache
def auto_augment(
    searched_on: PolicyName, variant: Literal["paper", "upstream-compat"] = "paper"
) -> Policy:
    """Return AutoAugment's policy for a kind of data."""
    if variant == "paper":
        return Policy(parse(_PAPER_LISTS[searched_on]), _SCALES[searched_on])
    return Policy(parse(_UPSTREAM_LISTS[searched_on], _UPSTREAM_NAMES), UPSTREAM_SCALE)


def rand_augment(
    searched_on: PolicyName,
    variant: Literal["paper", "upstream-compat"] = "paper",
    *,
    layers: int,
    level: float,
) -> Policy:
    """Return RandAugment's policy: `layers` operations in turn, all at one level.

    Each is drawn from all operations.

    Args:
        searched_on: Whose magnitudes; the upstream variant has only one scale.
        variant: 14 operations (`RAND_OPERATIONS`) or 16 (`UPSTREAM_RAND_OPERATIONS`).
        layers: N of the paper, at least 1.
        level: M of the paper on the scale 0 to 10.
    """
    operations: tuple[str, ...] = RAND_OPERATIONS
    scale = _SCALES[searched_on]
    if variant == "upstream-compat":
        operations = UPSTREAM_RAND_OPERATIONS
        scale = UPSTREAM_RAND_SCALE
    choices = tuple((Step(name, 1.0, level),) for name in operations)
    return Policy(choices, scale, rounds=layers)


def parse(text: str, names: Mapping[str, str] | None = None) -> tuple[tuple[Step, ...], ...]:
    """Return the sub-policies of a list in the format of `gnpcli.data.augment.tables`.

    >>> parse("Invert 0.1 + Contrast 0.2 6")
    ((Step(operation='Invert', probability=0.1, level=0.0), Step(operation='Contrast',
    probability=0.2, level=6.0)),)

    Args:
        text: The list.
        names: Operations to take in place of those that the text names.
    """
    choices = []
    for choice in text.split(";"):
        choices.append(tuple(_parse_step(words, names or {}) for words in choice.split("+")))
    return tuple(choices)


def _parse_step(words: str, names: Mapping[str, str]) -> Step:
    name, probability, *level = words.split()
    return Step(
        operation=names.get(name, name),
        probability=float(probability),
        level=float(level[0]) if level else 0.0,
    )
