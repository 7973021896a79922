"""Vision Transformer, arXiv 2010.11929: section 3.1 for the encoder, table 1 for the sizes.

Legend: ``[B, H, W, C]`` images; ``[B, T, D]`` features, T tokens of which the first is the class
token; h heads of d = D/h features; P the side of a patch in pixels.

As in the authors' fine-tuning form and in the GNP papers' code there is no representation layer
before the head. The formulation (fused projection, patches by reshape, 2-D products) is the fastest
of those measured on a CPU, and is made of the large matrix products that an accelerator likes too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gnpcli.config.schema import ModelConfig
from gnpcli.devices.cpu import stored
from gnpcli.errors import ConfigError
from gnpcli.models.base import Model, Params, State, from_linen
from gnpcli.models.layers.blocks import as_block
from gnpcli.models.layers.dense import DTYPES, GELUS, Dense, Dropout, LayerNorm, compact, linear
from gnpcli.models.torch.facts import Facts, Path, patches, resize_positions
from gnpcli.models.torch.state_dict import StateDict

xavier_uniform = nn.initializers.xavier_uniform()

# Xavier's limit for one [D, D] projection is sqrt(6 / (D + D)) = sqrt(3 / D). Queries, keys and
# values are three such projections in one [D, 3D] array, of which Lecun's limit sqrt(3 / fan_in) is
# that number; Xavier's would be smaller.
fused_xavier_uniform = nn.initializers.lecun_uniform()


def extract_patches(images: jax.Array, patch_size: int) -> jax.Array:
    """Cut ``[B, H, W, C]`` into ``[B, H/P * W/P, P * P * C]``, patches and their pixels in
    row-major order.

    A dense layer on the result is a P x P convolution of stride P whose kernel ``[P, P, C, D]`` is
    flattened.
    """
    batch, height, width, channels = images.shape
    rows, columns = height // patch_size, width // patch_size
    patches = images.reshape(batch, rows, patch_size, columns, patch_size, channels).transpose(
        0, 1, 3, 2, 4, 5
    )
    return patches.reshape(batch, rows * columns, patch_size * patch_size * channels)


def split_heads(x: jax.Array, parts: int, heads: int) -> jax.Array:
    """Rearrange a fused projection ``[B, T, parts * h * d]`` to ``[parts, B, h, T, d]``."""
    batch, tokens, features = x.shape
    return x.reshape(batch, tokens, parts, heads, features // (parts * heads)).transpose(
        2, 0, 3, 1, 4
    )


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, drop: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Scaled dot-product attention, arXiv 1706.03762 equation 1, with the softmax in float32.

    Args:
        q: Queries ``[B, h, Q, d]``.
        k: Keys ``[B, h, T, d]``.
        v: Values ``[B, h, T, d]``.
        drop: Dropout of the attention weights ``[B, h, Q, T]``.

    Returns:
        ``[B, h, Q, d]`` in the type of `v`.
    """
    scores = jnp.einsum("bhqd,bhkd->bhqk", q * np.asarray(q.shape[-1] ** -0.5, q.dtype), k)
    weights = jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(v.dtype)
    return jnp.einsum("bhqk,bhkd->bhqd", drop(weights), v)


class SelfAttention(nn.Module):
    """Multi-head self-attention, arXiv 1706.03762 section 3.2.2."""

    heads: int
    dropout: float
    attention_dropout: float
    dtype: np.dtype

    @compact
    def __call__(self, x: jax.Array, train: bool, first_only: bool) -> jax.Array:
        """Map ``[B, T, D]`` to ``[B, T, D]``, or to ``[B, 1, D]``: the first token's answer,
        without the others'.
        """
        features = x.shape[-1]
        kernel = self.param(
            "qkv_kernel", fused_xavier_uniform, (features, 3 * features), jnp.float32
        )
        bias = self.param("qkv_bias", nn.initializers.zeros, (3 * features,), jnp.float32)
        if first_only:
            (q,) = split_heads(
                linear(x[:, :1], kernel[:, :features], bias[:features], self.dtype), 1, self.heads
            )
            k, v = split_heads(
                linear(x, kernel[:, features:], bias[features:], self.dtype), 2, self.heads
            )
        else:
            q, k, v = split_heads(linear(x, kernel, bias, self.dtype), 3, self.heads)
        drop_weights = Dropout(self.attention_dropout)
        y = attend(q, k, v, lambda weights: drop_weights(weights, train))
        y = y.transpose(0, 2, 1, 3).reshape(x.shape[0], -1, features)
        y = Dense(features, xavier_uniform, dtype=self.dtype, name="out")(y)
        answer: jax.Array = Dropout(self.dropout)(y, train)
        return answer


