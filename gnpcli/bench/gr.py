"""What each form of gradient regularization costs beside plain training, in time and memory."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from gnpcli.bench.steps import has_loop, random_images, regularized
from gnpcli.bench.timing import Notify, Timed, interleave
from gnpcli.config.resolved import Resolved
from gnpcli.devices.mesh import make_mesh
from gnpcli.devices.process import describe_environment
from gnpcli.engine.task import build_task
from gnpcli.errors import ConfigError, suggest
from gnpcli.recipes.presets import override

PLAIN = "plain"
WHOLE = (
    "gr.groups=1",
    "train.accumulate=1",
    "gr.every=1",
    "gr.between=plain",
    "gr.probability=1",
    "gr.probability_end=null",
)
"""What every form starts from: each step penalised, on the whole batch at once."""

VARIANTS: dict[str, tuple[str, ...]] = {
    "gnp": (),
    "sam": ("gr.strategy=sam",),
    "asam": ("gr.ascent=adaptive", "gr.alpha=1"),
    "gsam": ("gr.surrogate_gap=0.2", "gr.alpha=1"),
    "sam-on": ("gr.perturb=norms", "gr.alpha=1"),
    "exact": ("gr.gradient=exact",),
    "groups-4": ("gr.groups=4",),
    "groups-8": ("gr.groups=8",),
    "accumulate-4": ("train.accumulate=4",),
    "every-4": ("gr.every=4",),
    "reuse-4": ("gr.every=4", "gr.between=reuse"),
    "zero-warmup": ("gr.strategy=zero-warmup", "gr.warmup_epochs=1"),
}
"""What `bench_gr` can compare with plain training.

The settings come on top of GR at full strength from the first step and of `WHOLE`. Of
``zero-warmup`` the plain steps of the warmup are measured.
"""


def bench_gr(
    config: Resolved, *, variants: Sequence[str], rounds: int, steps: int, notify: Notify
) -> dict[str, Any]:
    """Measure training steps of a configuration with every form of GR beside plain ones.

    A round times `steps` steps of each kind in turn (whole periods of a kind whose steps differ).
    Ratios are medians over the rounds of ratios within a round: they survive a noisy machine.

    Args:
        config: Its own GR settings are kept where neither `WHOLE` nor a variant sets them; r and
            alpha are 0.1 and 0.8 if it has none. Its images are random ones in the shape of its
            data set.
        variants: Names out of `VARIANTS`.
        rounds: Rounds counted, after one that is not.
        steps: Steps of each kind in a round.
        notify: Told what is being done.

    Returns:
        JSON-able: the sizes, `environment`, and `measurements`, plain training first, each with
        `name`, `settings`, `step_ms`, `images_per_s`, `compile_s`, `over_plain` with its
        `over_plain_min` and `over_plain_max` over the rounds, `cpu_over_plain` (the same ratio in
        processor time, which other work on the machine disturbs less; null on an accelerator),
        `flops_over_plain` (of `gnpcli.bench.timing.Timed.flops`, null where that is), `peak_bytes`
        (arguments, results and temporaries of the compiled step, data set included) and
        `memory_over_plain`; null where the compiler does not say.

    Raises:
        ConfigError: An unknown variant, or one that the configuration cannot have.
        DataError: As `gnpcli.bench.steps.random_images`.
    """
    for name in variants:
        if name not in VARIANTS:
            choices, hint = ", ".join(VARIANTS), suggest(name, VARIANTS)
            raise ConfigError(f"unknown variant {name!r}{hint} (choices: {choices})")
    base = override(regularized(config), WHOLE)
    images, spec = random_images(config)
    kinds: dict[str, Timed] = {}
    settings = {PLAIN: ("gr.strategy=none",), **{name: VARIANTS[name] for name in variants}}
    for name, assignments in settings.items():
        notify(f"compiling {name}")
        form = override(base, assignments)
        task = build_task(form, images, spec, make_mesh(form))
        cycle = [task.step_at(step) for step in range(task.config.gr.every)]
        kinds[name] = Timed(cycle, task.init(), task.parts.feed.source(0), has_loop=has_loop(form))
    interleave(list(kinds.values()), rounds=rounds, steps=steps, notify=notify)
    batch_size, plain = config.data.batch_size, kinds[PLAIN]
    return {
        "model": config.model.name,
        "batch_size": batch_size,
        "dtype": config.train.dtype,
        "r": base.gr.r,
        "alpha": base.gr.alpha,
        "devices": make_mesh(base).size,
        "rounds": rounds,
        "steps_per_round": steps,
        "measurements": [
            {
                "name": name,
                "settings": list(settings[name]),
                **_beside_plain(timed, plain, batch_size),
            }
            for name, timed in kinds.items()
        ],
        "environment": describe_environment(),
    }


def _beside_plain(timed: Timed, plain: Timed, batch_size: int) -> dict[str, Any]:
    """Return the figures of a form of GR, absolute and as multiples of plain training."""
    ratios = timed.ratios(plain)
    return {
        "step_ms": 1e3 * timed.step_s,
        "images_per_s": batch_size / timed.step_s,
        "compile_s": timed.compile_s,
        "over_plain": statistics.median(ratios),
        "over_plain_min": min(ratios),
        "over_plain_max": max(ratios),
        "cpu_over_plain": timed.cpu_over(plain),
        "flops_over_plain": _ratio(timed.flops, plain.flops),
        "peak_bytes": timed.peak_bytes,
        "memory_over_plain": _ratio(timed.peak_bytes, plain.peak_bytes),
    }


def _ratio(own: float | None, plain: float | None) -> float | None:
    """Return a ratio; None where one of the two is not known."""
    return own / plain if own and plain else None
