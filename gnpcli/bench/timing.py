"""Timing: what is compared takes turns in one run, so that ratios survive a noisy machine."""

from __future__ import annotations

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gnpcli.devices import cpu
from gnpcli.devices.memory import program_memory
from gnpcli.devices.mesh import is_on_cpu
from gnpcli.step.programs import Program

Notify = Callable[[str], None]
"""Told what is being done now."""

Step = Program[[Any, Any], tuple[Any, Any]]
"""``(state, source) -> (state, result)``. The given state is donated.

State and source are trees of the step's own.
"""


class Rounds(ABC):
    """Something done in steps, and what they took in each round."""

    def __init__(self) -> None:
        """Begin with no rounds."""
        self.times_s: list[float] = []
        self.cpu_times_s: list[float] = []
        """Processor time of all threads of this process: comparable also on a busy machine."""

    @property
    @abstractmethod
    def is_on_cpu(self) -> bool:
        """Whether the processor does the work, so that its time is the work's."""

    @abstractmethod
    def _work(self, steps: int) -> int:
        """Start at least `steps` steps and return how many they are."""

    @abstractmethod
    def _wait(self) -> None:
        """Wait for what was started."""

    def run(self, steps: int, *, counts: bool) -> None:
        """Time a round of at least `steps` steps; its time is that of its mean step."""
        self._wait()
        start, cpu_start = time.perf_counter(), time.process_time()
        done = self._work(steps)
        self._wait()
        if counts:
            self.times_s.append((time.perf_counter() - start) / done)
            self.cpu_times_s.append((time.process_time() - cpu_start) / done)

    def ratios(self, other: Rounds) -> list[float]:
        """Return the time of a step as a multiple of the other's, for each round."""
        return [own / its for own, its in zip(self.times_s, other.times_s, strict=True)]

    def over(self, other: Rounds) -> float:
        """Return the median of `ratios`."""
        return statistics.median(self.ratios(other))

    def cpu_over(self, other: Rounds) -> float | None:
        """Return `over` in processor time; None on an accelerator, where it means nothing."""
        if not (self.is_on_cpu and other.is_on_cpu):
            return None
        pairs = zip(self.cpu_times_s, other.cpu_times_s, strict=True)
        return statistics.median(own / its for own, its in pairs)

    @property
    def step_s(self) -> float:
        """Median seconds per step over the rounds."""
        return statistics.median(self.times_s)


def interleave(kinds: Sequence[Rounds], *, rounds: int, steps: int, notify: Notify) -> None:
    """Run `steps` steps of each kind in turn.

    `rounds` rounds count, after one that does not.
    """
    for number in range(rounds + 1):
        notify(f"round {number} of {rounds}")
        for kind in kinds:
            kind.run(steps, counts=number > 0)


class Timed(Rounds):
    """Compiled steps ``(state, source) -> (state, result)`` with a state of their own."""

    def __init__(
        self,
        cycle: Sequence[Step],
        state: Any,
        source: Any,
        *,
        repeat: int = 1,
        has_loop: bool = False,
    ):
        """Compile.

        Args:
            cycle: Jitted steps that take turns; one for a step that is always the same.
            state: Donated.
            source: What every step reads.
            repeat: A round runs so many times as many steps as asked for, where a step is too short
                to time.
            has_loop: Whether a step loops over blocks or over slices of its batch, see `flops`.
        """
        super().__init__()
        start = time.perf_counter()
        programs = {step: step.lower(state, source).compile() for step in dict.fromkeys(cycle)}
        self.compile_s = time.perf_counter() - start
        self._steps = cycle
        self._cycle = [programs[step] for step in cycle]
        self._state, self._source, self._repeat = state, source, repeat
        self._result: Any = None
        self._has_loop = has_loop

    @property
    def is_on_cpu(self) -> bool:
        """Whether the state lies on CPU devices."""
        (device, *_) = jax.tree.leaves(self._state)[0].devices()
        return bool(device.platform == "cpu")

    def _work(self, steps: int) -> int:
        """Run whole cycles."""
        cycles = -(-steps * self._repeat // len(self._cycle))
        for _ in range(cycles):
            for step in self._cycle:
                self._state, self._result = step(self._state, self._source)
        return cycles * len(self._cycle)

    def _wait(self) -> None:
        jax.block_until_ready((self._state, self._result))

    @property
    def flops(self) -> float | None:
        """Floating point operations of the mean step, as the compiler counts them.

        They are counted in what was traced and not in what was compiled, and with XLA's own
        convolutions, so that they are the same on every backend. None where the compiler does not
        count, and where there is a loop: its body counts once however often it runs.
        """
        if self._has_loop:
            return None
        counts = {
            step: _count_flops(step, self._state, self._source)
            for step in dict.fromkeys(self._steps)
        }
        known = [count for count in map(counts.get, self._steps) if count is not None]
        return statistics.fmean(known) if len(known) == len(self._steps) else None

    @property
    def peak_bytes(self) -> int | None:
        """Arguments, results and temporaries of the largest step, what it reads included.

        None where the compiler does not say.
        """
        found = [program_memory(step) for step in self._cycle]
        known = [memory.peak for memory in found if memory is not None]
        return max(known) if len(known) == len(found) else None


def _count_flops(step: Step, state: Any, source: Any) -> float | None:
    jitted: Any = step  # `Program` does not promise what jit wrapped

    # A function that jit has not traced yet: it would not trace `step` again.
    def again(state: Any, source: Any) -> Any:
        return jitted.__wrapped__(state, source)

    with cpu.tuning(False):
        analysis = jax.jit(again).lower(state, source).cost_analysis() or {}
    counted = analysis.get("flops")
    return None if counted is None else float(counted)


def matmul_flops_per_s(dtype: str, mesh: Mesh) -> float:
    """Return the best rate of five products of two square matrices on one device of a mesh.

    The matrices are large enough to fill it.
    """
    size = 1536 if is_on_cpu(mesh) else 8192
    matrix = jax.device_put(jnp.full((size, size), 1e-3, dtype), mesh.devices.flat[0])
    product = jax.jit(lambda a, b: a @ b)
    jax.block_until_ready(product(matrix, matrix))
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(product(matrix, matrix))
        best = min(best, time.perf_counter() - start)
    return float(2 * size**3 / best)
