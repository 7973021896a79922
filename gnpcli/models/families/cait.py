"""CaiT, class-attention in image transformers, arXiv 2103.17239.

Section 2 of the paper has LayerScale, section 3 the layers.

Legend: ``[B, H, W, C]`` images; ``[B, T, D]`` features of T tokens, one per patch; h heads of
    ``d = D / h`` features.

The class token enters only after the self-attention blocks. Two blocks of class attention follow,
which change nothing else.

There are two variants. ``paper`` has the authors' initialisation and exact GELU, and a LayerScale
that starts at a value by depth. ``upstream`` is as in the GNP papers' code, see
`gnpcli.models.layers.transformer.FORMS`, with a LayerScale by width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Float32

from gnpcli.models.base import Model, Params, State, from_linen
from gnpcli.models.family import Family, Images, Tiny
from gnpcli.models.layers.attention import Attention, fused_projection, scaled
from gnpcli.models.layers.blocks import run
from gnpcli.models.layers.dense import DTYPES, Dense, compact, linear
from gnpcli.models.layers.dropout import Dropout, DropPath
from gnpcli.models.layers.norm import LayerNorm
from gnpcli.models.layers.transformer import FORMS, Form, Mlp, PatchEmbedding, check_patches
from gnpcli.models.options import CaitOptions
from gnpcli.models.torch.facts import Facts, Path, patches, resize_positions
from gnpcli.models.torch.state_dict import StateDict

CLASS_BLOCKS = 2
MLP_RATIO = 4
EPS = 1e-6


class LayerScale(nn.Module):
    """Multiply every feature by a learned factor, section 2 of the paper.

    The factors start at `initial`.
    """

    initial: float

    @compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Scale ``[B, T, D]``."""
        init = nn.initializers.constant(self.initial)
        scale: jax.Array = self.param("scale", init, (x.shape[-1],), jnp.float32)
        return x * scale.astype(x.dtype)[None, None, :]


class MixHeads(nn.Module):
    """Linear map across the heads, ``[h, ...] -> [h, ...]``, arXiv 2003.02436.

    It computes and answers in the type of the input. With the heads in front, the map is one
    product ``[h, h] @ [h, B * T * T]`` that moves no data. That is 1.7 to 4 times faster on a CPU
    than a contraction of an inner axis.
    """

    form: Form

    @compact
    def __call__(self, x: Float[Array, " h *rest"]) -> Float[Array, " h *rest"]:
        """Mix the first axis."""
        heads = x.shape[0]
        kernel = self.param("kernel", self.form.dense, (heads, heads), jnp.float32).astype(x.dtype)
        bias = self.param("bias", nn.initializers.zeros, (heads,), jnp.float32).astype(x.dtype)
        mixed: jax.Array = kernel.T @ x.reshape(heads, -1) + bias[:, None]
        return mixed.reshape(x.shape)


class TalkingHeads(nn.Module):
    """Self-attention whose heads are mixed before and after the softmax, arXiv 2003.02436.

    Attributes:
        heads: Attention heads; divides the features.
        dropout: Rate of the answer.
        attention_dropout: Rate of the mixed attention weights.
        form: See `Form`.
        dtype: Compute type; the first mixing and the softmax are in float32.
    """

    heads: int
    dropout: float
    attention_dropout: float
    form: Form
    dtype: np.dtype

    @compact
    def __call__(self, x: Float[Array, "B T D"], train: bool) -> Float[Array, "B T D"]:
        """Map ``[B, T, D]`` to ``[B, T, D]``."""
        batch, tokens, features = x.shape
        kernel, bias = fused_projection(self, self.form.dense, features)
        qkv = linear(x, kernel, bias, self.dtype).reshape(batch, tokens, 3, self.heads, -1)
        q, k, v = qkv.transpose(2, 3, 0, 1, 4)  # each [h, B, T, d]
        scores = jnp.einsum("hbqd,hbkd->hbqk", scaled(q), k)
        scores = MixHeads(self.form, name="mix_scores")(scores.astype(jnp.float32))
        weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        weights = MixHeads(self.form, name="mix_weights")(weights)
        weights = Dropout(self.attention_dropout)(weights, train)
        y = jnp.einsum("hbqk,hbkd->hbqd", weights, v).transpose(1, 2, 0, 3).reshape(x.shape)
        y = Dense(features, self.form.dense, dtype=self.dtype, name="out")(y)
        answer: jax.Array = Dropout(self.dropout)(y, train)
        return answer


