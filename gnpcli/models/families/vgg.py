"""VGG networks, arXiv 1409.1556: columns D and E of table 1.

They come with or without BatchNorm after the convolutions.

Legend: ``[B, H, W, C]`` batch, height, width, channels.

The first hidden layer takes the last map whole. That map is 7 x 7 x 512 at the paper's 224 pixels
and 1 x 1 x 512 at 32. So the parameters belong to one image size.

There are two variants. They differ in the initial weights of the dense layers alone. ``paper``
draws from a normal distribution of deviation 0.01, as torchvision and timm do (section 3.1 names
the distribution). ``upstream`` draws what the GNP papers' code does: a uniform distribution that
ends at ``1 / sqrt(outputs)``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Float32

from gnpcli.errors import ConfigError
from gnpcli.models.base import Model, Params, State, from_linen
from gnpcli.models.family import Family, Images, Tiny
from gnpcli.models.layers.convolution import Conv
from gnpcli.models.layers.dense import DTYPES, Dense, compact
from gnpcli.models.layers.dropout import Dropout
from gnpcli.models.layers.norm import BatchNorm
from gnpcli.models.layers.pooling import max_pool
from gnpcli.models.options import VggOptions
from gnpcli.models.torch.convolutional import batch_norm, conv
from gnpcli.models.torch.facts import Facts
from gnpcli.models.torch.state_dict import StateDict

STAGES: dict[int, tuple[int, ...]] = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Convolutions of each stage by depth; a stage ends in a pooling that halves the resolution."""

WIDTHS = (1, 2, 4, 8, 8)
"""Channels of each stage, in multiples of the first one's."""

DENSE_INIT = {
    "paper": nn.initializers.normal(0.01),
    "upstream": nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform"),
}


class Vgg(nn.Module):
    """The whole network, ``[B, H, W, C] -> [B, classes]`` in float32; H and W are at least 32.

    Attributes:
        stages: Number of 3x3 convolutions of each stage.
        width: Channels of the first stage.
        hidden: Features of the two hidden dense layers.
        batch_norm: Whether BatchNorm follows each convolution.
        num_classes: Number of logits.
        dropout: Rate after each hidden dense layer (section 3.1), in ``[0, 1)``.
        variant: ``paper`` or ``upstream``, see the module.
        dtype: Compute type; the statistics of BatchNorm and the head are float32 always.
    """

    stages: tuple[int, ...]
    width: int
    hidden: int
    batch_norm: bool
    num_classes: int
    dropout: float
    variant: str
    dtype: np.dtype

    @compact
    def __call__(self, images: Float[Array, "B H W C"], train: bool) -> Float32[Array, "B K"]:
        """Return the logits."""
        x = images
        number = 0
        for convolutions, multiple in zip(self.stages, WIDTHS, strict=True):
            for _ in range(convolutions):
                number += 1
                x = Conv(
                    multiple * self.width, 3, bias=True, dtype=self.dtype, name=f"conv_{number}"
                )(x)
                if self.batch_norm:
                    x = BatchNorm(dtype=self.dtype, name=f"norm_{number}")(x, train)
                x = jax.nn.relu(x)
            x = max_pool(x, 2)
        x = x.reshape(x.shape[0], -1)
        dense_init = DENSE_INIT[self.variant]
        for index in (1, 2):
            x = jax.nn.relu(
                Dense(self.hidden, dense_init, dtype=self.dtype, name=f"hidden_{index}")(x)
            )
            x = Dropout(self.dropout)(x, train)
        logits: jax.Array = Dense(self.num_classes, dense_init, name="head")(x.astype(jnp.float32))
        return logits


