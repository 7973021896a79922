"""Additive pyramidal residual networks with bottlenecks, arXiv 1610.02915.

They are plain, or with ShakeDrop, arXiv 1802.02375.

Legend: ``[B, H, W, C]`` batch, height, width, channels.

Block k of N has bottleneck width ``16 + widening * k / N``, rounded half up as in the authors'
code. Equation 2 of the paper has the floor instead. Applied block by block, as it is written
there, the floor would never let a slow pyramid grow.

There are two variants. ``paper`` is as in the authors' code. ``upstream`` is what the GNP papers'
code builds. There only the networks with ShakeDrop have a BatchNorm after the stem, and the
convolutions of stride 2 pad below and to the right only. (On images other than 32 x 32 that code
also pools 8 x 8 windows and flattens. Here the mean over all pixels takes any size.)
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Float32

from gnpcli.models.base import Model, from_linen
from gnpcli.models.family import Family, Images, Tiny
from gnpcli.models.layers.blocks import run
from gnpcli.models.layers.convolution import Conv
from gnpcli.models.layers.dense import DTYPES, Dense, compact, fan_out_uniform
from gnpcli.models.layers.norm import BatchNorm, NormRelu
from gnpcli.models.layers.pooling import pool_and_pad
from gnpcli.models.layers.shake import Factors, clean_pass, linear_decay, scale, shake_drop
from gnpcli.models.options import PyramidnetOptions, ShakeDropOptions

STEM_CHANNELS = 16

EXPANSION = 4
"""Channels that leave a block, over those of its bottleneck."""


def bottleneck_widths(depth: int, widening: int) -> list[int]:
    """Return the width of the bottleneck of every block, first to last.

    Args:
        depth: Number of convolutions and the head, ``9 n + 2`` for n blocks in each of the three
            groups.
        widening: What the last bottleneck has over the channels of the stem; alpha in the paper.

    Raises:
        ValueError: No network has this depth.
    """
    blocks, rest = divmod(depth - 2, 3)
    if rest or blocks % 3 or not blocks:
        raise ValueError(f"the depth of a pyramidal bottleneck network is 9 n + 2, not {depth}")
    # floor(x + 1/2) in integers: a sum of floats misses some of the exact values.
    return [
        STEM_CHANNELS + (2 * widening * k + blocks) // (2 * blocks) for k in range(1, blocks + 1)
    ]


class Block(nn.Module):
    """Pyramidal bottleneck: BN, 1x1, BN, ReLU, 3x3, BN, ReLU, 1x1, BN (figure 6(d) of the paper).

    Attributes:
        width: Channels of the bottleneck; the answer has four times as many.
        stride: Of the 3x3 convolution and the shortcut.
        variant: See the module.
        dtype: Compute type.
    """

    width: int
    stride: int
    variant: str
    dtype: np.dtype

    @compact
    def __call__(
        self, x: Float[Array, "B H W C"], train: bool, factors: Factors | None = None
    ) -> Float[Array, "B Y X {4*self.width}"]:
        """Map ``[B, H, W, C]`` to ``[B, ceil(H / stride), ceil(W / stride), 4 width]``.

        The branch is multiplied by `factors`.
        """
        same = self.variant == "upstream"
        channels = EXPANSION * self.width
        y = BatchNorm(dtype=self.dtype, name="norm_1")(x, train)
        y = Conv(self.width, 1, dtype=self.dtype, name="conv_1")(y)
        y = NormRelu(self.dtype, name="act_2")(y, train)
        y = Conv(self.width, 3, self.stride, same, dtype=self.dtype, name="conv_2")(y)
        y = NormRelu(self.dtype, name="act_3")(y, train)
        y = Conv(channels, 1, dtype=self.dtype, name="conv_3")(y)
        y = BatchNorm(dtype=self.dtype, name="norm_4")(y, train)
        if factors is not None:
            y = scale(y, factors)
        answer: jax.Array = pool_and_pad(x, channels, self.stride) + y
        return answer


class PyramidNet(nn.Module):
    """The whole network, ``[B, H, W, C] -> [B, classes]`` in float32, for images of any size.

    Attributes:
        depth: See `bottleneck_widths`.
        widening: See `bottleneck_widths`.
        num_classes: Number of logits.
        shake_drop: Probability with which the branch of the last block shakes; None builds the
            plain network.
        variant: ``paper`` or ``upstream``, see the module.
        dtype: Compute type; the statistics of BatchNorm, the mean over the pixels and the head are
            float32 always.
        true_gradient: Whether ShakeDrop's backward factors are its forward ones, see
            `gnpcli.models.layers.shake`.
    """

    depth: int
    widening: int
    num_classes: int
    shake_drop: float | None
    variant: str
    dtype: np.dtype
    true_gradient: bool = False

    @compact
    def __call__(self, images: Float[Array, "B H W C"], train: bool) -> Float32[Array, "B K"]:
        """Return the logits."""
        widths = bottleneck_widths(self.depth, self.widening)
        factors = None
        if self.shake_drop:
            key = self.make_rng("dropout") if train else None
            rates = linear_decay(self.shake_drop, len(widths))
            factors = shake_drop(key, rates, len(images), true_gradient=self.true_gradient)
        x = Conv(STEM_CHANNELS, 3, dtype=self.dtype, name="stem")(images)
        if self.variant == "paper" or self.shake_drop is not None:
            x = BatchNorm(dtype=self.dtype, name="norm")(x, train)
        blocks = []
        for index, width in enumerate(widths):
            group, index_in_group = divmod(index, len(widths) // 3)
            block = Block(
                width=width,
                stride=2 if group > 0 and index_in_group == 0 else 1,
                variant=self.variant,
                dtype=self.dtype,
                name=f"group_{group}_block_{index_in_group}",
            )
            blocks.append(block)
        x = run(blocks, x, train, factors)
        x = NormRelu(self.dtype, name="act")(x, train)
        x = x.astype(jnp.float32).mean(axis=(1, 2))
        logits: jax.Array = Dense(self.num_classes, fan_out_uniform, name="head")(x)
        return logits


class PyramidnetFamily(Family[PyramidnetOptions | ShakeDropOptions]):
    """Pyramidal networks, plain or with ShakeDrop."""

    tiny = Tiny({"depth": 11, "widening": 9}, {"drop_path": 0.5})

    def build(
        self,
        sizes: Mapping[str, int],
        options: PyramidnetOptions | ShakeDropOptions,
        images: Images,
        dtype: str,
    ) -> Model:
        """Build a member of the family, with ShakeDrop where the options are of that."""
        bottleneck_widths(**sizes)
        module = PyramidNet(
            **sizes,
            num_classes=images.classes,
            shake_drop=None,
            variant=options.variant,
            dtype=DTYPES[dtype],
        )
        if not isinstance(options, ShakeDropOptions):
            return from_linen(module)
        shaking = module.clone(shake_drop=options.drop_path)
        return from_linen(shaking, clean_pass(shaking, options.clean_gradient))


FAMILY = PyramidnetFamily()
