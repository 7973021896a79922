"""Seconds from the start of the process to the end of the first step of a run, and what they were.

The run is the engine's own, on random images in the shape of the preset's data set. Every program
is compiled anew.
"""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax

from gnpcli.bench.steps import random_images
from gnpcli.bench.timing import Notify
from gnpcli.config.resolved import Resolved
from gnpcli.data.base import Dataset
from gnpcli.devices.process import age_s, describe_environment
from gnpcli.engine.hooks import OnRecord
from gnpcli.engine.train import train
from gnpcli.runs.contents import Record

_COMPILED = "/jax/core/compile/backend_compile_duration"
_LONGEST = 5


def bench_start(config: Resolved, *, notify: Notify) -> dict[str, Any]:
    """Take the first step of `config` in a run of its own, evaluate, save, and tell when.

    Processor time counts all threads of the process. It can be compared also on a busy machine.

    Args:
        config: What is trained.
        notify: Told what is being done.

    Returns:
        JSON-able: `environment`, `model`, `batch_size`, `measurements`, one each for ``imported``,
        ``first step`` and ``saved`` with `elapsed_s` and `cpu_s` since the process began,
        `programs` (how many were compiled) and the `longest` of them with `compile_s`.

    Raises:
        DataError: As `random_images`.
    """
    moments = [_moment("imported")]
    seconds: dict[str, float] = defaultdict(float)
    count = 0

    def on_duration(event: str, duration_secs: float, **kwargs: str | int) -> None:
        nonlocal count
        if event == _COMPILED:
            count += 1
            seconds[str(kwargs.get("fun_name", "?"))] += duration_secs

    def on_record(record: Record) -> None:
        if record["split"] == "train":
            moments.append(_moment("first step"))

    jax.monitoring.register_event_duration_secs_listener(on_duration)
    images, spec = random_images(config)
    few = config.data.batch_size
    data = Dataset.from_arrays(
        train=(images.images, images.labels),
        test=(images.images[:few], images.labels[:few]),
        class_names=spec.class_names,
    )
    notify("taking the first step")
    with TemporaryDirectory() as folder:
        hooks = [OnRecord(1, on_record)]
        train(config, Path(folder) / "run", data=data, hooks=hooks, max_steps=1, quiet=True)
    moments.append(_moment("saved"))
    longest = sorted(seconds, key=lambda name: -seconds[name])[:_LONGEST]
    return {
        "model": config.model.name,
        "batch_size": config.data.batch_size,
        "dtype": config.train.dtype,
        "measurements": moments,
        "programs": count,
        "longest": [{"name": name, "compile_s": seconds[name]} for name in longest],
        "environment": describe_environment(),
    }


def _moment(name: str) -> dict[str, Any]:
    return {"name": name, "elapsed_s": age_s(), "cpu_s": time.process_time()}
