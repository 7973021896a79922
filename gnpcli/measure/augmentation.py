"""A contact sheet of what a model will see: images before and after augmentation, as one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gnpcli.config.resolved import Resolved
from gnpcli.data.base import DataSpec, Images
from gnpcli.data.feeds.make import make_train_feed
from gnpcli.devices.mesh import make_mesh
from gnpcli.engine.loading import load_with_progress
from gnpcli.keys import augment_key, run_keys
from gnpcli.report.fonts import drawable, runs
from gnpcli.terminal.screen import Screen

CELL = 128
"""Smallest side of an image on the sheet, in pixels.

Smaller images are enlarged by a whole factor.
"""
_GAP, _LINE = 8, 14
_FONT_SIZE = 11
"""Of captions, in points."""


def preview(
    config: Resolved, path: Path, *, count: int, step: int, columns: int, quiet: bool
) -> int:
    """Write `count` training images of a step, before and after augmentation, to a PNG.

    The images pass through the training feed itself, with the keys that the step of a run has. Only
    the batch is smaller, `count` images. So a step holds other images than a run's, and mixes
    others with each other.

    Args:
        config: Resolved configuration; its data, seed and compute type are used.
        path: The PNG to write.
        count: Images, fewer where the training split has fewer.
        step: Step of the run, counted from 0.
        columns: Pairs in a row of the sheet.
        quiet: Print only warnings.

    Returns:
        How many images the sheet shows.

    Raises:
        ConfigError: Augmentation does not fit the image size.
        DataError: As `gnpcli.data.registry.load_dataset`.
    """
    dataset = load_with_progress(config, Screen(quiet=quiet))
    count = min(count, len(dataset.train))
    config = config.replaced(
        {
            "data.batch_size": count,
            "data.eval_batch_size": None,
            "gr.groups": 1,
            "train.accumulate": 1,
            "mesh.devices": 1,
        }
    )
    mesh = make_mesh(config)
    keys = run_keys(config.train.seed)
    shown = []
    for changes in ({"augment": "none", "mix": "none", "random_erasing": 0.0}, {}):
        feed = make_train_feed(
            dataset.train,
            dataset.spec,
            config.data.replaced(changes),
            mesh,
            key=keys.order,
            dtype=config.train.dtype,
        )
        try:
            images, labels = jax.jit(feed.batch)(
                feed.source(step),
                np.int32(step % feed.steps_per_epoch),
                augment_key(keys.steps, step),
            )
        finally:
            feed.close()
        shown.append((_pixels(images, dataset.spec), _captions(np.asarray(labels), dataset.spec)))
    _sheet(shown, columns).save(path, format="PNG")
    return count


def _pixels(images: jax.Array, spec: DataSpec) -> Images:
    """Undo the normalisation: uint8 ``[B, H, W, C]``."""
    values = np.asarray(images.astype(jnp.float32)) * np.asarray(spec.std) + np.asarray(spec.mean)
    pixels: Images = np.rint(255 * values).clip(0, 255).astype(np.uint8)
    return pixels


def _captions(labels: np.ndarray, spec: DataSpec) -> list[str]:
    """Name each image's class; of mixed images the classes with their shares, a line each."""
    names = [drawable(name) for name in spec.class_names]
    if labels.ndim == 1:
        return [names[label] for label in labels]
    return [_shares(row, names) for row in labels]


def _shares(row: np.ndarray, names: Sequence[str]) -> str:
    """Return the classes of a mixed image with their shares, the largest first."""
    shown = [k for k in np.argsort(-row, kind="stable") if row[k] >= 0.005]
    return "\n".join(f"{names[k]}: {row[k]:.2f}" for k in shown)


def _sheet(shown: list[tuple[Images, list[str]]], columns: int) -> Image.Image:
    """Draw the pairs: the first of `shown` above, the second below it, each with its caption."""
    count, size, _, _ = shown[0][0].shape
    side = size * max(1, -(-CELL // size))
    columns = min(columns, count)
    tops = _tops(side, [captions for _, captions in shown])
    width, height = side + _GAP, tops[-1] + 2 * _GAP
    area = (columns * width + _GAP, -(-count // columns) * height + _GAP)
    sheet = Image.new("RGB", area, "white")
    for index in range(count):
        left, top = _GAP + index % columns * width, _GAP + index // columns * height
        for below, (images, captions) in zip(tops, shown, strict=False):
            _paste(sheet, (left, top + below), side, images[index], captions[index])
    return sheet


def _tops(side: int, captions: list[list[str]]) -> list[int]:
    """Return where each image of a pair begins, and where the pair ends.

    The next one begins below the longest caption of all pairs.
    """
    tops = [0]
    for texts in captions:
        lines = max(text.count("\n") + 1 for text in texts)
        tops.append(tops[-1] + side + _LINE * lines)
    return tops


def _paste(
    sheet: Image.Image, place: tuple[int, int], side: int, pixels: Images, caption: str
) -> None:
    """Put an image with its caption below it onto the sheet."""
    left, top = place
    is_grey = pixels.shape[-1] == 1
    image = Image.fromarray(pixels[..., 0] if is_grey else pixels)
    sheet.paste(image.resize((side, side), Image.Resampling.NEAREST), place)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(caption.splitlines()):
        x, y = float(left), top + side + number * _LINE
        for part, face in runs(_fit(line, side)):
            draw.text((x, y), part, fill="black", font=_font(face.path))
            x += _font(face.path).getlength(part)


def _fit(text: str, width: int) -> str:
    """Cut a caption off where it would run into its neighbour's."""
    if _length(text) <= width:
        return text
    while text and _length(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _length(text: str) -> float:
    return sum(_font(face.path).getlength(part) for part, face in runs(text))


@cache
def _font(path: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, _FONT_SIZE)
