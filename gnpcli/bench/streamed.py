"""Speed of the streamed input pipeline, beside what a person would write, interleaved."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from gnpcli.bench.timing import Notify
from gnpcli.config.resolved import Resolved
from gnpcli.config.schema import DataConfig
from gnpcli.data.augment.basic import normalize
from gnpcli.data.base import DataSpec, FileSplit
from gnpcli.data.feeds.streamed import StreamedFeed
from gnpcli.data.images.assemble import STREAMED_MEAN, STREAMED_SIZE, STREAMED_STD
from gnpcli.data.images.crops import Transform, random_box
from gnpcli.data.images.entries import SUFFIXES
from gnpcli.data.images.opening import silence_pillow
from gnpcli.devices.process import describe_environment
from gnpcli.errors import DataError

MAX_FILES = 1000
"""Files of a folder that are used, the first by name."""

Decode = Callable[[Sequence[str], np.random.Generator], None]
"""Decodes files into normalised training images, one after the other, and throws them away."""


def bench_streamed(
    config: Resolved, folder: Path, *, count: int, rounds: int, notify: Notify
) -> dict[str, Any]:
    """Measure decoding, random resized crop, flip and normalisation of image files.

    One thread decodes all files of a round (the normalisation is the device's). It runs beside a
    loop over Pillow as a person would write it, and beside torchvision's usual transforms where
    that package can be imported. Then the streamed feed decodes `count` images with
    `data.workers`.

    Args:
        config: `image_size` (or 224), `crop_min_area`, `batch_size` and `workers` of its data are
            used.
        folder: The image files below it are the training images, the first `MAX_FILES` by name.
        count: Images that the feed decodes, rounded up to whole batches.
        rounds: Rounds counted, after one that is not.
        notify: Told what is being done.

    Returns:
        JSON-able: the sizes, `environment`; `measurements`, one for each way, with `images_per_s`
        of one thread and `over_pillow` (the rate over that of the Pillow loop), medians over the
        rounds; and `feed` with `images_per_s` and `memory`, (images so far, MB that this process
        and its workers hold) at ten points, null outside Linux.

    Raises:
        DataError: If there are no images, or one cannot be read.
    """
    silence_pillow()
    paths = _image_files(folder)
    size = config.data.image_size or STREAMED_SIZE
    times = _time_loops(_loops(size, config.data.crop_min_area), paths, rounds, notify)
    notify(f"streaming {count} images")
    return {
        "images": len(paths),
        "image_size": size,
        "rounds": rounds,
        "measurements": [_measurement(name, times, len(paths)) for name in times],
        "feed": _bench_feed(config, paths, size, count),
        "environment": describe_environment(),
    }


def _image_files(folder: Path) -> list[str]:
    found = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES]
    if not found:
        raise DataError(f"no images below {folder} ({', '.join(SUFFIXES)})")
    return [str(path) for path in found[:MAX_FILES]]


def _loops(size: int, min_area: float) -> dict[str, Decode]:
    """Return what decodes, by name."""
    loops = {"pillow": _pillow_loop(size, min_area), "gnp": _own_loop(size, min_area)}
    torchvision = _torchvision_loop(size, min_area)
    if torchvision is not None:
        loops["torchvision"] = torchvision
    return loops


def _time_loops(
    loops: Mapping[str, Decode], paths: Sequence[str], rounds: int, notify: Notify
) -> dict[str, list[float]]:
    """Return the seconds that each loop takes for all files, by round."""
    times: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(rounds + 1):
        notify(f"round {number} of {rounds}")
        for name, decode in loops.items():
            start = time.perf_counter()
            decode(paths, np.random.default_rng(number))
            if number > 0:
                times[name].append(time.perf_counter() - start)
    return times


def _measurement(name: str, times: Mapping[str, list[float]], num_files: int) -> dict[str, Any]:
    own = times[name]
    ratios = [pillow / its for pillow, its in zip(times["pillow"], own, strict=True)]
    return {
        "name": name,
        "images_per_s": num_files / statistics.median(own),
        "over_pillow": statistics.median(ratios),
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


def _bench_feed(config: Resolved, paths: Sequence[str], size: int, count: int) -> dict[str, Any]:
    """Stream at least `count` images, in whole batches."""
    data = config.data.replaced({"augment": "basic", "mix": "none", "random_erasing": 0.0})
    batch_size = data.batch_size
    steps = -(-count // batch_size)
    tenths = {-(-steps * tenth // 10) for tenth in range(1, 11)}
    memory = []
    feed = _make_feed(data, paths, size, max(count, batch_size))
    try:
        feed.source(0)  # the processes have started
        start = time.perf_counter()
        for step in range(1, steps + 1):
            jax.block_until_ready(feed.source(step))
            if step in tenths:
                memory.append([step * batch_size, _held_mb()])
        elapsed_s = time.perf_counter() - start
    finally:
        feed.close()
    return {
        "workers": data.workers,
        "batch_size": batch_size,
        "images_per_s": steps * batch_size / elapsed_s,
        "memory": memory,
    }


def _make_feed(data: DataConfig, paths: Sequence[str], size: int, at_least: int) -> StreamedFeed:
    """Make the feed of a data set of so many images, which repeats the files where they are few."""
    spec = DataSpec(
        name="folder",
        class_names=("0", "1"),
        image_size=size,
        channels=3,
        mean=STREAMED_MEAN,
        std=STREAMED_STD,
    )
    copies = -(-at_least // len(paths))
    split = FileSplit([*paths] * copies, np.zeros(copies * len(paths), np.int32))
    return StreamedFeed(split, spec, data, key=jax.random.key(0), place=jax.device_put)


def _held_mb() -> float | None:
    """Return what this process and its children hold, in MB; None where that is not known.

    Shared pages count once.
    """
    total_kib = 0
    try:
        for pid in _process_tree(os.getpid()):
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
            total_kib += int(rollup.partition("\nPss:")[2].split()[0])
    except (OSError, IndexError, ValueError):
        return None
    return total_kib * 1024 / 1e6


def _process_tree(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text(encoding="ascii").split():
            yield from _process_tree(int(child))