class Mlp(nn.Module):
    """Two dense layers with a GELU between them, ``[B, T, D] -> [B, T, hidden] -> [B, T, D]``."""

    hidden: int
    gelu: str
    dropout: float
    dtype: np.dtype

    @compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Apply the layers and their dropout."""
        bias_init = nn.initializers.normal(1e-6)
        y = GELUS[self.gelu](
            Dense(self.hidden, xavier_uniform, bias_init, self.dtype, name="up")(x)
        )
        y = Dropout(self.dropout)(y, train)
        y = Dense(x.shape[-1], xavier_uniform, bias_init, self.dtype, name="down")(y)
        answer: jax.Array = Dropout(self.dropout)(y, train)
        return answer


class Block(nn.Module):
    """Pre-norm encoder block, arXiv 2010.11929 equations 2 and 3."""

    heads: int
    hidden: int
    gelu: str
    dropout: float
    attention_dropout: float
    dtype: np.dtype

    @compact
    def __call__(self, x: jax.Array, train: bool, first_only: bool) -> jax.Array:
        """Map ``[B, T, D]`` to ``[B, T, D]``, or to ``[B, 1, D]``: the first token of it, without
        the others.
        """
        y = LayerNorm(dtype=self.dtype, name="ln_1")(x)
        attention = SelfAttention(
            self.heads, self.dropout, self.attention_dropout, self.dtype, name="attention"
        )
        x = (x[:, :1] if first_only else x) + attention(y, train, first_only)
        y = LayerNorm(dtype=self.dtype, name="ln_2")(x)
        answer: jax.Array = x + Mlp(self.hidden, self.gelu, self.dropout, self.dtype, name="mlp")(
            y, train
        )
        return answer


class VisionTransformer(nn.Module):
    """The whole network, ``[B, H, W, C] -> [B, classes]`` in float32.

    Attributes:
        dim: Features per token, D.
        depth: Number of encoder blocks.
        heads: Attention heads; divides `dim`.
        mlp: Hidden features of the MLP.
        patch_size: Side of a patch in pixels; divides the sides of the images.
        num_classes: Number of logits.
        gelu: ``tanh``, as in the authors' code, or ``exact``.
        dropout: Rate after the position embedding, each of the MLP's layers and the attention's
            output (appendix B.1), in ``[0, 1)``.
        attention_dropout: Rate of the attention weights, in ``[0, 1)``.
        dtype: Compute type; LayerNorm, softmax and head are in float32 always.
    """

    dim: int
    depth: int
    heads: int
    mlp: int
    patch_size: int
    num_classes: int
    gelu: str
    dropout: float
    attention_dropout: float
    dtype: np.dtype

    @compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Return the logits."""
        patches = extract_patches(images, self.patch_size)
        x = Dense(
            self.dim, nn.initializers.lecun_normal(), dtype=self.dtype, name="patch_embedding"
        )(patches)
        cls = self.param("cls", nn.initializers.zeros, (1, 1, self.dim), jnp.float32).astype(
            self.dtype
        )
        x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, self.dim)), x], axis=1)
        positions = self.param(
            "positions", nn.initializers.normal(0.02), (1, x.shape[1], self.dim), jnp.float32
        )
        x = Dropout(self.dropout)(x + positions.astype(self.dtype), train)
        for index in range(self.depth):
            block = as_block(Block, 2, 3)(
                self.heads,
                self.mlp,
                self.gelu,
                self.dropout,
                self.attention_dropout,
                self.dtype,
                name=f"block_{index}",
            )
            # The head reads the class token alone: the last block computes no other, 5 % less time
            # at depth 12.
            x = stored(block(x, train, index == self.depth - 1))
        x = LayerNorm(name="ln")(x[:, 0])
        logits: jax.Array = Dense(self.num_classes, nn.initializers.zeros, name="head")(x)
        return logits


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