class VggFamily(Family[VggOptions]):
    """VGG networks; `batch_norm` is 0 or 1."""

    tiny = Tiny({"depth": 16, "width": 2, "hidden": 8, "batch_norm": 1}, image_size=32)

    def build(
        self, sizes: Mapping[str, int], options: VggOptions, images: Images, dtype: str
    ) -> Model:
        """Build a member of the family.

        Raises:
            ConfigError: The poolings leave nothing of the images.
        """
        stages = STAGES[sizes["depth"]]
        _check_size(images.size, len(stages), options.name)
        module = Vgg(
            stages=stages,
            width=sizes["width"],
            hidden=sizes["hidden"],
            batch_norm=bool(sizes["batch_norm"]),
            num_classes=images.classes,
            dropout=options.dropout,
            variant=options.variant,
            dtype=DTYPES[dtype],
        )
        return from_linen(module)

    def from_torch(self, tensors: Mapping[str, np.ndarray]) -> tuple[Params, State]:
        """Map a PyTorch state dict to parameters and state.

        The names are those of torchvision's or timm's ``vgg16`` to ``vgg19_bn``. The first hidden
        layer takes the map as ``[H, W, C]`` here and as ``[C, H, W]`` there.

        Raises:
            CheckpointError: The tensors are not those of such a network.
        """
        weights = StateDict(tensors)
        params: Params = {}
        stats: State = {}
        numbers = _convolution_numbers(tensors)
        for count, number in enumerate(numbers, start=1):
            params[f"conv_{count}"] = conv(weights, f"features.{number}", bias=True)
            if f"features.{number + 1}.running_mean" in weights:
                norm = f"norm_{count}"
                params[norm], stats[norm] = batch_norm(weights, f"features.{number + 1}")
        last_channels = len(weights.take(f"features.{max(numbers, default=0)}.weight"))
        params.update(_dense_layers(weights, last_channels))
        weights.finish(constants=("num_batches_tracked",))
        return params, {"batch_stats": stats} if stats else {}

    def facts(self, params: Params) -> Facts:
        """Return what the first dense layer says of the images: it takes the last map whole."""
        depth = sum(name.startswith("conv_") for name in params)
        last_channels = params[f"conv_{depth}"]["kernel"].shape[-1]
        side = math.isqrt(len(params["hidden_1"]["kernel"]) // last_channels)
        return Facts(2 ** len(WIDTHS) * side, params["conv_1"]["kernel"].shape[2], {})


def _convolution_numbers(tensors: Mapping[str, np.ndarray]) -> list[int]:
    """Return the numbers of the convolutions among ``features.<number>``, in order.

    The numbers count the activations and poolings too. BatchNorm has the number after its
    convolution's.
    """
    numbers = []
    for name, array in tensors.items():
        match = re.fullmatch(r"features\.(\d+)\.weight", name)
        if match is not None and array.ndim == 4:
            numbers.append(int(match[1]))
    return sorted(numbers)


def _dense_layers(weights: StateDict, last_channels: int) -> Params:
    """Return the hidden layers and, where there is one, the head."""
    if "pre_logits.fc1.weight" in weights:  # timm's, where the hidden layers are convolutions
        names = ("pre_logits.fc1", "pre_logits.fc2", "head.fc")
    else:
        names = ("classifier.0", "classifier.3", "classifier.6")
    layers: Params = {}
    for theirs, ours in zip(names, ("hidden_1", "hidden_2", "head"), strict=True):
        if ours == "head" and f"{theirs}.weight" not in weights:
            continue
        kernel = weights.take(f"{theirs}.weight")
        if ours == "hidden_1":
            kernel = kernel.reshape(len(kernel), last_channels, -1).swapaxes(1, 2)
        layers[ours] = {
            "kernel": kernel.reshape(len(kernel), -1).T,
            "bias": weights.take(f"{theirs}.bias"),
        }
    return layers


def _check_size(image_size: int, halvings: int, name: str) -> None:
    smallest = 2**halvings
    if image_size < smallest:
        raise ConfigError(
            f"{name} halves its images {halvings} times, which images of {image_size} x "
            f"{image_size} pixels do not allow; sizes that do: {smallest} and larger",
            key="data.image_size",
        )


FAMILY = VggFamily()
