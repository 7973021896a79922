"""Three-branch residual networks with Shake-Shake regularization, arXiv 1705.07485, section 2.

Legend: ``[B, H, W, C]`` batch, height, width, channels.

Two variants, which differ where the number of channels changes. ``paper``: the shortcut starts from
the activated input, as in the author's code, and its second half sees the image shifted by a pixel
to the right and down. ``upstream``: what the GNP papers' code builds, where the shortcut starts
from the input itself and the shift is to the left and up; its convolutions of stride 2 pad below
and to the right only.
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
from gnpcli.models.layers.shake import Factors, clean_pass, scale, shake_shake
from gnpcli.models.options import ShakeShakeOptions

STEM_CHANNELS = 16


class Branch(nn.Module):
    """Residual branch after the first ReLU: 3x3, BN, ReLU, 3x3, BN (section 2.1).

    Attributes:
        channels: Channels of the answer.
        stride: Of the first convolution.
        variant: See the module.
        dtype: Compute type.
    """

    channels: int
    stride: int
    variant: str
    dtype: np.dtype

    @compact
    def __call__(
        self, activated: Float[Array, "B H W C"], train: bool
    ) -> Float[Array, "B Y X {self.channels}"]:
        """Map ``[B, H, W, C]`` to ``[B, ceil(H / stride), ceil(W / stride), channels]``."""
        same = self.variant == "upstream"
        y = Conv(self.channels, 3, self.stride, same, dtype=self.dtype, name="conv_1")(activated)
        y = NormRelu(self.dtype, name="act")(y, train)
        y = Conv(self.channels, 3, dtype=self.dtype, name="conv_2")(y)
        answer: jax.Array = BatchNorm(dtype=self.dtype, name="norm")(y, train)
        return answer


class Shortcut(nn.Module):
    """Shortcut where the number of channels changes: two 1x1 convolutions.

    One is of the image, the other of the shifted image.

    Attributes:
        channels: Channels of the answer, even; each convolution gives one half of them.
        stride: Pixels from one that is kept to the next, beginning with the first.
        variant: Direction of the shift, see the module.
        dtype: Compute type.
    """

    channels: int
    stride: int
    variant: str
    dtype: np.dtype

    @compact
    def __call__(
        self, x: Float[Array, "B H W C"], train: bool
    ) -> Float[Array, "B Y X {self.channels}"]:
        """Map ``[B, H, W, C]`` to ``[B, ceil(H / stride), ceil(W / stride), channels]``."""
        before = 1 if self.variant == "paper" else -1
        shift = (before, -before, 0)
        shifted = jax.lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), shift, shift, (0, 0, 0)))
        halves = [
            Conv(self.channels // 2, 1, self.stride, dtype=self.dtype, name=name)(source)
            for source, name in ((x, "conv"), (shifted, "conv_shifted"))
        ]
        answer: jax.Array = BatchNorm(dtype=self.dtype, name="norm")(
            jnp.concatenate(halves, axis=-1), train
        )
        return answer


class Block(nn.Module):
    """Shortcut and two branches, which `gnpcli.models.layers.shake` combines.

    The attributes are those of `Branch`.
    """

    channels: int
    stride: int
    variant: str
    dtype: np.dtype

    @compact
    def __call__(
        self, x: Float[Array, "B H W C"], train: bool, factors: Factors
    ) -> Float[Array, "B Y X {self.channels}"]:
        """Map ``[B, H, W, C]`` to ``[B, ceil(H / stride), ceil(W / stride), channels]``."""
        sizes = (self.channels, self.stride, self.variant, self.dtype)
        activated = jax.nn.relu(x)
        if x.shape[-1] != self.channels or self.stride != 1:
            x = Shortcut(*sizes, name="shortcut")(
                activated if self.variant == "paper" else x, train
            )
        x = x + scale(Branch(*sizes, name="branch_1")(activated, train), factors)
        x = x + scale(Branch(*sizes, name="branch_2")(activated, train), factors.complement())
        return x


class ShakeShake(nn.Module):
    """The whole network, ``[B, H, W, C] -> [B, classes]`` in float32, for images of any size.

    Attributes:
        depth: Layers with weights on the longest path, ``6 n + 2`` for n blocks in each of the
            three groups.
        width: Channels of the first group; the second has twice, the third four times as many.
        num_classes: Number of logits.
        variant: ``paper`` or ``upstream``, see the module.
        dtype: Compute type; the statistics of BatchNorm, the mean over the pixels and the head are
            float32 always.
        true_gradient: Whether the backward factors are the forward ones, see
            `gnpcli.models.layers.shake`.
    """

    depth: int
    width: int
    num_classes: int
    variant: str
    dtype: np.dtype
    true_gradient: bool = False

    @compact
    def __call__(self, images: Float[Array, "B H W C"], train: bool) -> Float32[Array, "B K"]:
        """Return the logits."""
        count = (self.depth - 2) // 2
        key = self.make_rng("dropout") if train else None
        factors = shake_shake(key, count, len(images), true_gradient=self.true_gradient)
        x = Conv(STEM_CHANNELS, 3, dtype=self.dtype, name="stem")(images)
        x = BatchNorm(dtype=self.dtype, name="norm")(x, train)
        blocks = []
        for index in range(count):
            group, index_in_group = divmod(index, count // 3)
            block = Block(
                channels=2**group * self.width,
                stride=2 if group > 0 and index_in_group == 0 else 1,
                variant=self.variant,
                dtype=self.dtype,
                name=f"group_{group}_block_{index_in_group}",
            )
            blocks.append(block)
        x = run(blocks, x, train, factors)
        x = jax.nn.relu(x).astype(jnp.float32).mean(axis=(1, 2))
        logits: jax.Array = Dense(self.num_classes, fan_out_uniform, name="head")(x)
        return logits


class ShakeShakeFamily(Family[ShakeShakeOptions]):
    """Shake-Shake networks."""

    tiny = Tiny({"depth": 8, "width": 4})

    def build(
        self, sizes: Mapping[str, int], options: ShakeShakeOptions, images: Images, dtype: str
    ) -> Model:
        """Build a member of the family."""
        if (sizes["depth"] - 2) % 6:
            raise ValueError(f"the depth of a Shake-Shake network is 6 n + 2, not {sizes['depth']}")
        module = ShakeShake(
            **sizes,
            num_classes=images.classes,
            variant=options.variant,
            dtype=DTYPES[dtype],
        )
        return from_linen(module, clean_pass(module, options.clean_gradient))


FAMILY = ShakeShakeFamily()