class Block(nn.Module):
    """Pre-norm block of talking-heads attention and MLP with LayerScale, section 2 of the paper."""

    heads: int
    layer_scale: float
    dropout: float
    attention_dropout: float
    drop_path: float
    form: Form
    dtype: np.dtype

    @compact
    def __call__(self, x: Float[Array, "B T D"], train: bool) -> Float[Array, "B T D"]:
        """Map ``[B, T, D]`` to ``[B, T, D]``."""
        y = LayerNorm(EPS, self.dtype, name="ln_1")(x)
        attention = TalkingHeads(
            self.heads,
            self.dropout,
            self.attention_dropout,
            self.form,
            self.dtype,
            name="attention",
        )
        y = LayerScale(self.layer_scale, name="scale_1")(attention(y, train))
        x = x + DropPath(self.drop_path, name="drop_path_1")(y, train)
        y = LayerNorm(EPS, self.dtype, name="ln_2")(x)
        hidden = MLP_RATIO * x.shape[-1]
        mlp = Mlp(hidden, self.dropout, self.form.mlp, self.form.gelu, self.dtype, name="mlp")
        y = mlp(y, train)
        y = LayerScale(self.layer_scale, name="scale_2")(y)
        answer: jax.Array = x + DropPath(self.drop_path, name="drop_path_2")(y, train)
        return answer


class ClassBlock(nn.Module):
    """Class attention and MLP of the class token, section 3 of the paper.

    Nothing is dropped here.
    """

    heads: int
    layer_scale: float
    form: Form
    dtype: np.dtype

    @compact
    def __call__(
        self, cls: Float[Array, "B 1 D"], x: Float[Array, "B T D"]
    ) -> Float[Array, "B 1 D"]:
        """Map the class token ``[B, 1, D]`` to ``[B, 1, D]``.

        `x` are the other tokens, ``[B, T, D]``.
        """
        y = LayerNorm(EPS, self.dtype, name="ln_1")(jnp.concatenate([cls, x], axis=1))
        attention = Attention(
            self.heads,
            self.form.dense,
            self.form.dense,
            self.dtype,
            first_only=True,
            name="attention",
        )
        y = attention(y, train=False)
        cls = cls + LayerScale(self.layer_scale, name="scale_1")(y)
        y = LayerNorm(EPS, self.dtype, name="ln_2")(cls)
        hidden = MLP_RATIO * cls.shape[-1]
        mlp = Mlp(hidden, 0.0, self.form.mlp, self.form.gelu, self.dtype, name="mlp")
        y = mlp(y, train=False)
        answer: jax.Array = cls + LayerScale(self.layer_scale, name="scale_2")(y)
        return answer


class Cait(nn.Module):
    """The whole network, ``[B, H, W, C] -> [B, classes]`` in float32.

    Attributes:
        dim: Features per token, D.
        depth: Number of self-attention blocks; two blocks of class attention follow.
        heads: Attention heads; divides `dim`.
        patch_size: Side of a patch in pixels; divides the sides of the images.
        num_classes: Number of logits.
        layer_scale: Initial value of LayerScale, above 0.
        dropout: Rate after the position embedding, each of the MLP's layers and the attention's
            output, in ``[0, 1)``.
        attention_dropout: Rate of the attention weights, in ``[0, 1)``.
        drop_path: Rate of the residual branches, the same in every self-attention block, in ``[0,
            1)``.
        scan: Whether the self-attention blocks are scanned, see
            `gnpcli.models.layers.blocks.run`.
        form: See `Form`.
        dtype: Compute type; LayerNorm, softmax and head are in float32 always.
    """

    dim: int
    depth: int
    heads: int
    patch_size: int
    num_classes: int
    layer_scale: float
    dropout: float
    attention_dropout: float
    drop_path: float
    scan: bool
    form: Form
    dtype: np.dtype

    @compact
    def __call__(self, images: Float[Array, "B H W C"], train: bool) -> Float32[Array, "B K"]:
        """Return the logits."""
        x = PatchEmbedding(
            self.dim, self.patch_size, self.form, self.dtype, name="patch_embedding"
        )(images)
        positions = self.param("positions", self.form.tokens, (1, *x.shape[1:]), jnp.float32)
        x = Dropout(self.dropout)(x + positions.astype(self.dtype), train)
        blocks = [
            Block(
                heads=self.heads,
                layer_scale=self.layer_scale,
                dropout=self.dropout,
                attention_dropout=self.attention_dropout,
                drop_path=self.drop_path,
                form=self.form,
                dtype=self.dtype,
                name=f"block_{index}",
            )
            for index in range(self.depth)
        ]
        x = run(blocks, x, train, is_scanned=self.scan)
        cls = self.param("cls", self.form.tokens, (1, 1, self.dim), jnp.float32).astype(self.dtype)
        cls = jnp.broadcast_to(cls, (x.shape[0], 1, self.dim))
        for index in range(CLASS_BLOCKS):
            cls = ClassBlock(
                self.heads, self.layer_scale, self.form, self.dtype, name=f"class_block_{index}"
            )(cls, x)
        logits: jax.Array = Dense(self.num_classes, self.form.dense, name="head")(
            LayerNorm(EPS, name="ln")(cls[:, 0])
        )
        return logits


