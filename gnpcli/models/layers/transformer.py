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

from gnpcli.models.families.vit import extract_patches
from gnpcli.models.layers.dense import Dense, Dropout, Initializer, compact, exact_gelu, tanh_gelu


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


class Mlp(nn.Module):
    """Two dense layers with a GELU between them, ``[..., D] -> [..., hidden] -> [..., D]``, each
    with dropout.
    """

    hidden: int
    dropout: float
    form: Form
    dtype: np.dtype

    @compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Apply the layers and their dropout."""
        y = self.form.gelu(Dense(self.hidden, self.form.mlp, dtype=self.dtype, name="up")(x))
        y = Dropout(self.dropout)(y, train)
        y = Dense(x.shape[-1], self.form.mlp, dtype=self.dtype, name="down")(y)
        answer: jax.Array = Dropout(self.dropout)(y, train)
        return answer


class PatchEmbedding(nn.Module):
    """Linear embedding of the patches, ``[B, H, W, C] -> [B, H/P * W/P, features]``."""

    features: int
    patch_size: int
    form: Form
    dtype: np.dtype

    @compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Cut and embed."""

        def as_convolution(key: jax.Array, shape: tuple[int, int], dtype: np.dtype) -> jax.Array:
            kernel = (self.patch_size, self.patch_size, images.shape[-1], self.features)
            return self.form.patches(key, kernel, dtype).reshape(shape)

        patches = extract_patches(images, self.patch_size)
        embedded: jax.Array = Dense(
            self.features, as_convolution, dtype=self.dtype, name="projection"
        )(patches)
        return embedded
