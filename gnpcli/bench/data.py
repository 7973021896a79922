"""Speed of the in-memory input pipeline, alone and inside a training step, interleaved."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gnpcli.bench.steps import random_images
from gnpcli.bench.timing import Notify, Step, Timed, interleave
from gnpcli.config.resolved import Resolved
from gnpcli.data.feeds.base import FeedData, TrainFeed
from gnpcli.devices.mesh import make_mesh
from gnpcli.devices.process import describe_environment
from gnpcli.engine.task import build_task
from gnpcli.errors import ConfigError, suggest

VARIANTS: dict[str, dict[str, str]] = {
    **{
        name: {"augment": name, "mix": "none"}
        for name in ("none", "crop", "basic", "autoaugment", "randaugment")
    },
    **{name: {"augment": "basic", "mix": name} for name in ("cutout", "mixup", "cutmix", "mixcut")},
}
"""What `bench_in_memory` can compare, as changes of the `data` section.

The batch-level ones come after ``basic``.
"""


def bench_in_memory(
    config: Resolved, *, variants: list[str], rounds: int, steps: int, notify: Notify
) -> dict[str, Any]:
    """Measure the feed of a data set that lives on the devices.

    It runs alone and inside a plain training step. Alone it feeds an empty model, which sums the
    images up: its rate is the highest that any model can reach.

    Args:
        config: Its augmentation is replaced by that of each variant, on random images in the shape
            of its data set.
        variants: Names out of `VARIANTS`; shares are of the first one's step.
        rounds: Rounds counted, after one that is not.
        steps: Training steps of each kind in a round; of the feed alone ten times as many.
        notify: Told what is being done.

    Returns:
        JSON-able: the sizes, `environment`, and `measurements`, one for each variant, with
        `feed_images_per_s`, `images_per_s` (of the training step), `feed_share` (time of the feed
        alone over that of the training step) and `relative_rate` (the training step's rate over the
        first variant's): medians over the rounds, the last two of ratios within a round.

    Raises:
        ConfigError: An unknown variant.
        DataError: As `gnpcli.bench.steps.random_images`.
    """
    for name in variants:
        if name not in VARIANTS:
            choices = ", ".join(VARIANTS)
            hint = suggest(name, VARIANTS)
            raise ConfigError(f"unknown variant {name!r}{hint} (choices: {choices})")
    mesh = make_mesh(config)
    images, spec = random_images(config)
    feeds: dict[str, Timed] = {}
    whole: dict[str, Timed] = {}
    for name in variants:
        notify(f"compiling {name}")
        changes = {f"data.{key}": value for key, value in VARIANTS[name].items()}
        task = build_task(config.replaced(changes), images, spec, mesh)
        source = task.parts.feed.source(0)
        feeds[name] = Timed(
            [_empty_model(task.parts.feed)], jnp.zeros((), jnp.int32), source, repeat=10
        )
        whole[name] = Timed([task.steps["plain"]], task.init(), source)
    interleave([*feeds.values(), *whole.values()], rounds=rounds, steps=steps, notify=notify)
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


def _empty_model(feed: TrainFeed) -> Step:
    """Return a jitted step whose model is the sum of its images.

    Its state is the step's number.
    """

    def step(number: jax.Array, source: FeedData) -> tuple[jax.Array, jax.Array]:
        key = jax.random.fold_in(jax.random.key(0), number)
        images, labels = feed.batch(source, number % feed.steps_per_epoch, key)
        total = jnp.sum(images.astype(jnp.float32)) + jnp.sum(labels.astype(jnp.float32))
        return number + 1, total

    return jax.jit(step, donate_argnums=0)
