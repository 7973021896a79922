"""``python -m tests.campaigns.digests N DIR``: what the digests add to a save of ViT-B with Adam.

The digests are made while Orbax writes the arrays, on the same processors. Saves with and without
them take turns, N of each, N even. Printed are the medians of the wall time, and the processor time
of the digests beside that of the whole save.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from gnpcli.config.schema import CheckpointConfig
from gnpcli.models.family import Images
from gnpcli.models.registry import build_model, model_options
from gnpcli.runs import checkpoint
from gnpcli.runs.checkpoint import Checkpoints
from gnpcli.runs.digests import HostArray, digests
from gnpcli.step.state import TrainState, init_state

SIDE, CLASSES = 224, 1000


class Timed:
    """`digests`, which can be left out, and the processor seconds that they took."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.is_on = True

    def __call__(self, arrays: Mapping[str, HostArray]) -> dict[str, str]:
        start = time.thread_time()
        found = digests(arrays) if self.is_on else {}
        self.seconds += time.thread_time() - start
        return found


def save(state: TrainState, folder: Path) -> tuple[float, float]:
    """Return the wall time and the processor time of a save, from its start to its end on disk."""
    shutil.rmtree(folder, ignore_errors=True)
    checkpoints = Checkpoints(folder, CheckpointConfig(keep=1), None)
    start, start_cpu = time.monotonic(), time.process_time()
    checkpoints.save(state, {}, None)
    checkpoints.wait()
    taken = time.monotonic() - start, time.process_time() - start_cpu
    checkpoints.close()
    return taken


def main(saves: int, folder: Path) -> None:
    """Save 2 N times and print the figures."""
    model = build_model(model_options("vit-b"), Images(SIDE, 3, CLASSES))
    state = jax.block_until_ready(init_state(model, (SIDE, SIDE, 3), optax.adam(1e-3), seed=0))
    timed = vars(checkpoint)["digests"] = Timed()
    save(state, folder)  # imports, and the first use of each thread
    timed.seconds = 0.0
    wall: dict[bool, list[float]] = {True: [], False: []}
    processor_s = 0.0
    for number in range(2 * saves):
        timed.is_on = number % 4 in (0, 3)  # neither is always after the other
        seconds, cpu = save(state._replace(step=jnp.int32(number)), folder)
        wall[timed.is_on].append(seconds)
        processor_s += cpu * timed.is_on
    with_them, without = (statistics.median(wall[is_on]) for is_on in (True, False))
    share = timed.seconds / processor_s
    print(f"{with_them:.2f} s a save, {without:.2f} s without digests (medians of {saves})")
    print(f"from {min(wall[True]):.2f} to {max(wall[True]):.2f} s with them,", end=" ")
    print(f"from {min(wall[False]):.2f} to {max(wall[False]):.2f} s without")
    print(f"{timed.seconds / saves:.3f} processor s a save for them, {share:.1%} of its own")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
