"""What Swin and CaiT share beyond `gnpcli.models.layers`: MLP, patch embedding and variants.

Legend: ``[B, H, W, C]`` images; ``[B, T, D]`` features of T tokens; P the side of a patch in
    pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from gnpcli.errors import ConfigError
from gnpcli.models.layers.dense import Dense, Initializer, compact, exact_gelu, tanh_gelu
from gnpcli.models.layers.dropout import Dropout


@dataclass(frozen=True)
class Form:
    """What a variant decides besides the sizes.

    Attributes:
        dense: Initialiser of the attention's projections, the patch merging and the head.
        mlp: Initialiser of the MLP's two kernels.
        patches: Initialiser of the patch embedding as a convolution kernel ``[P, P, C, D]``.
        tokens: Initialiser of CaiT's class token and position embedding.
        gelu: Activation of the MLP.
    """

    dense: Initializer
    mlp: Initializer
    patches: Initializer
    tokens: Initializer
    gelu: Callable[[jax.Array], jax.Array]


# The authors of both draw from a normal distribution cut at 100 standard deviations, and leave the
# patch embedding at U(-1, 1) / sqrt(fan_in), the default of their library's convolution.
_normal = nn.initializers.normal(0.02)
_conv_default = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

FORMS = {
    "paper": Form(_normal, _normal, _conv_default, _normal, exact_gelu),
    "upstream": Form(
        dense=nn.initializers.lecun_normal(),
        mlp=nn.initializers.xavier_uniform(),
        patches=nn.initializers.xavier_uniform(),
        tokens=nn.initializers.zeros,
        gelu=tanh_gelu,
    ),
}
"""By the name of the variant: ``paper`` as the authors' code, ``upstream`` as the GNP papers' code.
"""


def extract_patches(
    images: Float[Array, "B H W C"], patch_size: int
) -> Float[Array, "B T {patch_size*patch_size*images.shape[-1]}"]:
    """Cut ``[B, H, W, C]`` into patches ``[B, H/P * W/P, P * P * C]``.

    Patches and their pixels are in row-major order. A dense layer on the result is a P x P
    convolution of stride P whose kernel ``[P, P, C, D]`` is flattened.
    """
    batch, height, width, channels = images.shape
    rows, columns = height // patch_size, width // patch_size
    patches = images.reshape(batch, rows, patch_size, columns, patch_size, channels).transpose(
        0, 1, 3, 2, 4, 5
    )
    return patches.reshape(batch, rows * columns, patch_size * patch_size * channels)


def check_patches(image_size: int, patch_size: int) -> None:
    """Refuse images that patches do not tile.

    Raises:
        ConfigError: With the sizes of either that fit.
    """
    if image_size % patch_size == 0:
        return
    below = image_size - image_size % patch_size
    sizes = [size for size in (below, below + patch_size) if size > 0]
    fitting = [size for size in range(1, image_size + 1) if image_size % size == 0]
    raise ConfigError(
        f"patches of {patch_size} pixels do not tile images of {image_size} x {image_size} pixels; "
        "image sizes that "
        f"fit: {', '.join(map(str, sizes))}; patch sizes that fit these images: "
        f"{', '.join(map(str, fitting))}",
        key="model.patch_size",
    )


class Mlp(nn.Module):
    """Two dense layers with a GELU between them, each with dropout.

    Attributes:
        hidden: Features between the layers.
        dropout: Rate after each layer.
        kernel: Initialiser of both kernels.
        gelu: Activation.
        dtype: Compute type.
        bias: Initialiser of both biases.
    """

    hidden: int
    dropout: float
    kernel: Initializer
    gelu: Callable[[jax.Array], jax.Array]
    dtype: np.dtype
    bias: Initializer = nn.initializers.zeros

    @compact
    def __call__(self, x: Float[Array, "*rows D"], train: bool) -> Float[Array, "*rows D"]:
        """Map ``[..., D]`` to ``[..., hidden]`` and back to ``[..., D]``."""
        y = self.gelu(Dense(self.hidden, self.kernel, self.bias, self.dtype, name="up")(x))
        y = Dropout(self.dropout)(y, train)
        y = Dense(x.shape[-1], self.kernel, self.bias, self.dtype, name="down")(y)
        return Dropout(self.dropout)(y, train)


class PatchEmbedding(nn.Module):
    """Linear embedding of the patches, ``[B, H, W, C] -> [B, H/P * W/P, features]``."""

    features: int
    patch_size: int
    form: Form
    dtype: np.dtype

    @compact
    def __call__(self, images: Float[Array, "B H W C"]) -> Float[Array, "B T D"]:
        """Cut and embed."""

        def as_convolution(
            key: Key[Array, ""], shape: tuple[int, int], dtype: DTypeLike
        ) -> Float[Array, "I O"]:
            kernel = (self.patch_size, self.patch_size, images.shape[-1], self.features)
            return self.form.patches(key, kernel, dtype).reshape(shape)

        patches = extract_patches(images, self.patch_size)
        embedded: jax.Array = Dense(
            self.features, as_convolution, dtype=self.dtype, name="projection"
        )(patches)
        return embedded
