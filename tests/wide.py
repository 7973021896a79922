"""A network of blocks whose kernels are large enough to be split over devices:
``model.name=tests.wide:wide``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gnpcli.models.base import Model, from_linen
from gnpcli.models.family import Family, Images
from gnpcli.models.layers.blocks import run
from gnpcli.models.layers.dropout import Dropout
from gnpcli.models.layers.norm import BatchNorm
from gnpcli.models.options import Options
from gnpcli.models.registry import Entry


class Block(nn.Module):
    """A residual layer, with the statistics of BatchNorm to keep and dropout to draw."""

    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = Dropout(self.dropout)(jnp.tanh(BatchNorm(dtype=self.dtype)(x, train)), train)
        return x + nn.Dense(x.shape[-1], dtype=self.dtype)(y)


class Wide(nn.Module):
    """Two blocks between a first layer and a head; smooth, so that rounding decides nothing."""

    width: int
    classes: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x = nn.Dense(self.width, dtype=self.dtype)(images.reshape(images.shape[0], -1))
        x = run(
            [Block(self.dropout, self.dtype, name=f"block_{index}") for index in (0, 1)], x, train
        )
        return nn.Dense(self.classes, dtype=self.dtype, name="head")(x).astype(jnp.float32)


class WideOptions(Options):
    """Its one option."""

    dropout: float = 0.1


class WideFamily(Family[WideOptions]):
    """Wide networks."""

    def build(
        self, sizes: Mapping[str, int], options: WideOptions, images: Images, dtype: str
    ) -> Model:
        """Build one of them."""
        return from_linen(Wide(sizes["width"], images.classes, options.dropout, dtype))


FAMILY = WideFamily()
wide = Entry(__name__, {"width": 576}, WideOptions)
broad = Entry(__name__, {"width": 4096}, WideOptions)
"""One of which 64 devices have 64 rows of a kernel each."""