def initial_layer_scale(architecture: Mapping[str, int], variant: str) -> float:
    """Return the initial value of LayerScale: by depth (section 2 of the paper), upstream by width.

    The authors' code, against their rule, starts XXS36 at 1e-5.
    """
    if variant == "upstream":
        return 1e-6 if architecture["dim"] >= 768 else 1e-5
    if architecture["depth"] <= 18:
        return 0.1
    return 1e-5 if architecture["depth"] <= 24 else 1e-6


class CaitFamily(Family[CaitOptions]):
    """CaiT."""

    tiny = Tiny({"dim": 12, "depth": 3, "heads": 3}, {"dropout": 0.2, "drop_path": 0.3})

    def build(
        self, sizes: Mapping[str, int], options: CaitOptions, images: Images, dtype: str
    ) -> Model:
        """Build a member of the family; raises ConfigError where patches do not tile the images."""
        check_patches(images.size, options.patch_size)
        layer_scale = options.layer_scale or initial_layer_scale(sizes, options.variant)
        module = Cait(
            **sizes,
            patch_size=options.patch_size,
            num_classes=images.classes,
            layer_scale=layer_scale,
            dropout=options.dropout,
            attention_dropout=options.attention_dropout,
            drop_path=options.drop_path,
            scan=options.scan,
            form=FORMS[options.variant],
            dtype=DTYPES[dtype],
        )
        return from_linen(module)

    def from_torch(self, tensors: Mapping[str, np.ndarray]) -> tuple[Params, State]:
        """Map a PyTorch state dict (timm's names, which are the authors') to parameters.

        Raises:
            CheckpointError: The tensors are not those of a CaiT.
        """
        weights = StateDict(tensors)
        params: Params = {
            "patch_embedding": {"projection": weights.patches("patch_embed.proj")},
            "positions": weights.take("pos_embed"),
            "cls": weights.take("cls_token"),
            "ln": weights.norm("norm"),
            **weights.head("head"),
        }

        def block(prefix: str, attention: Params) -> Params:
            return {
                "ln_1": weights.norm(f"{prefix}.norm1"),
                "attention": {**attention, "out": weights.dense(f"{prefix}.attn.proj")},
                "scale_1": {"scale": weights.take(f"{prefix}.gamma_1")},
                "ln_2": weights.norm(f"{prefix}.norm2"),
                "mlp": {
                    "up": weights.dense(f"{prefix}.mlp.fc1"),
                    "down": weights.dense(f"{prefix}.mlp.fc2"),
                },
                "scale_2": {"scale": weights.take(f"{prefix}.gamma_2")},
            }

        for index in range(weights.count("blocks")):
            prefix = f"blocks.{index}"
            attention: Params = {
                **weights.fused(f"{prefix}.attn.qkv"),
                "mix_scores": weights.dense(f"{prefix}.attn.proj_l"),
                "mix_weights": weights.dense(f"{prefix}.attn.proj_w"),
            }
            params[f"block_{index}"] = block(prefix, attention)
        for index in range(weights.count("blocks_token_only")):
            prefix = f"blocks_token_only.{index}"
            fused = weights.fused(*(f"{prefix}.attn.{part}" for part in "qkv"))
            params[f"class_block_{index}"] = block(prefix, fused)
        weights.finish()
        return params, {}

    def facts(self, params: Params) -> Facts:
        """Return what parameters say of patches and images."""
        patch_size, channels = patches(len(params["patch_embedding"]["projection"]["kernel"]))
        side = math.isqrt(params["positions"].shape[1])
        return Facts(patch_size * side, channels, {"patch_size": patch_size})

    def resize(self, path: Path, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
        """Return the position embedding for another number of patches."""
        return resize_positions(array, shape[1], prefix=0) if path == ("positions",) else None


FAMILY = CaitFamily()