def build(
    architecture: Mapping[str, int],
    config: ModelConfig,
    *,
    num_classes: int,
    image_size: int,
    channels: int,
    dtype: str,
) -> Model:
    """Build a Vision Transformer; see `gnpcli.models.registry.build_model` for the arguments.

    Raises:
        ConfigError: The patches do not tile the images.
    """
    del channels  # the patch embedding takes as many as it meets
    patch_size = config.patch_size
    assert patch_size is not None  # resolved
    check_patches(image_size, patch_size)
    module = VisionTransformer(
        **architecture,
        patch_size=patch_size,
        num_classes=num_classes,
        gelu=config.gelu or "tanh",
        dropout=config.dropout or 0.0,
        attention_dropout=config.attention_dropout or 0.0,
        dtype=DTYPES[dtype],
    )
    return from_linen(module)


def from_torch(tensors: Mapping[str, np.ndarray]) -> tuple[Params, State]:
    """Map the state dict of timm's ``VisionTransformer`` or of torchvision's to parameters.

    Raises:
        CheckpointError: The tensors are not those of a Vision Transformer with a class token.
    """
    weights = StateDict(tensors)
    return (_from_torchvision(weights) if "class_token" in weights else _from_timm(weights)), {}


def _from_timm(weights: StateDict) -> Params:
    params: Params = {
        "patch_embedding": weights.patches("patch_embed.proj"),
        "cls": weights.take("cls_token"),
        "positions": weights.take("pos_embed"),
        "ln": weights.norm("norm"),
        **weights.head("head"),
    }
    for index in range(weights.count("blocks")):
        prefix = f"blocks.{index}"
        params[f"block_{index}"] = {
            "ln_1": weights.norm(f"{prefix}.norm1"),
            "attention": {
                **weights.fused(f"{prefix}.attn.qkv"),
                "out": weights.dense(f"{prefix}.attn.proj"),
            },
            "ln_2": weights.norm(f"{prefix}.norm2"),
            "mlp": {
                "up": weights.dense(f"{prefix}.mlp.fc1"),
                "down": weights.dense(f"{prefix}.mlp.fc2"),
            },
        }
    weights.finish()
    return params


def _from_torchvision(weights: StateDict) -> Params:
    params: Params = {
        "patch_embedding": weights.patches("conv_proj"),
        "cls": weights.take("class_token"),
        "positions": weights.take("encoder.pos_embedding"),
        "ln": weights.norm("encoder.ln"),
        **weights.head("heads.head"),
    }
    index = 0
    while f"{(prefix := f'encoder.layers.encoder_layer_{index}')}.ln_1.weight" in weights:
        qkv = {
            "qkv_kernel": weights.take(f"{prefix}.self_attention.in_proj_weight").T,
            "qkv_bias": weights.take(f"{prefix}.self_attention.in_proj_bias"),
        }
        params[f"block_{index}"] = {
            "ln_1": weights.norm(f"{prefix}.ln_1"),
            "attention": {**qkv, "out": weights.dense(f"{prefix}.self_attention.out_proj")},
            "ln_2": weights.norm(f"{prefix}.ln_2"),
            "mlp": {
                "up": weights.dense(f"{prefix}.mlp.0"),
                "down": weights.dense(f"{prefix}.mlp.3"),
            },
        }
        index += 1
    weights.finish()
    return params


def facts(params: Params) -> Facts:
    """Return what parameters say of patches and images; both libraries take the exact GELU."""
    patch_size, channels = patches(len(params["patch_embedding"]["kernel"]))
    side = math.isqrt(params["positions"].shape[1] - 1)
    return Facts(patch_size * side, channels, {"patch_size": patch_size, "gelu": "exact"})


def resize(path: Path, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the position embedding for another number of patches; the class token's stays."""
    return resize_positions(array, shape[1], prefix=1) if path == ("positions",) else None
