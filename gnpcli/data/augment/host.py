"""Policies on single Pillow images, for the processes that decode streamed images. No JAX."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from gnpcli.config.schema import DataConfig
from gnpcli.data.augment.policies import FILL, SIGNED, Policy, make_policy


@dataclass(frozen=True)
class HostPolicy:
    """Applies a policy to one image after another. Can be pickled; holds no random state of its
    own.
    """

    policy: Policy

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Return the image after its own draw from the policy.

        Args:
            image: Square, of mode ``L`` or ``RGB``.
            rng: Drawn from: a choice per round, then per step a coin, and where that falls a sign
                and a place.

        Returns:
            An image of the same size and mode.
        """
        for _ in range(self.policy.rounds):
            for name, probability, level in self.policy.choices[
                rng.integers(len(self.policy.choices))
            ]:
                if rng.random() < probability:
                    argument = self.policy.scale.argument(name, level, image.width)
                    if name in SIGNED and rng.random() < 0.5:
                        argument = -argument
                    x, y = rng.integers(image.size).tolist() if name == "Cutout" else (0, 0)
                    image = apply_operation(image, name, argument, (x, y))
        return image


def make_host_policy(config: DataConfig) -> HostPolicy | None:
    """Return what `config` does to streamed images beside crop and flip; None where it asks for no
    policy.
    """
    policy = make_policy(config, config.name, is_streamed=True)
    return None if policy is None else HostPolicy(policy)


def apply_operation(
    image: Image.Image, name: str, argument: float, centre: tuple[int, int] = (0, 0)
) -> Image.Image:
    """Apply an operation to an image of mode ``L`` or ``RGB``.

    Args:
        image: Not changed.
        name: Of `gnpcli.data.augment.policies.OPERATIONS`.
        argument: As described there; a positive one moves the content towards row or column 0
            (ShearX, ShearY, TranslateX, TranslateY) or turns it counter-clockwise (Rotate).
        centre: Column and row of the middle of Cutout's square.
    """
    fill = (FILL,) * len(image.getbands())
    affine = partial(
        image.transform,
        image.size,
        Image.Transform.AFFINE,
        resample=Image.Resampling.NEAREST,
        fillcolor=fill,
    )
    match name:
        case "ShearX":
            return affine((1, argument, 0, 0, 1, 0))
        case "ShearY":
            return affine((1, 0, 0, argument, 1, 0))
        case "TranslateX":
            return affine((1, 0, argument, 0, 1, 0))
        case "TranslateY":
            return affine((1, 0, 0, 0, 1, argument))
        case "Rotate":
            return image.rotate(argument, Image.Resampling.NEAREST, fillcolor=fill)
        case "AutoContrast":
            return ImageOps.autocontrast(image)
        case "Invert":
            return ImageOps.invert(image)
        case "Equalize":
            return ImageOps.equalize(image)
        case "Solarize":
            return ImageOps.solarize(image, int(argument))
        case "SolarizeAdd":
            return image.point(
                lambda level: min(level + int(argument), 255) if level < 128 else level
            )
        case "Posterize":
            # As ImageOps.posterize, which refuses to keep no bits.
            return image.point(lambda level: level & ~(2 ** (8 - int(argument)) - 1))
        case "Contrast":
            return ImageEnhance.Contrast(image).enhance(argument)
        case "CountContrast":
            grey = min(255, image.width * image.height // 256)
            other = Image.new(image.mode, image.size, (grey,) * len(image.getbands()))
            return Image.blend(other, image, argument)
        case "Color":
            return ImageEnhance.Color(image).enhance(argument)
        case "Brightness":
            return ImageEnhance.Brightness(image).enhance(argument)
        case "Sharpness":
            return ImageEnhance.Sharpness(image).enhance(argument)
        case "Cutout":
            x, y, half = *centre, int(argument)
            painted = image.copy()
            painted.paste(fill, (max(x - half, 0), max(y - half, 0), x + half, y + half))
            return painted
        case "Identity":
            return image
    raise ValueError(f"unknown operation {name!r}")
