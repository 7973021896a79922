"""The convolution layer of the families that have one."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from gnpcli.devices.convolution import convolve
from gnpcli.models.layers.dense import DTYPES, compact

he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Conv(nn.Module):
    """``[B, H, W, I] -> [B, ceil(H / stride), ceil(W / stride), channels]``, see `convolve`."""

    channels: int
    size: int
    stride: int = 1
    same: bool = False
    bias: bool = False
    dtype: np.dtype = DTYPES["float32"]

    @compact
    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B Y X O"]:
        """Apply the layer."""
        shape = (self.size, self.size, x.shape[-1], self.channels)
        kernel = self.param("kernel", he_normal_fan_out, shape, jnp.float32)
        y = convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.same)
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.channels,), jnp.float32)
            y = y + bias.astype(self.dtype)[None, None, None, :]
        return y
