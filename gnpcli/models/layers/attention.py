"""Attention that the transformers share.

Legend: ``[B, T, D]`` features of T tokens; h heads of d = D/h features; Q queries.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Float32

from gnpcli.models.layers.dense import Dense, Initializer, compact, linear
from gnpcli.models.layers.dropout import Dropout


def fused_projection(
    module: nn.Module, init: Initializer, features: int
) -> tuple[Float[Array | np.ndarray, "D {3*features}"], Float[Array | np.ndarray, " {3*features}"]]:
    """Return the parameters of queries, keys and values: kernel ``[D, 3D]`` and bias ``[3D]``.

    They are the module's own, ``qkv_kernel`` and ``qkv_bias``. One product for the three is faster
    than three.
    """
    kernel: jax.Array | np.ndarray = module.param(
        "qkv_kernel", init, (features, 3 * features), jnp.float32
    )
    bias: jax.Array | np.ndarray = module.param(
        "qkv_bias", nn.initializers.zeros, (3 * features,), jnp.float32
    )
    return kernel, bias


def split_heads(
    x: Float[Array, "B T F"], parts: int, heads: int
) -> Float[Array, "{parts} B {heads} T d"]:
    """Rearrange a fused projection ``[B, T, parts * h * d]`` to ``[parts, B, h, T, d]``."""
    batch, tokens, features = x.shape
    apart = x.reshape(batch, tokens, parts, heads, features // (parts * heads))
    return apart.transpose(2, 0, 3, 1, 4)


def attend(
    q: Float[Array, "*batch h Q d"],
    k: Float[Array, "*batch h T d"],
    v: Float[Array, "*batch h T d"],
    drop: Callable[[jax.Array], jax.Array],
    bias: Float32[Array, "*#batch #h Q T"] | None = None,
) -> Float[Array, "*batch h Q d"]:
    """Scaled dot-product attention, arXiv 1706.03762 equation 1, with the softmax in float32.

    Args:
        q: Queries ``[..., h, Q, d]``.
        k: Keys ``[..., h, T, d]``.
        v: Values ``[..., h, T, d]``.
        drop: Dropout of the attention weights ``[..., h, Q, T]``.
        bias: Added to the scores, of as many axes, float32.

    Returns:
        ``[..., h, Q, d]`` in the type of `v`.
    """
    scores = jnp.einsum("...qd,...kd->...qk", scaled(q), k).astype(jnp.float32)
    if bias is not None:
        scores = scores + bias
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("...qk,...kd->...qd", drop(weights), v)


def scaled(q: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """Return queries ``[..., d]`` divided by the root of d."""
    return q * np.asarray(q.shape[-1] ** -0.5, q.dtype)


class Attention(nn.Module):
    """Multi-head self-attention, arXiv 1706.03762 section 3.2.2.

    Attributes:
        heads: Attention heads; divides the features.
        qkv: Initialiser of the fused projection ``[D, 3D]``.
        out: Initialiser of the last projection.
        dtype: Compute type; the softmax is in float32.
        dropout: Rate of the answer.
        attention_dropout: Rate of the attention weights.
        first_only: Whether the first token alone asks: the answer is ``[B, 1, D]``.
    """

    heads: int
    qkv: Initializer
    out: Initializer
    dtype: np.dtype
    dropout: float = 0.0
    attention_dropout: float = 0.0
    first_only: bool = False

    @compact
    def __call__(self, x: Float[Array, "B T D"], train: bool) -> Float[Array, "B Q D"]:
        """Map ``[B, T, D]`` to ``[B, T, D]``, or to ``[B, 1, D]`` with `first_only`."""
        features = x.shape[-1]
        q, k, v = self._project(x, *fused_projection(self, self.qkv, features))
        drop_weights = Dropout(self.attention_dropout)
        y = attend(q, k, v, lambda weights: drop_weights(weights, train))
        y = y.transpose(0, 2, 1, 3).reshape(x.shape[0], -1, features)
        y = Dense(features, self.out, dtype=self.dtype, name="out")(y)
        return Dropout(self.dropout)(y, train)

    def _project(
        self,
        x: Float[Array, "B T D"],
        kernel: Float[Array | np.ndarray, "D F"],
        bias: Float[Array | np.ndarray, " F"],
    ) -> tuple[Float[Array, "B h Q d"], Float[Array, "B h T d"], Float[Array, "B h T d"]]:
        """Return queries, keys and values, each ``[B, h, T, d]``.

        With `first_only` the queries are those of the first token, ``[B, h, 1, d]``.
        """
        if not self.first_only:
            q, k, v = split_heads(linear(x, kernel, bias, self.dtype), 3, self.heads)
            return q, k, v
        features = x.shape[-1]
        own = linear(x[:, :1], kernel[:, :features], bias[:features], self.dtype)
        others = linear(x, kernel[:, features:], bias[features:], self.dtype)
        (q,) = split_heads(own, 1, self.heads)
        k, v = split_heads(others, 2, self.heads)
        return q, k, v
