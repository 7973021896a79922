"""Swin Transformer, arXiv 2103.14030: section 3 for the layers, section 3.3 for the sizes.

Legend: ``[B, H, W, C]`` images or features, H x W pixels or patches; w the side of an attention
window in patches, ``N = w * w`` tokens in it; h heads of d = C/h features.

Where a feature map is not larger than the window, the window shrinks to it and is not shifted, as
in the authors' code. The index of the relative positions and the mask of the shifted windows follow
from the shapes: they are neither parameters nor state.

Two variants, see `gnpcli.models.layers.transformer.FORMS`: ``paper`` and ``upstream`` differ in the
initialisation and in the form of the GELU alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Float32, Int8

from gnpcli.errors import ConfigError
from gnpcli.models.base import Model, Params, State, from_linen
from gnpcli.models.family import Family, Images, Tiny
from gnpcli.models.layers.attention import attend, fused_projection
from gnpcli.models.layers.blocks import run
from gnpcli.models.layers.dense import DTYPES, Dense, compact, linear
from gnpcli.models.layers.dropout import Dropout, DropPath, linear_rates
from gnpcli.models.layers.norm import LayerNorm
from gnpcli.models.layers.transformer import FORMS, Form, Mlp, PatchEmbedding, extract_patches
from gnpcli.models.options import SwinOptions
from gnpcli.models.torch.facts import Facts, Path, patches, resize_grid
from gnpcli.models.torch.state_dict import StateDict

STAGES = 4
MLP_RATIO = 4
EPS = 1e-5


def relative_bias(table: Float[Array | np.ndarray, "S S h"]) -> Float[Array, "h N N"]:
    """Return the attention bias ``[h, N, N]`` of a table ``[2w - 1, 2w - 1, h]``.

    It is equation 4 of the paper. Query (y, x) and key (y', x') of a window meet in
    ``table[y - y' + w - 1, x - x' + w - 1]``.

    It is taken by slices. The gradient of a gather is a scatter, which on a GPU adds in another
    order every time: runs would not repeat.
    """
    side = (table.shape[0] + 1) // 2
    starts = range(side - 1, -1, -1)  # of the keys of query 0, 1, ... in the reversed table
    table = table[::-1, ::-1]
    rows = jnp.stack([table[start : start + side] for start in starts])  # [y, y', 2w - 1, h]
    bias = jnp.stack(
        [rows[:, :, start : start + side] for start in starts], axis=1
    )  # [y, x, y', x', h]
    return bias.reshape(side**2, side**2, -1).transpose(2, 0, 1)


def window_regions(
    height: int, width: int, window: int, shift: int
) -> Int8[np.ndarray, "windows {window*window}"]:
    """Number the regions of each window after a cyclic shift, as ``[H/w * W/w, N]`` int8.

    See figure 4 of the paper. Two tokens of a window attend to each other where their numbers are
    equal. Both or neither then came around the lower edge, and likewise the right edge.
    """
    came_around = [(np.arange(side) >= side - shift).astype(np.int8) for side in (height, width)]
    regions = 2 * came_around[0][:, None] + came_around[1][None, :]
    windows = regions.reshape(height // window, window, width // window, window).transpose(
        0, 2, 1, 3
    )
    return windows.reshape(-1, window * window)


class WindowAttention(nn.Module):
    """Self-attention in windows, shifted or not, section 3.2 of the paper.

    Attributes:
        heads: Attention heads; divides the features.
        window: Side of a window, w; divides the sides of the feature map.
        shift: Patches by which the windows are shifted, in ``[0, w)``.
        dropout: Rate of the answer.
        attention_dropout: Rate of the attention weights.
        form: See `Form`.
        dtype: Compute type; bias, mask and softmax are in float32.
    """

    heads: int
    window: int
    shift: int
    dropout: float
    attention_dropout: float
    form: Form
    dtype: np.dtype

    @compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W C"]:
        """Map ``[B, H, W, C]`` to ``[B, H, W, C]``."""
        batch, height, width, features = x.shape
        rows, columns, side = height // self.window, width // self.window, self.window
        head_dim = features // self.heads
        kernel, qkv_bias = fused_projection(self, self.form.dense, features)
        if self.shift:
            x = jnp.roll(x, (-self.shift, -self.shift), axis=(1, 2))
        # The projection is the same for every token, so one transposition after it cuts both
        # windows and heads.
        qkv = linear(x, kernel, qkv_bias, self.dtype)
        qkv = qkv.reshape(batch, rows, side, columns, side, 3, self.heads, head_dim)
        qkv = qkv.transpose(5, 0, 1, 3, 6, 2, 4, 7)
        q, k, v = qkv.reshape(3, batch, rows * columns, self.heads, side**2, head_dim)
        drop_weights = Dropout(self.attention_dropout)
        bias = self._bias(height, width)[None]
        y = attend(q, k, v, lambda weights: drop_weights(weights, train), bias)
        y = y.reshape(batch, rows, columns, self.heads, side, side, head_dim)
        y = y.transpose(0, 1, 4, 2, 5, 3, 6).reshape(batch, height, width, features)
        y = Dense(features, self.form.dense, dtype=self.dtype, name="out")(y)
        if self.shift:
            y = jnp.roll(y, (self.shift, self.shift), axis=(1, 2))
        return Dropout(self.dropout)(y, train)

    def _bias(self, height: int, width: int) -> jax.Array:
        """Return what is added to the scores, ``[1 or H/w * W/w, h, N, N]``."""
        shape = (2 * self.window - 1, 2 * self.window - 1, self.heads)
        table = self.param("relative_positions", nn.initializers.normal(0.02), shape, jnp.float32)
        bias = relative_bias(table)[None]
        if not self.shift:
            return bias
        regions = window_regions(height, width, self.window, self.shift)
        together = regions[:, None, :, None] == regions[:, None, None, :]
        return jnp.where(together, bias, np.float32(-1e9))


class Block(nn.Module):
    """Pre-norm block of attention in windows and MLP, equation 3 of the paper."""

    heads: int
    window: int
    shift: int
    dropout: float
    attention_dropout: float
    drop_path: float
    form: Form
    dtype: np.dtype

    @compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W C"]:
        """Map ``[B, H, W, C]`` to ``[B, H, W, C]``."""
        y = LayerNorm(EPS, self.dtype, name="ln_1")(x)
        attention = WindowAttention(
            self.heads,
            self.window,
            self.shift,
            self.dropout,
            self.attention_dropout,
            self.form,
            self.dtype,
            name="attention",
        )
        x = x + DropPath(self.drop_path, name="drop_path_1")(attention(y, train), train)
        y = LayerNorm(EPS, self.dtype, name="ln_2")(x)
        hidden = MLP_RATIO * x.shape[-1]
        mlp = Mlp(hidden, self.dropout, self.form.mlp, self.form.gelu, self.dtype, name="mlp")
        y = mlp(y, train)
        answer: jax.Array = x + DropPath(self.drop_path, name="drop_path_2")(y, train)
        return answer


class PatchMerging(nn.Module):
    """Concatenate 2 x 2 patches and halve the features, section 3.1.

    ``[B, H, W, C] -> [B, H/2, W/2, 2C]``.
    """

    form: Form
    dtype: np.dtype

    @compact
    def __call__(
        self, x: Float[Array, "B H W C"]
    ) -> Float[Array, "B {x.shape[1]//2} {x.shape[2]//2} {2*x.shape[3]}"]:
        """Merge; both sides are even."""
        batch, height, width, features = x.shape
        rows = extract_patches(x, 2).reshape(-1, 4 * features)
        rows = LayerNorm(EPS, self.dtype, name="norm")(rows)
        kernel = self.param("kernel", self.form.dense, (4 * features, 2 * features), jnp.float32)
        merged: jax.Array = rows @ kernel.astype(self.dtype)
        return merged.reshape(batch, height // 2, width // 2, 2 * features)


class SwinTransformer(nn.Module):
    """The whole network, ``[B, H, W, C] -> [B, classes]`` in float32.

    Attributes:
        dim: Features of the first stage; each later stage has twice those of the one before.
        depth: Blocks of the third stage; the others have 2.
        heads: Attention heads of the first stage; each later stage has twice those of the one
            before.
        patch_size: Side of a patch in pixels.
        window_size: Side of an attention window in patches, shrunk to the feature map where that is
            smaller.
        num_classes: Number of logits.
        dropout: Rate after the patch embedding, each of the MLP's layers and the attention's
            output, in ``[0, 1)``.
        attention_dropout: Rate of the attention weights, in ``[0, 1)``.
        drop_path: Rate of the last block's residual branches, in ``[0, 1)``; 0 in the first, linear
            between.
        form: See `Form`.
        dtype: Compute type; LayerNorm, softmax, the mean over the tokens and the head are in
            float32 always.
    """

    dim: int
    depth: int
    heads: int
    patch_size: int
    window_size: int
    num_classes: int
    dropout: float
    attention_dropout: float
    drop_path: float
    form: Form
    dtype: np.dtype

    @compact
    def __call__(self, images: Float[Array, "B H W C"], train: bool) -> Float32[Array, "B K"]:
        """Return the logits."""
        batch, height, width, _ = images.shape
        x = PatchEmbedding(
            self.dim, self.patch_size, self.form, self.dtype, name="patch_embedding"
        )(images)
        x = LayerNorm(EPS, self.dtype, name="ln_patches")(x)
        x = x.reshape(batch, height // self.patch_size, width // self.patch_size, self.dim)
        x = Dropout(self.dropout)(x, train)
        depths = (2, 2, self.depth, 2)
        rates = iter(linear_rates(self.drop_path, sum(depths)))
        for stage, depth in enumerate(depths):
            if stage > 0:
                x = PatchMerging(self.form, self.dtype, name=f"merge_{stage}")(x)
            window = min(self.window_size, *x.shape[1:3])
            shift = window // 2 if window < min(x.shape[1:3]) else 0
            blocks = [
                Block(
                    heads=2**stage * self.heads,
                    window=window,
                    shift=shift if index % 2 == 1 else 0,
                    dropout=self.dropout,
                    attention_dropout=self.attention_dropout,
                    drop_path=next(rates),
                    form=self.form,
                    dtype=self.dtype,
                    name=f"stage_{stage}_block_{index}",
                )
                for index in range(depth)
            ]
            x = run(blocks, x, train)
        x = LayerNorm(EPS, name="ln")(x).mean(axis=(1, 2))
        logits: jax.Array = Dense(self.num_classes, self.form.dense, name="head")(x)
        return logits


def windows_fit(image_size: int, patch_size: int, window_size: int) -> bool:
    """Return whether patches, three mergings and windows tile square images in every stage."""
    grid, rest = divmod(image_size, patch_size)
    grids = [grid // 2**stage for stage in range(STAGES)]
    tiles = all(side <= window_size or side % window_size == 0 for side in grids)
    return rest == 0 and grid > 0 and grid % 2 ** (STAGES - 1) == 0 and tiles


def _check_sizes(image_size: int, patch_size: int, window_size: int) -> None:
    if windows_fit(image_size, patch_size, window_size):
        return
    step = 2 ** (STAGES - 1) * patch_size
    # Images of a multiple of window_size steps always fit, so here there are 4 at least.
    sizes = range(step, image_size + 5 * step * window_size, step)
    fitting = [size for size in sizes if windows_fit(size, patch_size, window_size)]
    nearest = sorted(sorted(fitting, key=lambda size: abs(size - image_size))[:4])
    message = (
        f"patches of {patch_size} pixels and windows of {window_size} patches do not tile images "
        "of "
        f"{image_size} x {image_size} pixels in all {STAGES} stages; image sizes that fit: "
        f"{', '.join(map(str, nearest))}"
    )
    # With a window as large as the first feature map, only the patches can be at fault.
    grid = image_size // patch_size
    if not windows_fit(image_size, patch_size, max(1, grid)):
        raise ConfigError(message, key="model.patch_size")
    windows = ", ".join(
        str(side) for side in range(1, grid) if windows_fit(image_size, patch_size, side)
    )
    raise ConfigError(
        f"{message}; windows that fit these images: {windows}, {grid} and more",
        key="model.window_size",
    )


class SwinFamily(Family[SwinOptions]):
    """Swin Transformers."""

    tiny = Tiny(
        {"dim": 8, "depth": 2, "heads": 1}, {"patch_size": 1, "window_size": 2, "drop_path": 0.3}
    )

    def build(
        self, sizes: Mapping[str, int], options: SwinOptions, images: Images, dtype: str
    ) -> Model:
        """Build a member of the family.

        Raises:
            ConfigError: Patches, windows and mergings do not tile the images.
        """
        _check_sizes(images.size, options.patch_size, options.window_size)
        module = SwinTransformer(
            **sizes,
            patch_size=options.patch_size,
            window_size=options.window_size,
            num_classes=images.classes,
            dropout=options.dropout,
            attention_dropout=options.attention_dropout,
            drop_path=options.drop_path,
            form=FORMS[options.variant],
            dtype=DTYPES[dtype],
        )
        return from_linen(module)

    def from_torch(self, tensors: Mapping[str, np.ndarray]) -> tuple[Params, State]:
        """Map a PyTorch state dict to parameters.

        The names are timm's, or those of the authors' own checkpoints. The authors' patch merging
        concatenates the 2 x 2 patches by columns, this one by rows. The authors number a merging by
        the stage before it, timm by the stage after it.

        Raises:
            CheckpointError: The tensors are not those of a Swin Transformer.
        """
        weights = StateDict(tensors)
        is_authors = "layers.0.downsample.reduction.weight" in weights
        params: Params = {
            "patch_embedding": {"projection": weights.patches("patch_embed.proj")},
            "ln_patches": weights.norm("patch_embed.norm"),
            "ln": weights.norm("norm"),
            **weights.head("head", "head.fc"),
        }

        def by_rows(x: np.ndarray) -> np.ndarray:
            return x.reshape(2, 2, -1, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)

        for stage in range(STAGES):
            if stage > 0:
                prefix = f"layers.{stage - 1 if is_authors else stage}.downsample"
                kernel = weights.take(f"{prefix}.reduction.weight").T
                norm = {
                    name: by_rows(array) for name, array in weights.norm(f"{prefix}.norm").items()
                }
                params[f"merge_{stage}"] = {"norm": norm, "kernel": by_rows(kernel)}
            for index in range(weights.count(f"layers.{stage}.blocks")):
                prefix = f"layers.{stage}.blocks.{index}"
                table = weights.take(f"{prefix}.attn.relative_position_bias_table")
                side = round(len(table) ** 0.5)
                params[f"stage_{stage}_block_{index}"] = {
                    "ln_1": weights.norm(f"{prefix}.norm1"),
                    "attention": {
                        **weights.fused(f"{prefix}.attn.qkv"),
                        "relative_positions": table.reshape(side, side, -1),
                        "out": weights.dense(f"{prefix}.attn.proj"),
                    },
                    "ln_2": weights.norm(f"{prefix}.norm2"),
                    "mlp": {
                        "up": weights.dense(f"{prefix}.mlp.fc1"),
                        "down": weights.dense(f"{prefix}.mlp.fc2"),
                    },
                }
        weights.finish(constants=("relative_position_index", "attn_mask"))
        return params, {}

    def facts(self, params: Params) -> Facts:
        """Return what parameters say of patches and windows.

        The image size is the one whose smallest map is one window.
        """
        patch_size, channels = patches(len(params["patch_embedding"]["projection"]["kernel"]))
        window_size = (
            params["stage_0_block_0"]["attention"]["relative_positions"].shape[0] + 1
        ) // 2
        image_size = 2 ** (STAGES - 1) * patch_size * window_size
        return Facts(image_size, channels, {"patch_size": patch_size, "window_size": window_size})

    def resize(self, path: Path, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
        """Return a table of relative positions for windows of another side.

        It is stretched as an image is, as in the authors' code. So the farthest distances in a
        window keep about their bias. timm keeps that of each distance in patches instead.
        """
        return resize_grid(array, shape[0]) if path[-1] == "relative_positions" else None


FAMILY = SwinFamily()
