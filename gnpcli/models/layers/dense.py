"""The dense layer and its activation, with what every layer of the package is made of.

Legend: ``[..., I]`` any leading axes and I inputs, O outputs. Parameters are float32 and drawn in
float32; `dtype` is the type that a layer computes and answers in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

DTYPES = {"float32": jnp.dtype(jnp.float32), "bfloat16": jnp.dtype(jnp.bfloat16)}
"""Compute types by the name they have in a configuration."""

Initializer = Callable[..., jax.Array]
"""``init(key, shape, dtype) -> array``."""

Method = TypeVar("Method", bound=Callable[..., Any])

# Limit sqrt(3 * scale / fan_out): U(-1, 1) / sqrt(outputs).
fan_out_uniform = nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform")


def compact(method: Method) -> Method:
    """Mark a module's method as `flax.linen.compact` does.

    The method keeps its type, which flax does not declare.
    """
    return cast(Method, nn.compact(method))


def tanh_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Gaussian error linear unit in its tanh form, arXiv 1606.08415 section 2.

    ViT's own code uses this form.
    """
    return jax.nn.gelu(x, approximate=True)


def exact_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Gaussian error linear unit ``x Phi(x)``, arXiv 1606.08415 equation 1, computed in float32.

    By `erf`, where `jax.nn.gelu` takes `erfc`: 1.5 times faster on a CPU with its derivative. What
    that loses is the relative precision of answers near 0, at x below -3.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * np.float32(0.5**0.5)))).astype(x.dtype)


GELUS: dict[str, Callable[[jax.Array], jax.Array]] = {"tanh": tanh_gelu, "exact": exact_gelu}
"""Forms of the GELU by the name they have in a configuration."""


def linear(
    x: Float[Array, "*rows I"],
    kernel: Float[Array | np.ndarray, "I O"],
    bias: Float[Array | np.ndarray, " O"],
    dtype: np.dtype,
) -> Float[Array, "*rows O"]:
    """Return ``x @ kernel + bias``, computed in `dtype`.

    The leading axes are flattened first. XLA's CPU backend is faster with one large 2-D product
    than with a batched one, and the reshape is free everywhere.
    """
    rows = x.reshape(-1, x.shape[-1]).astype(dtype)
    product = rows @ kernel.astype(dtype) + bias.astype(dtype)[None, :]
    return product.reshape(*x.shape[:-1], kernel.shape[1])


class Dense(nn.Module):
    """``[..., I] -> [..., features]``, see `linear`."""

    features: int
    kernel_init: Initializer
    bias_init: Initializer = nn.initializers.zeros
    dtype: np.dtype = DTYPES["float32"]

    @compact
    def __call__(self, x: Float[Array, "*rows I"]) -> Float[Array, "*rows O"]:
        """Apply the layer."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
        return linear(x, kernel, bias, self.dtype)
