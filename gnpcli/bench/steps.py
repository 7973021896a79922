"""Speed of plain and GNP steps, interleaved in one run.

The steps are the engine's own, feed included, on random images in the shape of the preset's data
set. Nothing has to be downloaded, and no step is cheaper for what is in the pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gnpcli.bench.timing import Notify, Timed, interleave, matmul_flops_per_s
from gnpcli.config.resolved import Resolved
from gnpcli.config.strategies import AT_ONCE
from gnpcli.data.base import DataSpec, Split
from gnpcli.data.registry import describe_data
from gnpcli.devices.mesh import make_mesh
from gnpcli.devices.process import describe_environment
from gnpcli.engine.task import build_task
from gnpcli.errors import DataError
from gnpcli.step.schedules import StepKind

USUAL_R, USUAL_ALPHA = 0.1, 0.8
"""Of the papers, for a configuration without its own."""


def bench(config: Resolved, *, rounds: int, steps: int, notify: Notify) -> dict[str, Any]:
    """Measure `config` plainly and with gradient regularization.

    A round times `steps` plain steps and then `steps` GNP steps. Figures are medians over the
    rounds. The ratio is the median of the ratios within a round.

    Args:
        config: Its GR is used where it has any, else r = 0.1 and alpha = 0.8.
        rounds: Rounds counted, after one that is not.
        steps: Steps of each kind in a round.
        notify: Told what is being done.

    Returns:
        JSON-able: `environment`, the sizes, `matmul_flops_per_s` (a large square product in the
        compute type, the practical peak of the device), and `measurements`, one each for ``plain``
        and ``gnp``, with `images_per_s`, `step_ms`, `step_ms_min`, `step_ms_max`, `compile_s`
        (tracing and compilation), `peak_bytes` (arguments, results and temporaries of the compiled
        step, data set included), `flops_per_step` (`Timed.flops`), `share_of_matmul_peak` and
        `gnp_over_plain`.

    Raises:
        DataError: As `random_images`.
    """
    kinds = time_steps(config, rounds=rounds, steps=steps, notify=notify)
    mesh = make_mesh(config)
    ratio = kinds["gnp"].over(kinds["plain"])
    peak = matmul_flops_per_s(config.train.dtype, mesh)
    batch_size = config.data.batch_size
    return {
        "model": config.model.name,
        "batch_size": batch_size,
        "dtype": config.train.dtype,
        "gradient": config.gr.gradient,
        "devices": mesh.size,
        "rounds": rounds,
        "steps_per_round": steps,
        "matmul_flops_per_s": peak,
        "measurements": [
            {
                "name": name,
                **_figures(timed, batch_size, peak * mesh.size),
                "gnp_over_plain": ratio,
            }
            for name, timed in kinds.items()
        ],
        "environment": describe_environment(),
    }


def _figures(timed: Timed, batch_size: int, peak_flops_per_s: float) -> dict[str, Any]:
    step_s, flops = timed.step_s, timed.flops
    return {
        "images_per_s": batch_size / step_s,
        "step_ms": 1e3 * step_s,
        "step_ms_min": 1e3 * min(timed.times_s),
        "step_ms_max": 1e3 * max(timed.times_s),
        "compile_s": timed.compile_s,
        "peak_bytes": timed.peak_bytes,
        "flops_per_step": flops,
        "share_of_matmul_peak": None if flops is None else flops / step_s / peak_flops_per_s,
    }


def time_steps(config: Resolved, *, rounds: int, steps: int, notify: Notify) -> dict[str, Timed]:
    """Return the plain and the GNP step of `config`, ``plain`` and ``gnp``, timed as `bench` says.

    Raises:
        DataError: As `random_images`.
    """
    images, spec = random_images(config)
    kinds = compile_steps(config, images, spec, notify)
    interleave(list(kinds.values()), rounds=rounds, steps=steps, notify=notify)
    return kinds


def compile_steps(
    config: Resolved, images: Split, spec: DataSpec, notify: Notify
) -> dict[str, Timed]:
    """Return the plain and the GNP step of `config` on `images`, not timed yet."""
    config = regularized(config)
    task = build_task(config, images, spec, make_mesh(config))
    source = task.parts.feed.source(0)
    kinds: dict[str, Timed] = {}
    names: tuple[StepKind, ...] = ("plain", "gnp")
    for name in names:
        notify(f"compiling {name}")
        kinds[name] = Timed([task.steps[name]], task.init(), source, has_loop=has_loop(config))
    return kinds


def has_loop(config: Resolved) -> bool:
    """Return whether the steps of a configuration loop over blocks or over slices of the batch."""
    is_scanned = getattr(config.model, "scan", False)
    return is_scanned or config.train.accumulate > 1 or config.gr.groups != 1


def regularized(config: Resolved) -> Resolved:
    """Return `config` with GR at full strength from the first step.

    Its own r and alpha act, or else 0.1 and 0.8.
    """
    r, alpha = config.gr.r or USUAL_R, config.gr.alpha or USUAL_ALPHA
    return config.replaced({"gr.strategy": AT_ONCE, "gr.r": r, "gr.alpha": alpha})


def random_images(config: Resolved) -> tuple[Split, DataSpec]:
    """Return random training images in the shape of a configuration's data set.

    They are enough for four batches, and at least 1,024.

    Raises:
        DataError: The shape of the data set is not known without its files, and they are missing.
    """
    data = describe_data(config.data)
    if data is None:
        raise DataError(f"the image size of {config.data.name} is not known: give --data-dir")
    rng = np.random.default_rng(0)
    count = max(4 * config.data.batch_size, 1024)
    shape = (count, data.image_size, data.image_size, data.channels)
    spec = DataSpec(
        name=config.data.name,
        class_names=tuple(map(str, range(data.num_classes))),
        image_size=data.image_size,
        channels=data.channels,
        mean=(0.5,) * data.channels,
        std=(0.25,) * data.channels,
    )
    labels = rng.integers(0, data.num_classes, count).astype(np.int32)
    return Split(rng.integers(0, 256, shape, dtype=np.uint8), labels), spec
