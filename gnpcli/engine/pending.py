"""Metrics on their way from the devices to the host."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import jax

from gnpcli.step.programs import Metrics

LOOKAHEAD = 2
"""Steps dispatched before the metrics of a step are read.

The devices never wait for the host, and never run far ahead of it.
"""

_BATCHES_AHEAD = 4


def keep_up(index: int, result: Any) -> None:
    """Wait for what a batch of a pass without gradients gave, after every fourth batch.

    Devices of one CPU meet in threads that they share. With many programs under way, those of one
    program can hold the threads that another needs, until XLA gives up and aborts. On other
    devices the wait bounds how many streamed batches lie in memory, and costs next to nothing.
    """
    if index % _BATCHES_AHEAD == _BATCHES_AHEAD - 1:
        jax.block_until_ready(result)


class MetricsQueue:
    """The metrics of dispatched steps, in their order."""

    def __init__(self) -> None:
        self._pending: deque[tuple[int, Metrics]] = deque()

    def push(self, step: int, metrics: Metrics) -> None:
        """Start the copies to the host; they are made while the next steps run."""
        for value in metrics.values():
            value.copy_to_host_async()
        self._pending.append((step, metrics))

    def pop_all_but(self, keep: int) -> Iterator[tuple[int, dict[str, float]]]:
        """Yield step and metrics, the oldest first, until `keep` steps are left.

        It waits for them.
        """
        while len(self._pending) > keep:
            step, metrics = self._pending.popleft()
            yield step, {name: float(value) for name, value in jax.device_get(metrics).items()}
