"""Vision Transformer, arXiv 2010.11929: section 3.1 for the encoder, table 1 for the sizes.

Legend: ``[B, H, W, C]`` images; ``[B, T, D]`` features, T tokens of which the first is the class
token; h heads of d = D/h features; P the side of a patch in pixels.

As in the authors' fine-tuning form and in the GNP papers' code there is no representation layer
before the head. The formulation (fused projection, patches by reshape, 2-D products) is the fastest
of those measured on a CPU, and is made of the large matrix products that an accelerator likes too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Float32

from gnpcli.models.base import Model, Params, State, from_linen
from gnpcli.models.family import Family, Images, Tiny
from gnpcli.models.layers.attention import Attention
from gnpcli.models.layers.blocks import run
from gnpcli.models.layers.dense import DTYPES, GELUS, Dense, compact
from gnpcli.models.layers.dropout import Dropout
from gnpcli.models.layers.norm import LayerNorm
from gnpcli.models.layers.transformer import Mlp, check_patches, extract_patches
from gnpcli.models.options import VitOptions
from gnpcli.models.torch.facts import Facts, Path, patches, resize_positions
from gnpcli.models.torch.state_dict import StateDict

xavier_uniform = nn.initializers.xavier_uniform()

# Xavier's limit for one [D, D] projection is sqrt(6 / (D + D)) = sqrt(3 / D). Queries, keys and
# values are three such projections in one [D, 3D] array, of which Lecun's limit sqrt(3 / fan_in) is
# that number; Xavier's would be smaller.
fused_xavier_uniform = nn.initializers.lecun_uniform()


class Block(nn.Module):
    """Pre-norm encoder block, arXiv 2010.11929 equations 2 and 3.

    Attributes:
        heads: Attention heads.
        hidden: Hidden features of the MLP.
        gelu: Activation of the MLP.
        dropout: Rate of the answers of attention and MLP.
        attention_dropout: Rate of the attention weights.
        dtype: Compute type.
        first_only: Whether the answer is that of the first token, without the others.
    """

    heads: int
    hidden: int
    gelu: str
    dropout: float
    attention_dropout: float
    dtype: np.dtype
    first_only: bool = False

    @compact
    def __call__(self, x: Float[Array, "B T D"], train: bool) -> Float[Array, "B Q D"]:
        """Map ``[B, T, D]`` to ``[B, T, D]``, or to ``[B, 1, D]`` with `first_only`."""
        attention = Attention(
            self.heads,
            fused_xavier_uniform,
            xavier_uniform,
            self.dtype,
            self.dropout,
            self.attention_dropout,
            self.first_only,
            name="attention",
        )
        y = attention(LayerNorm(dtype=self.dtype, name="ln_1")(x), train)
        x = (x[:, :1] if self.first_only else x) + y
        mlp = Mlp(
            self.hidden,
            self.dropout,
            xavier_uniform,
            GELUS[self.gelu],
            self.dtype,
            nn.initializers.normal(1e-6),
            name="mlp",
        )
        return x + mlp(LayerNorm(dtype=self.dtype, name="ln_2")(x), train)


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
    def __call__(self, images: Float[Array, "B H W C"], train: bool) -> Float32[Array, "B K"]:
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
        # The head reads the class token alone: the last block computes no other, 5 % less time at
        # depth 12.
        blocks = [
            Block(
                self.heads,
                self.mlp,
                self.gelu,
                self.dropout,
                self.attention_dropout,
                self.dtype,
                first_only=index == self.depth - 1,
                name=f"block_{index}",
            )
            for index in range(self.depth)
        ]
        x = run(blocks, x, train)
        x = LayerNorm(name="ln")(x[:, 0])
        logits: jax.Array = Dense(self.num_classes, nn.initializers.zeros, name="head")(x)
        return logits


class VitFamily(Family[VitOptions]):
    """Vision Transformers."""

    tiny = Tiny({"dim": 8, "depth": 2, "heads": 2, "mlp": 16}, {"dropout": 0.2})

    def build(
        self, sizes: Mapping[str, int], options: VitOptions, images: Images, dtype: str
    ) -> Model:
        """Build a member of the family; raises ConfigError where patches do not tile the images."""
        check_patches(images.size, options.patch_size)
        module = VisionTransformer(
            **sizes,
            patch_size=options.patch_size,
            num_classes=images.classes,
            gelu=options.gelu,
            dropout=options.dropout,
            attention_dropout=options.attention_dropout,
            dtype=DTYPES[dtype],
        )
        return from_linen(module)

    def from_torch(self, tensors: Mapping[str, np.ndarray]) -> tuple[Params, State]:
        """Map the state dict of timm's ``VisionTransformer`` or of torchvision's to parameters.

        Raises:
            CheckpointError: The tensors are not those of a Vision Transformer with a class token.
        """
        weights = StateDict(tensors)
        return (_from_torchvision(weights) if "class_token" in weights else _from_timm(weights)), {}

    def facts(self, params: Params) -> Facts:
        """Return what parameters say of patches and images; both libraries take the exact GELU."""
        patch_size, channels = patches(len(params["patch_embedding"]["kernel"]))
        side = math.isqrt(params["positions"].shape[1] - 1)
        return Facts(patch_size * side, channels, {"patch_size": patch_size, "gelu": "exact"})

    def resize(self, path: Path, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
        """Return the position embedding for another number of patches; the class token's stays."""
        return resize_positions(array, shape[1], prefix=1) if path == ("positions",) else None


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
    for index in itertools.count():
        prefix = f"encoder.layers.encoder_layer_{index}"
        if f"{prefix}.ln_1.weight" not in weights:
            break
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
    weights.finish()
    return params


FAMILY = VitFamily()
