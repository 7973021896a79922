"""Speed of the input pipelines: in memory beside a training step, streamed beside what a person
would write.

As in `gnpcli.bench`, what is compared runs interleaved, so that ratios survive a noisy machine.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from gnpcli.bench.steps import Report, Timed, interleave, random_images
from gnpcli.config import RunConfig
from gnpcli.data.augment.basic import normalize
from gnpcli.data.base import DataSpec, FileSplit
from gnpcli.data.feeds.base import TrainFeed
from gnpcli.data.feeds.streamed import StreamedFeed
from gnpcli.data.images.assemble import STREAMED_MEAN, STREAMED_SIZE, STREAMED_STD
from gnpcli.data.images.crops import Transform, random_box
from gnpcli.data.images.layout import SUFFIXES
from gnpcli.devices.mesh import make_mesh
from gnpcli.devices.process import describe_environment
from gnpcli.engine.task import build_task
from gnpcli.errors import ConfigError, DataError

VARIANTS: dict[str, dict[str, str]] = {
    **{
        name: {"augment": name, "mix": "none"}
        for name in ("none", "crop", "basic", "autoaugment", "randaugment")
    },
    **{name: {"augment": "basic", "mix": name} for name in ("cutout", "mixup", "cutmix", "mixcut")},
}
"""What `bench_in_memory` can compare, as changes of the `data` section; the batch-level ones come
after ``basic``.
"""


def bench_in_memory(
    config: RunConfig, *, variants: list[str], rounds: int, steps: int, report: Report
) -> dict[str, Any]:
    """Measure the feed of a data set that lives on the devices, alone and inside a plain training
    step.

    Alone it feeds an empty model, which sums the images up: its rate is the highest that any model
        can reach.

    Args:
        config: Its augmentation is replaced by that of each variant, on random images in the shape
            of its data set.
        variants: Names out of `VARIANTS`; shares are of the first one's step.
        rounds: Rounds counted, after one that is not.
        steps: Training steps of each kind in a round; of the feed alone ten times as many.
        report: Told what is being done.

    Returns:
        JSON-able: the sizes, `environment`, and `measurements`, one for each variant, with
        `feed_images_per_s`, `images_per_s` (of the training step), `feed_share` (time of the feed
        alone over that of the training step) and `relative_rate` (the training step's rate over the
        first variant's): medians over the rounds, the last two of ratios within a round.

    Raises:
        ConfigError: An unknown variant.
        DataError: As `gnpcli.bench.steps.random_images`.
    """
    if unknown := sorted(set(variants) - VARIANTS.keys()):
        raise ConfigError(f"unknown variant {unknown[0]!r} (choices: {', '.join(VARIANTS)})")
    mesh = make_mesh(config)
    images, spec = random_images(config)
    feeds: dict[str, Timed] = {}
    whole: dict[str, Timed] = {}
    for name in variants:
        report(f"compiling {name}")
        data = config.data.model_copy(update=VARIANTS[name])
        task = build_task(config.model_copy(update={"data": data}), images, spec, mesh)
        source = task.feed.source(0)
        feeds[name] = Timed([_empty_model(task.feed)], jnp.zeros((), jnp.int32), source, repeat=10)
        whole[name] = Timed([task.plain_step], task.init(), source)
    interleave([*feeds.values(), *whole.values()], rounds=rounds, steps=steps, report=report)
    batch_size = config.data.batch_size
    return {
        "model": config.model.name,
        "batch_size": batch_size,
        "image_size": spec.image_size,
        "dtype": config.train.dtype,
        "devices": mesh.size,
        "rounds": rounds,
        "steps_per_round": steps,
        "measurements": [
            {
                "name": name,
                "feed_images_per_s": batch_size / feeds[name].step_s,
                "images_per_s": batch_size / whole[name].step_s,
                "feed_share": feeds[name].over(whole[name]),
                "relative_rate": 1 / whole[name].over(whole[variants[0]]),
            }
            for name in variants
        ],
        "environment": describe_environment(),
    }


def _empty_model(feed: TrainFeed) -> Any:
    """Return a jitted step whose model is nothing but the sum of its images, and whose state is the
    step's number.
    """

    def step(number: jax.Array, source: Any) -> tuple[jax.Array, jax.Array]:
        key = jax.random.fold_in(jax.random.key(0), number)
        images, labels = feed.batch(source, number % feed.steps_per_epoch, key)
        return number + 1, jnp.sum(images.astype(jnp.float32)) + jnp.sum(labels.astype(jnp.float32))

    return jax.jit(step, donate_argnums=0)


Decode = Callable[[Sequence[str], np.random.Generator], None]
"""Decodes files into normalised training images, one after the other, and throws them away."""


def bench_streamed(
    config: RunConfig, folder: Path, *, count: int, rounds: int, report: Report
) -> dict[str, Any]:
    """Measure decoding, random resized crop, flip and normalisation of image files, alone and as
    the streamed feed.

    One thread decodes all files of a round (the normalisation is the device's) beside a loop over
    Pillow as a person would write it, and torchvision's usual transforms where that package can be
    imported. Then the feed decodes `count` images with `data.workers`.

    Args:
        config: `image_size` (or 224), `crop_min_area`, `batch_size` and `workers` of its data are
            used.
        folder: Every image file below it is used, the first 1,000 by name, as training images.
        count: Images that the feed decodes, rounded up to whole batches.
        rounds: Rounds counted, after one that is not.
        report: Told what is being done.

    Returns:
        JSON-able: the sizes, `environment`; `measurements`, one for each way, with `images_per_s`
        of one thread and `over_pillow` (the rate over that of the Pillow loop), medians over the
        rounds; and `feed` with `images_per_s` and `memory`, (images so far, MB that this process
        and its workers hold) at ten points, null outside Linux.

    Raises:
        DataError: If there are no images, or one cannot be read.
    """
    paths = [str(path) for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES][
        :1000
    ]
    if not paths:
        raise DataError(f"no images below {folder} ({', '.join(SUFFIXES)})")
    size = config.data.image_size or STREAMED_SIZE
    ways: dict[str, Decode] = {
        "pillow": _pillow_loop(size, config.data.crop_min_area),
        "gnp": _own_loop(size, config.data.crop_min_area),
    }
    if (other := _torchvision_loop(size, config.data.crop_min_area)) is not None:
        ways["torchvision"] = other
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        report(f"round {number} of {rounds}")
        for name, decode in ways.items():
            start = time.perf_counter()
            decode(paths, np.random.default_rng(number))
            if number > 0:
                times[name].append(time.perf_counter() - start)
    report(f"streaming {count} images")
    return {
        "images": len(paths),
        "image_size": size,
        "rounds": rounds,
        "measurements": [
            {
                "name": name,
                "images_per_s": len(paths) / statistics.median(own),
                "over_pillow": statistics.median(
                    a / b for a, b in zip(times["pillow"], own, strict=True)
                ),
            }
            for name, own in times.items()
        ],
        "feed": _bench_feed(config, paths, size, count),
        "environment": describe_environment(),
    }


def _own_loop(size: int, min_area: float) -> Decode:
    transform = Transform(size, min_area=min_area, flip=True)
    on_device = jax.jit(lambda images: normalize(images, STREAMED_MEAN, STREAMED_STD))

    def decode(paths: Sequence[str], rng: np.random.Generator) -> None:
        for start in range(0, len(paths), 64):
            images = np.stack([transform(path, rng) for path in paths[start : start + 64]])
            jax.block_until_ready(on_device(images))

    return decode


def _pillow_loop(size: int, min_area: float) -> Decode:
    mean, std = np.asarray(STREAMED_MEAN, np.float32), np.asarray(STREAMED_STD, np.float32)

    def decode(paths: Sequence[str], rng: np.random.Generator) -> None:
        for path in paths:
            with Image.open(path) as file:
                image = file.convert("RGB")
            image = image.crop(random_box(rng, *image.size, min_area))
            image = image.resize((size, size), Image.Resampling.BILINEAR)
            if rng.random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            (np.asarray(image, np.float32) / 255 - mean) / std

    return decode


def _torchvision_loop(size: int, min_area: float) -> Decode | None:
    try:
        import torch
        from torchvision import transforms
    except ImportError:
        return None
    torch.set_num_threads(1)
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=(min_area, 1)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(STREAMED_MEAN, STREAMED_STD),
        ]
    )

    def decode(paths: Sequence[str], rng: np.random.Generator) -> None:
        torch.manual_seed(int(rng.integers(1 << 31)))
        for path in paths:
            with Image.open(path) as image:
                transform(image.convert("RGB"))

    return decode


def _bench_feed(config: RunConfig, paths: Sequence[str], size: int, count: int) -> dict[str, Any]:
    data = config.data.model_copy(update={"augment": "basic", "mix": "none", "random_erasing": 0.0})
    spec = DataSpec(
        name="folder",
        class_names=("0", "1"),
        image_size=size,
        channels=3,
        mean=STREAMED_MEAN,
        std=STREAMED_STD,
    )
    copies = -(-max(count, data.batch_size) // len(paths))
    split = FileSplit([*paths] * copies, np.zeros(copies * len(paths), np.int32))
    feed = StreamedFeed(split, spec, data, key=jax.random.key(0), place=jax.device_put)
    steps = -(-count // data.batch_size)
    points = sorted({-(-steps * tenth // 10) for tenth in range(1, 11)})
    memory = []
    try:
        feed.source(0)  # the processes have started
        start = time.perf_counter()
        for step in range(1, steps + 1):
            jax.block_until_ready(feed.source(step))
            if step in points:
                memory.append([step * data.batch_size, _held_mb()])
        elapsed = time.perf_counter() - start
    finally:
        feed.close()
    return {
        "workers": data.workers,
        "batch_size": data.batch_size,
        "images_per_s": steps * data.batch_size / elapsed,
        "memory": memory,
    }


def _held_mb() -> float | None:
    """Return what this process and those below it hold, shared pages counted once, in MB; None if
    unknown.
    """
    total = 0
    try:
        for pid in _family(os.getpid()):
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
            total += int(rollup.partition("\nPss:")[2].split()[0])
    except (OSError, IndexError, ValueError):
        return None
    return total * 1024 / 1e6


def _family(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text(encoding="ascii").split():
            yield from _family(int(child))
