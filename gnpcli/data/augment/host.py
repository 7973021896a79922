"""Policies on single Pillow images, for the processes that decode streamed images. No JAX."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from gnpcli.config.schema import DataConfig
from gnpcli.data.augment.policies import FILL, SIGNED, Policy, Step, make_policy


@dataclass(frozen=True)
class HostPolicy:
    """Applies a policy to one image after another.

    It can be pickled, and holds no random state of its own.
    """

    policy: Policy

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Return the image after its own draw from the policy.

        Args:
            image: Square, of mode ``L`` or ``RGB``.
            rng: Drawn from: a choice per round, then per step a coin. Where that falls, a sign and
                a place follow.

        Returns:
            An image of the same size and mode.
        """
        choices = self.policy.choices
        for _ in range(self.policy.rounds):
            for step in choices[rng.integers(len(choices))]:
                if rng.random() < step.probability:
                    image = self._apply(step, image, rng)
        return image

    def _apply(self, step: Step, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        name = step.operation
        argument = self.policy.scale.argument(name, step.level, image.width)
        if name in SIGNED and rng.random() < 0.5:
            argument = -argument
        centre = (0, 0)
        if name == "Cutout":
            x, y = rng.integers(image.size).tolist()
            centre = (x, y)
        return apply_operation(image, name, argument, centre)


def make_host_policy(config: DataConfig) -> HostPolicy | None:
    """Return the policy that `config` asks for on streamed images; None where it asks for none."""
    policy = make_policy(config, config.name, is_streamed=True)
    return None if policy is None else HostPolicy(policy)


def apply_operation(
    image: Image.Image, name: str, argument: float, centre: tuple[int, int] = (0, 0)
) -> Image.Image:
    """Apply an operation to an image of mode ``L`` or ``RGB``.

    Args:
        image: Not changed.
        name: Of `gnpcli.data.augment.policies.OPERATIONS`.
        argument: As described there. A positive one moves the content towards row or column 0
            (ShearX, ShearY, TranslateX, TranslateY) or turns it counter-clockwise (Rotate).
        centre: Column and row of the middle of Cutout's square.

    Raises:
        ValueError: On an unknown name.
    """
    if name in _GEOMETRY:
        return _move(image, name, argument)
    if name in _VALUES:
        return _VALUES[name](image, argument)
    if name == "Cutout":
        return _paint(image, centre, int(argument))
    raise ValueError(f"unknown operation {name!r}")


_GEOMETRY = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")


def _move(image: Image.Image, name: str, argument: float) -> Image.Image:
    """Shear, translate or turn: the nearest pixel, `FILL` where it lies outside."""
    fill = _fill(image)
    if name == "Rotate":
        return image.rotate(argument, Image.Resampling.NEAREST, fillcolor=fill)
    matrix = {
        "ShearX": (1, argument, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, argument, 1, 0),
        "TranslateX": (1, 0, argument, 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, argument),
    }[name]
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        matrix,
        resample=Image.Resampling.NEAREST,
        fillcolor=fill,
    )


def _fill(image: Image.Image) -> tuple[int, ...]:
    return (FILL,) * len(image.getbands())


def _paint(image: Image.Image, centre: tuple[int, int], half: int) -> Image.Image:
    """Paint a square of side ``2 * half`` around `centre`; parts outside are cut off."""
    x, y = centre
    painted = image.copy()
    painted.paste(_fill(image), (max(x - half, 0), max(y - half, 0), x + half, y + half))
    return painted


def _solarize_add(image: Image.Image, argument: float) -> Image.Image:
    added = int(argument)
    return image.point(lambda level: min(level + added, 255) if level < 128 else level)


def _posterize(image: Image.Image, argument: float) -> Image.Image:
    """Keep the leading bits: as ImageOps.posterize, which refuses to keep none."""
    kept = ~(2 ** (8 - int(argument)) - 1)
    return image.point(lambda level: level & kept)


def _count_contrast(image: Image.Image, argument: float) -> Image.Image:
    grey = min(255, image.width * image.height // 256)
    other = Image.new(image.mode, image.size, (grey,) * len(image.getbands()))
    return Image.blend(other, image, argument)


_VALUES: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "Identity": lambda image, _: image,
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Invert": lambda image, _: ImageOps.invert(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
    "Solarize": lambda image, threshold: ImageOps.solarize(image, int(threshold)),
    "SolarizeAdd": _solarize_add,
    "Posterize": _posterize,
    "Contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "CountContrast": _count_contrast,
    "Color": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "Brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "Sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
}
"""Operations that change the values of pixels and leave them where they are."""
