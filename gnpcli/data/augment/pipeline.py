"""From a uint8 batch to what a train step takes: the augmentation that runs on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int32, Key, UInt8

from gnpcli.config.schema import DataConfig
from gnpcli.data.augment.basic import normalize, random_flip, random_reflect_crop
from gnpcli.data.augment.device import apply_policy
from gnpcli.data.augment.mixing import cutmix, cutout, mixup, random_erasing
from gnpcli.data.augment.policies import is_flipped, make_policy
from gnpcli.data.base import DataSpec
from gnpcli.errors import ConfigError

Pipeline: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""``(key, images, labels) -> (images, labels)``; see `make_pipeline`."""


def make_pipeline(
    config: DataConfig, spec: DataSpec, *, is_streamed: bool, dtype: DTypeLike
) -> Pipeline:
    """Return the augmentation of a training batch, to be traced inside the train step.

    In memory: crop, flip, policy, normalisation, random erasing, mixing. In the upstream variant
    the policy comes first, as there. Streamed images come cropped, flipped and with their policy
    from the processes that decode them. The rest is the same.

    Args:
        config: All that augments.
        spec: `name`, size, mean and std of the data.
        is_streamed: Whether crop, flip and policy have been done.
        dtype: Type of the resulting images; everything before is uint8, then float32.

    Returns:
        A pure function of a typed PRNG key, images uint8 ``[B, H, W, C]`` and labels int32 ``[B]``.
        It returns images `dtype` ``[B, H, W, C]``, normalised, and labels int32 ``[B]``, or with
        ``mixup``, ``cutmix`` and ``mixcut`` class probabilities float32 ``[B, K]``.

    Raises:
        ConfigError: As `check_pipeline`.
    """
    before = _make_uint8(config, spec, is_streamed=is_streamed)
    after = _make_normalized(config, spec)

    def pipeline(
        key: Key[Array, ""], images: UInt8[Array, "B S S C"], labels: Int32[Array, " B"]
    ) -> tuple[Float[Array, "B S S C"], Int32[Array, " B"] | Float32[Array, "B K"]]:
        crop_key, flip_key, policy_key, erase_key, mix_key, cutout_key = jax.random.split(key, 6)
        images = before(crop_key, flip_key, policy_key, images)
        normal = normalize(images, spec.mean, spec.std)
        normal, labels = after(erase_key, mix_key, cutout_key, normal, labels)
        return normal.astype(dtype), labels

    return pipeline


def _make_uint8(
    config: DataConfig, spec: DataSpec, *, is_streamed: bool
) -> Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]:
    """Return what comes before normalisation: crop, flip and policy.

    It is a function of a key for each of them and of the images.
    """
    policy_is_first = config.augment_variant == "upstream-compat"
    padding, _ = check_pipeline(config, spec.image_size, is_streamed=is_streamed)
    flip = not is_streamed and is_flipped(config, spec.name, is_streamed=False)
    policy = None if is_streamed else make_policy(config, spec.name, is_streamed=False)

    def move(crop_key: jax.Array, flip_key: jax.Array, images: jax.Array) -> jax.Array:
        if padding:
            images = random_reflect_crop(crop_key, images, padding)
        if flip:
            images = random_flip(flip_key, images)
        return images

    def augment(
        crop_key: jax.Array, flip_key: jax.Array, policy_key: jax.Array, images: jax.Array
    ) -> jax.Array:
        if policy is None:
            return move(crop_key, flip_key, images)
        if policy_is_first:
            return move(crop_key, flip_key, apply_policy(policy_key, images, policy))
        return apply_policy(policy_key, move(crop_key, flip_key, images), policy)

    return augment


def _make_normalized(
    config: DataConfig, spec: DataSpec
) -> Callable[[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """Return what comes after normalisation: random erasing, mixing and cutout.

    It is a function of a key for each of them, of the images and of the labels.
    """
    shared = config.augment_variant == "upstream-compat"
    square = _cutout_size(config, spec.image_size)

    def augment(
        erase_key: jax.Array,
        mix_key: jax.Array,
        cutout_key: jax.Array,
        images: jax.Array,
        labels: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        if config.random_erasing:
            images = random_erasing(erase_key, images, config.random_erasing)
        if config.mix in ("mixup", "cutmix", "mixcut"):
            mix = cutmix if config.mix == "cutmix" else mixup
            classes = jax.nn.one_hot(labels, spec.num_classes, dtype=jnp.float32)
            images, labels = mix(mix_key, images, classes, config.mix_alpha, shared=shared)
        if config.mix in ("cutout", "mixcut"):
            images = cutout(cutout_key, images, square, shared=shared)
        return images, labels

    return augment


def check_pipeline(config: DataConfig, image_size: int, *, is_streamed: bool) -> tuple[int, int]:
    """Return the pixels of reflected border, 0 for no crop, and the side of cutout's square.

    Raises:
        ConfigError: If the border is not below the image size (``data.crop_padding``) or the square
            is larger than the image (``data.cutout_size``).
    """
    padding = 0 if is_streamed else _crop_padding(config, image_size)
    return padding, _cutout_size(config, image_size)


def _crop_padding(config: DataConfig, image_size: int) -> int:
    if config.augment == "none":
        return 0
    padding = config.crop_padding
    if padding is None:
        padding = max(1, image_size // 8)
    if padding >= image_size:
        raise ConfigError(
            f"data.crop_padding {padding} must be below the image size {image_size}: a reflection "
            "is no larger",
            key="data.crop_padding",
        )
    return padding


def _cutout_size(config: DataConfig, image_size: int) -> int:
    size = config.cutout_size
    if size is None:
        size = max(1, image_size // 2)
    if size > image_size and config.mix in ("cutout", "mixcut"):
        raise ConfigError(
            f"data.cutout_size {size} is larger than the image size {image_size}: no pixel would "
            "be sure to be left",
            key="data.cutout_size",
        )
    return size
