"""Residual networks, arXiv 1512.03385: table 1 and figure 5.

Legend: ``[B, H, W, C]`` batch, height, width, channels.

Two stems. ``imagenet``: a 7x7 convolution and a 3x3 maximum, both of stride 2. ``cifar``: a 3x3
convolution that keeps the resolution of small images.

Two variants. ``paper``: as torchvision and timm build it. The stride of a bottleneck is in its 3x3
convolution, not in the 1x1 before it as in the authors' own code, and the scale of the last
BatchNorm of each block starts at 0, so that the blocks start as identities (arXiv 1706.02677
section 5.1; timm's default, torchvision's option). ``upstream``: what the GNP papers' code builds,
with no ReLU in the stem, 16 channels in the ``cifar`` stem, biased convolutions in the blocks of
depths 18 and 34, XLA's ``SAME`` padding, and scales that start at 1.
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
from gnpcli.models.layers.dense import DTYPES, Dense, compact
from gnpcli.models.layers.norm import BatchNorm
from gnpcli.models.layers.pooling import max_pool
from gnpcli.models.options import ResnetOptions
from gnpcli.models.torch.convolutional import batch_norm, conv
from gnpcli.models.torch.facts import Facts
from gnpcli.models.torch.state_dict import StateDict

BOTTLENECK_EXPANSION = 4

STAGES: dict[int, tuple[int, ...]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),  # arXiv 1603.05027
}
"""Blocks of each stage by depth."""

BOTTLENECK_DEPTH = 50
"""Blocks have two 3x3 convolutions below this depth, and 1x1, 3x3, 1x1 from it on."""

# Limit sqrt(3 * scale / fan): 1 / sqrt(features), and 1 / sqrt(classes) upstream.
HEAD_INIT = {
    "paper": nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
    "upstream": nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform"),
}


class Block(nn.Module):
    """Residual block of figure 5 of the paper: the left one, or with `bottleneck` the right one.

    Attributes:
        channels: Channels of the convolutions; the last 1x1 convolution of a bottleneck has 4 times
            as many.
        stride: Of the first 3x3 convolution and the shortcut.
        bottleneck: Which of the two.
        variant: ``paper`` or ``upstream``, see the module.
        dtype: Compute type.
    """

    channels: int
    stride: int
    bottleneck: bool
    variant: str
    dtype: np.dtype

    @compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B Y X O"]:
        """Map ``[B, H, W, C]`` to ``[B, ceil(H / stride), ceil(W / stride), C']``.

        C' is `channels`, or ``4 * channels`` with bottlenecks.
        """
        upstream = self.variant == "upstream"

        def conv_norm(
            x: jax.Array,
            channels: int,
            size: int,
            stride: int,
            conv: str,
            norm: str,
            is_last: bool = False,
        ) -> jax.Array:
            bias = upstream and not self.bottleneck
            x = Conv(channels, size, stride, same=upstream, bias=bias, dtype=self.dtype, name=conv)(
                x
            )
            scale = nn.initializers.zeros if is_last and not upstream else nn.initializers.ones
            answer: jax.Array = BatchNorm(scale_init=scale, dtype=self.dtype, name=norm)(x, train)
            return answer

        channels = self.channels
        if self.bottleneck:
            layers = [
                (channels, 1, 1),
                (channels, 3, self.stride),
                (BOTTLENECK_EXPANSION * channels, 1, 1),
            ]
        else:
            layers = [(channels, 3, self.stride), (channels, 3, 1)]
        y = x
        for index, (channels, size, stride) in enumerate(layers, start=1):
            y = y if index == 1 else jax.nn.relu(y)
            y = conv_norm(
                y, channels, size, stride, f"conv_{index}", f"norm_{index}", index == len(layers)
            )
        if self.stride != 1 or x.shape[-1] != channels:
            x = conv_norm(x, channels, 1, self.stride, "shortcut", "shortcut_norm")
        return jax.nn.relu(x + y)


class ResNet(nn.Module):
    """The whole network, ``[B, H, W, C] -> [B, classes]`` in float32, for images of any size.

    Attributes:
        stages: Number of blocks of each stage; every stage but the first halves the resolution.
        bottleneck: Form of the blocks.
        width: Channels of the first stage; each further one has twice as many.
        num_classes: Number of logits.
        stem: ``cifar`` or ``imagenet``, see the module.
        variant: ``paper`` or ``upstream``, see the module.
        dtype: Compute type; the statistics of BatchNorm, the mean over the pixels and the head are
            float32 always.
    """

    stages: tuple[int, ...]
    bottleneck: bool
    width: int
    num_classes: int
    stem: str
    variant: str
    dtype: np.dtype

    @compact
    def __call__(self, images: Float[Array, "B H W C"], train: bool) -> Float32[Array, "B K"]:
        """Return the logits."""
        upstream, small = self.variant == "upstream", self.stem == "cifar"
        size, stride = (3, 1) if small else (7, 2)
        channels = self.width // 4 if small and upstream else self.width
        x = Conv(channels, size, stride, same=upstream, dtype=self.dtype, name="stem")(images)
        x = BatchNorm(dtype=self.dtype, name="stem_norm")(x, train)
        if not upstream:
            x = jax.nn.relu(x)
        if not small:
            x = max_pool(x, 3, same=upstream)
        blocks = [
            Block(
                channels=2**stage * self.width,
                stride=2 if stage > 0 and index == 0 else 1,
                bottleneck=self.bottleneck,
                variant=self.variant,
                dtype=self.dtype,
                name=f"stage_{stage}_block_{index}",
            )
            for stage, count in enumerate(self.stages)
            for index in range(count)
        ]
        x = run(blocks, x, train)
        x = x.astype(jnp.float32).mean(axis=(1, 2))
        logits: jax.Array = Dense(self.num_classes, HEAD_INIT[self.variant], name="head")(x)
        return logits


class ResnetFamily(Family[ResnetOptions]):
    """Residual networks."""

    tiny = Tiny({"depth": 18, "width": 2})

    def build(
        self, sizes: Mapping[str, int], options: ResnetOptions, images: Images, dtype: str
    ) -> Model:
        """Build a member of the family."""
        depth = sizes["depth"]
        module = ResNet(
            stages=STAGES[depth],
            bottleneck=depth >= BOTTLENECK_DEPTH,
            width=sizes["width"],
            num_classes=images.classes,
            stem=options.stem,
            variant=options.variant,
            dtype=DTYPES[dtype],
        )
        return from_linen(module)

    def from_torch(self, tensors: Mapping[str, np.ndarray]) -> tuple[Params, State]:
        """Map a state dict of torchvision or timm to parameters and state.

        It is one of ``resnet18`` to ``resnet200``.

        Raises:
            CheckpointError: The tensors are not those of such a network.
        """
        weights = StateDict(tensors)
        params: Params = {"stem": conv(weights, "conv1"), **weights.head("fc")}
        stats: State = {}
        params["stem_norm"], stats["stem_norm"] = batch_norm(weights, "bn1")
        for stage in range(4):
            for index in range(weights.count(f"layer{stage + 1}")):
                prefix, name = f"layer{stage + 1}.{index}", f"stage_{stage}_block_{index}"
                block = params[name] = {}
                averages = stats[name] = {}
                layers = [(f"conv{k}", f"bn{k}", f"conv_{k}", f"norm_{k}") for k in (1, 2, 3)]
                layers.append(("downsample.0", "downsample.1", "shortcut", "shortcut_norm"))
                for theirs, their_norm, ours, our_norm in layers:
                    if f"{prefix}.{theirs}.weight" in weights:
                        block[ours] = conv(weights, f"{prefix}.{theirs}")
                        block[our_norm], averages[our_norm] = batch_norm(
                            weights, f"{prefix}.{their_norm}"
                        )
        weights.finish(constants=("num_batches_tracked",))
        return params, {"batch_stats": stats}

    def facts(self, params: Params) -> Facts:
        """Return what parameters say of the stem; any image size will do."""
        size, _, channels, _ = params["stem"]["kernel"].shape
        return (
            Facts(224, channels, {"stem": "imagenet"})
            if size == 7
            else Facts(32, channels, {"stem": "cifar"})
        )


FAMILY = ResnetFamily()
