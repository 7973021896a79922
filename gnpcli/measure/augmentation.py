"""A contact sheet of what a model will see: images before and after augmentation, as one PNG."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gnpcli.config import MeshConfig, RunConfig
from gnpcli.data.base import DataSpec, Images
from gnpcli.data.feeds.make import make_train_feed
from gnpcli.devices.mesh import make_mesh
from gnpcli.engine.loading import load_with_progress
from gnpcli.keys import augment_key, run_keys
from gnpcli.terminal.screen import Screen

CELL = 128
"""Smallest side of an image on the sheet, in pixels.

Smaller images are enlarged by a whole factor.
"""
_GAP, _LINE = 8, 14
_FONT = ImageFont.load_default(size=11)


def preview(
    config: RunConfig, path: Path, *, count: int, step: int, columns: int, quiet: bool
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
    data = config.data.model_copy(update={"batch_size": count, "eval_batch_size": None})
    mesh = make_mesh(config.model_copy(update={"data": data, "mesh": MeshConfig(devices=1)}))
    keys = run_keys(config.train.seed)
    shown = []
    for changes in ({"augment": "none", "mix": "none", "random_erasing": 0.0}, {}):
        feed = make_train_feed(
            dataset.train,
            dataset.spec,
            data.model_copy(update=changes),
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
    """Name each image's class, or its classes with their shares, the largest first, a line each."""
    if labels.ndim == 1:
        return [spec.class_names[label] for label in labels]
    return [
        "\n".join(
            f"{spec.class_names[k]}: {row[k]:.2f}"
            for k in np.argsort(-row, kind="stable")
            if row[k] >= 0.005
        )
        for row in labels
    ]


def _sheet(shown: list[tuple[Images, list[str]]], columns: int) -> Image.Image:
    """Draw the pairs: the first of `shown` above, the second below it, each with its caption."""
    count, size, _, channels = shown[0][0].shape
    scale = max(1, -(-CELL // size))
    side = size * scale
    columns = min(columns, count)
    # Of each row its captions' lines; the next row, or pair, begins below them.
    lines = [max(text.count("\n") + 1 for text in captions) for _, captions in shown]
    tops = [sum(side + _LINE * number for number in lines[:row]) for row in range(len(lines) + 1)]
    width, height = side + _GAP, tops[-1] + 2 * _GAP
    sheet = Image.new(
        "RGB", (columns * width + _GAP, -(-count // columns) * height + _GAP), "white"
    )
    draw = ImageDraw.Draw(sheet)
    for index in range(count):
        left, top = _GAP + index % columns * width, _GAP + index // columns * height
        for row, (images, captions) in enumerate(shown):
            pixels = images[index, ..., 0] if channels == 1 else images[index]
            image = Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(image, (left, top + tops[row]))
            for number, line in enumerate(captions[index].splitlines()):
                y = top + tops[row] + side + number * _LINE
                draw.text((left, y), _fit(line, side), fill="black", font=_FONT)
    return sheet


def _fit(text: str, width: int) -> str:
    """Cut a caption off where it would run into its neighbour's."""
    if _FONT.getlength(text) <= width:
        return text
    while text and _FONT.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
