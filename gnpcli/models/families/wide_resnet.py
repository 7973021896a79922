"""Wide residual networks WRN-depth-width, arXiv 1605.07146: table 1 and section 2.

Legend: ``[B, H, W, C]`` batch, height, width, channels.

Two variants. ``paper``: where the number of channels changes, the shortcut is a 1x1 convolution of
the activated input, as in the authors' code. ``upstream``: what the GNP papers' code (and SAM's)
builds, where the shortcut is an average pooling padded with zero channels, and where the activation
comes before the residual split only in the very first block.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Float32

from gnpcli.models.base import Model, Params, State, from_linen
from gnpcli.models.family import Family, Images, Tiny
from gnpcli.models.layers.blocks import run
from gnpcli.models.layers.convolution import Conv
from gnpcli.models.layers.dense import DTYPES, Dense, compact, fan_out_uniform
from gnpcli.models.layers.dropout import Dropout
from gnpcli.models.layers.norm import NormRelu
from gnpcli.models.layers.pooling import pool_and_pad
from gnpcli.models.options import WideResnetOptions
from gnpcli.models.torch.convolutional import batch_norm, conv
from gnpcli.models.torch.facts import Facts
from gnpcli.models.torch.state_dict import StateDict

STEM_CHANNELS = 16


class Block(nn.Module):
    """Pre-activation block of two 3x3 convolutions.

    It is figure 1(c) of the paper, or 1(d) with dropout.

    Attributes:
        channels: Channels of the answer.
        stride: Of the first convolution and the shortcut.
        activate_first: Whether the shortcut too starts from the activated input.
        variant: Form of the shortcut where the number of channels changes.
        dropout: Rate between the convolutions (section 2.4), in ``[0, 1)``.
        dtype: Compute type.
    """

    channels: int
    stride: int
    activate_first: bool
    variant: str
    dropout: float
    dtype: np.dtype

    @compact
    def __call__(
        self, x: Float[Array, "B H W C"], train: bool
    ) -> Float[Array, "B Y X {self.channels}"]:
        """Map ``[B, H, W, C]`` to ``[B, ceil(H / stride), ceil(W / stride), channels]``."""
        same = self.variant == "upstream"
        y = NormRelu(self.dtype, name="act_1")(x, train)
        if self.activate_first:
            x = y
        y = Conv(self.channels, 3, self.stride, same, dtype=self.dtype, name="conv_1")(y)
        y = NormRelu(self.dtype, name="act_2")(y, train)
        y = Dropout(self.dropout)(y, train)
        y = Conv(self.channels, 3, dtype=self.dtype, name="conv_2")(y)
        if x.shape[-1] != self.channels or self.stride != 1:
            if self.variant == "upstream":
                x = pool_and_pad(x, self.channels, self.stride)
            else:
                x = Conv(self.channels, 1, self.stride, dtype=self.dtype, name="shortcut")(x)
        answer: jax.Array = x + y
        return answer


class WideResNet(nn.Module):
    """The whole network, ``[B, H, W, C] -> [B, classes]`` in float32, for images of any size.

    Attributes:
        depth: Number of convolutions on the longest path, ``6 n + 4`` for n blocks in each of the
            three groups.
        width: Multiplier of the channels 16, 32, 64 of the groups.
        num_classes: Number of logits.
        variant: ``paper`` or ``upstream``, see the module.
        dropout: Rate between the convolutions of a block, in ``[0, 1)``.
        dtype: Compute type; the statistics of BatchNorm, the mean over the pixels and the head are
            float32 always.
    """

    depth: int
    width: int
    num_classes: int
    variant: str
    dropout: float
    dtype: np.dtype

    @compact
    def __call__(self, images: Float[Array, "B H W C"], train: bool) -> Float32[Array, "B K"]:
        """Return the logits."""
        x = Conv(STEM_CHANNELS, 3, dtype=self.dtype, name="stem")(images)
        x = run(self._blocks(x.shape[-1]), x, train)
        x = NormRelu(self.dtype, name="act")(x, train)
        x = x.astype(jnp.float32).mean(axis=(1, 2))
        logits: jax.Array = Dense(self.num_classes, fan_out_uniform, name="head")(x)
        return logits

    def _blocks(self, channels: int) -> list[Block]:
        """Return the blocks, the first of which takes so many channels."""
        blocks: list[Block] = []
        for group in range(3):
            for index in range((self.depth - 4) // 6):
                before, channels = channels, 2**group * STEM_CHANNELS * self.width
                block = Block(
                    channels=channels,
                    stride=2 if group > 0 and index == 0 else 1,
                    activate_first=self._activates_first(not blocks, before != channels),
                    variant=self.variant,
                    dropout=self.dropout,
                    dtype=self.dtype,
                    name=f"group_{group}_block_{index}",
                )
                blocks.append(block)
        return blocks

    def _activates_first(self, is_first: bool, changes: bool) -> bool:
        """Return whether a block activates before the split, given whether its channels change.

        The paper's code does wherever they change. The GNP papers' code does in the first block of
        all, which in the widths of both is such a place too.
        """
        return changes if self.variant == "paper" else is_first


class WideResnetFamily(Family[WideResnetOptions]):
    """Wide residual networks."""

    tiny = Tiny({"depth": 10, "width": 1}, {"dropout": 0.2})

    def build(
        self, sizes: Mapping[str, int], options: WideResnetOptions, images: Images, dtype: str
    ) -> Model:
        """Build a member of the family."""
        if (sizes["depth"] - 4) % 6:
            raise ValueError(
                f"the depth of a wide residual network is 6 n + 4, not {sizes['depth']}"
            )
        module = WideResNet(
            **sizes,
            num_classes=images.classes,
            variant=options.variant,
            dropout=options.dropout,
            dtype=DTYPES[dtype],
        )
        return from_linen(module)

    def from_torch(self, tensors: Mapping[str, np.ndarray]) -> tuple[Params, State]:
        """Map a PyTorch state dict to parameters and state.

        timm and torchvision have no such network. The names are those of the implementations that
        most published weights come from: ``conv1``, ``block1`` to ``block3`` with ``layer.<n>`` of
        ``bn1``, ``conv1``, ``bn2``, ``conv2`` and ``convShortcut``, then ``bn1`` and ``fc``.

        Raises:
            CheckpointError: The tensors are not those of such a network.
        """
        weights = StateDict(tensors)
        params: Params = {"stem": conv(weights, "conv1"), "act": {}, **weights.head("fc")}
        stats: State = {"act": {}}
        params["act"]["norm"], stats["act"]["norm"] = batch_norm(weights, "bn1")
        for group in range(3):
            for index in range(weights.count(f"block{group + 1}.layer")):
                prefix, name = f"block{group + 1}.layer.{index}", f"group_{group}_block_{index}"
                block = params[name] = {}
                averages = stats[name] = {}
                for number in (1, 2):
                    norm, running = batch_norm(weights, f"{prefix}.bn{number}")
                    block[f"act_{number}"], averages[f"act_{number}"] = (
                        {"norm": norm},
                        {"norm": running},
                    )
                    block[f"conv_{number}"] = conv(weights, f"{prefix}.conv{number}")
                if f"{prefix}.convShortcut.weight" in weights:
                    block["shortcut"] = conv(weights, f"{prefix}.convShortcut")
        weights.finish(constants=("num_batches_tracked",))
        return params, {"batch_stats": stats}

    def facts(self, params: Params) -> Facts:
        """Return the channels of the images, of which any size will do."""
        return Facts(32, params["stem"]["kernel"].shape[2], {})


FAMILY = WideResnetFamily()
