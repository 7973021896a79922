"""A network that compiles in a second, for tests of what goes on around a network:
``model.name=tests.small:small``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gnpcli.models.base import Model, from_linen
from gnpcli.models.family import Family, Images
from gnpcli.models.layers.dropout import Dropout
from gnpcli.models.layers.norm import BatchNorm
from gnpcli.models.options import Options
from gnpcli.models.registry import Entry


class Small(nn.Module):
    """One hidden layer, with the statistics of BatchNorm to keep and dropout to draw."""

    width: int
    classes: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x = nn.Dense(self.width, use_bias=False, dtype=self.dtype)(
            images.reshape(images.shape[0], -1)
        )
        x = Dropout(self.dropout)(jnp.tanh(BatchNorm(dtype=self.dtype)(x, train)), train)
        return nn.Dense(self.classes, dtype=self.dtype, name="head")(x).astype(jnp.float32)


class SmallOptions(Options):
    """Its one option."""

    dropout: float = 0.1


class SmallFamily(Family[SmallOptions]):
    """Small networks."""

    def build(
        self, sizes: Mapping[str, int], options: SmallOptions, images: Images, dtype: str
    ) -> Model:
        """Build one of them."""
        network = Small(sizes["width"], images.classes, options.dropout, dtype)
        return from_linen(network)


FAMILY = SmallFamily()
small = Entry(__name__, {"width": 32}, SmallOptions)
