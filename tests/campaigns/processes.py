"""``python -m tests.campaigns.processes MODEL BATCH N``: what several processes cost.

One device of one process, two of one process, and two of two processes (Gloo between them) train
the same steps in turn; two of one process do so with a split state, too. Each of N rounds times
every kind for a few steps. Printed are medians over the rounds, and of the ratios within a round.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Sequence

from tests.launch import environment, free_port

STEPS = 6
"""Of each kind in a round."""

WORKER = """
import sys, time
from collections import deque
from gnpcli.devices.processes import peers
from gnpcli.devices.processes.layout import Layout

count, index, coordinator, model, batch, split = sys.argv[1:]
layout = Layout(int(count), int(index), coordinator if int(count) > 1 else None)
peers.connect(layout, print, lambda text: None)

import jax
from gnpcli.bench.steps import random_images, regularized
from gnpcli.devices.mesh import make_mesh
from gnpcli.engine.pending import LOOKAHEAD
from gnpcli.engine.task import build_task
from gnpcli.recipes.presets import resolve

assignments = {"model.name": model, "data.batch_size": batch, "mesh.shard": split}
config = regularized(resolve(None, [f"{key}={value}" for key, value in assignments.items()]))
mesh = make_mesh(config)
task = build_task(config, *random_images(config), mesh)
state, source = task.init(), task.parts.feed.source(0)
step = task.steps["gnp"]
state, metrics = step(state, source)
jax.block_until_ready(metrics)
print("ready", flush=True)
for line in sys.stdin:
    steps = int(line)
    start = time.perf_counter()
    told = deque()
    for _ in range(steps):
        state, metrics = step(state, source)
        told.append(metrics)
        if len(told) > LOOKAHEAD:
            jax.device_get(told.popleft())
    jax.block_until_ready((state, metrics))
    print((time.perf_counter() - start) / steps, flush=True)
"""


class Team:
    """Processes that wait to take steps."""

    def __init__(
        self, model: str, batch: int, *, processes: int = 1, devices: int = 1, split: str = "none"
    ):
        coordinator = f"127.0.0.1:{free_port()}"
        self._workers = [
            subprocess.Popen(
                [
                    *(sys.executable, "-c", WORKER),
                    *(str(processes), str(index), coordinator, model, str(batch), split),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment(devices),
            )
            for index in range(processes)
        ]
        for worker in self._workers:
            assert worker.stdout is not None
            ready = worker.stdout.readline()
            assert ready == "ready\n", ready

    def step_s(self) -> float:
        """Return the seconds of a step, of the slowest process."""
        for worker in self._workers:
            assert worker.stdin is not None
            print(STEPS, file=worker.stdin, flush=True)
        times = []
        for worker in self._workers:
            assert worker.stdout is not None
            times.append(float(worker.stdout.readline()))
        return max(times)

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            assert worker.stdin is not None
            worker.stdin.close()
        for worker in self._workers:
            worker.wait(60)


def quartiles(values: Sequence[float]) -> str:
    """Return the median and, in brackets, the quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def main(model: str, batch: int, rounds: int) -> None:
    """Time the rounds and print the figures."""
    alone, one = Team(model, batch), Team(model, batch, devices=2)
    split, two = Team(model, batch, devices=2, split="fsdp"), Team(model, batch, processes=2)
    times: dict[str, list[float]] = {}
    teams = {"one device": alone, "one process": one, "one process, split": split}
    teams["two processes"] = two
    for number in range(rounds + 1):
        for name, team in teams.items():
            seconds = team.step_s()
            if number > 0:  # what comes first is slow
                times.setdefault(name, []).append(seconds)
    for name, found in times.items():
        print(f"{name}: {quartiles([1e3 * seconds for seconds in found])} ms a step")
    for above, below in (
        ("two processes", "one process"),
        ("one process", "one device"),
        ("one process, split", "one process"),
    ):
        ratios = [a / b for a, b in zip(times[above], times[below], strict=True)]
        print(f"{above} / {below}: {quartiles(ratios)}")
    for team in teams.values():
        team.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
