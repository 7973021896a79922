"""Speed of plain and GNP steps, interleaved in one run, so that their ratio survives a noisy
machine.

The steps are the engine's own, feed included, on random images in the shape of the preset's data
set: nothing has to be downloaded, and no step is cheaper for what is in the pixels.
"""

from __future__ import annotations

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gnpcli.config import RunConfig
from gnpcli.data.base import DataSpec, Split
from gnpcli.data.registry import describe
from gnpcli.devices import cpu
from gnpcli.devices.mesh import make_mesh
from gnpcli.devices.process import describe_environment
from gnpcli.engine.task import build_task
from gnpcli.errors import DataError

Report = Callable[[str], None]


def bench(config: RunConfig, *, rounds: int, steps: int, report: Report) -> dict[str, Any]:
    """Measure `config` plainly and with gradient regularization.

    A round times `steps` plain steps and then `steps` GNP steps; figures are medians over the
    rounds, and the ratio is the median of the ratios within a round.

    Args:
        config: Its GR is used where it has any, else r = 0.1 and alpha = 0.8.
        rounds: Rounds counted, after one that is not.
        steps: Steps of each kind in a round.
        report: Told what is being done.

    Returns:
        JSON-able: `environment`, the sizes, `matmul_flops_per_s` (a large square product in the
        compute type, the practical peak of the device), and `measurements`, one each for ``plain``
        and ``gnp``, with `images_per_s`, `step_ms`, `step_ms_min`, `step_ms_max`, `compile_s`
        (tracing and compilation), `peak_bytes` (arguments, results and temporaries of the compiled
        step, data set included), `flops_per_step` (`Timed.flops`), `share_of_matmul_peak` and
        `gnp_over_plain`.

    Raises:
        DataError: The shape of the data set is not known without its files, and they are missing.
    """
    kinds = time_steps(config, rounds=rounds, steps=steps, report=report)
    mesh = make_mesh(config)
    ratio = kinds["gnp"].over(kinds["plain"])
    peak = _matmul_flops_per_s(config.train.dtype)
    return {
        "model": config.model.name,
        "batch_size": config.data.batch_size,
        "dtype": config.train.dtype,
        "gradient": config.gr.gradient,
        "devices": mesh.size,
        "rounds": rounds,
        "steps_per_round": steps,
        "matmul_flops_per_s": peak,
        "measurements": [
            {
                "name": name,
                **timed.figures(config.data.batch_size, peak * mesh.size),
                "gnp_over_plain": ratio,
            }
            for name, timed in kinds.items()
        ],
        "environment": describe_environment(),
    }


def time_steps(config: RunConfig, *, rounds: int, steps: int, report: Report) -> dict[str, Timed]:
    """Return the plain and the GNP step of `config`, ``plain`` and ``gnp``, timed as `bench` says;
    arguments as there.

    Raises:
        DataError: The shape of the data set is not known without its files, and they are missing.
    """
    kinds = compile_steps(config, report)
    interleave(list(kinds.values()), rounds=rounds, steps=steps, report=report)
    return kinds


def compile_steps(config: RunConfig, report: Report) -> dict[str, Timed]:
    """Return the plain and the GNP step of `config`, not timed yet; arguments and errors as
    `time_steps`.
    """
    config = regularized(config)
    task = build_task(config, *random_images(config), make_mesh(config))
    source = task.feed.source(0)
    kinds: dict[str, Timed] = {}
    for name, step in (("plain", task.plain_step), ("gnp", task.gnp_step)):
        report(f"compiling {name}")
        kinds[name] = Timed([step], task.init(), source, has_loop=has_loop(config))
    return kinds


def has_loop(config: RunConfig) -> bool:
    """Return whether the steps of a configuration loop over blocks or over slices of the batch."""
    return bool(config.model.scan) or config.train.accumulate > 1 or config.gr.groups != 1


def regularized(config: RunConfig) -> RunConfig:
    """Return `config` with GR at full strength from the first step, of its own r and alpha or else
    0.1 and 0.8.
    """
    gr = config.gr
    update = {"strategy": "constant", "r": gr.r or 0.1, "alpha": gr.alpha or 0.8}
    return config.model_copy(update={"gr": gr.model_copy(update=update)})


def random_images(config: RunConfig) -> tuple[Split, DataSpec]:
    """Return random training images in the shape of a configuration's data set, enough for four
    batches.

    Raises:
        DataError: The shape of the data set is not known without its files, and they are missing.
    """
    data = describe(config.data)
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


def interleave(kinds: Sequence[Rounds], *, rounds: int, steps: int, report: Report) -> None:
    """Run `steps` steps of each kind in turn, in `rounds` rounds that count after one that does
    not.
    """
    for number in range(rounds + 1):
        report(f"round {number} of {rounds}")
        for kind in kinds:
            kind.run(steps, counts=number > 0)


class Rounds(ABC):
    """Something done in steps, and what they took in each round."""

    def __init__(self) -> None:
        """Begin with no rounds."""
        self.times_s: list[float] = []
        self.cpu_times_s: list[float] = []
        """Processor time of all threads of this process: on a CPU what a busy machine leaves
        comparable.
        """

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

    def cpu_over(self, other: Rounds) -> float:
        """Return `over` in processor time."""
        return statistics.median(
            own / its for own, its in zip(self.cpu_times_s, other.cpu_times_s, strict=True)
        )

    @property
    def step_s(self) -> float:
        """Median seconds per step over the rounds."""
        return statistics.median(self.times_s)


class Timed(Rounds):
    """Compiled steps ``(state, source) -> (state, result)`` with a state of their own."""

    def __init__(
        self,
        cycle: Sequence[Any],
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

    def _work(self, steps: int) -> int:
        """Run whole cycles."""
        cycles = -(-steps * self._repeat // len(self._cycle))
        for _ in range(cycles):
            for step in self._cycle:
                self._state, self._result = step(self._state, self._source)
        return cycles * len(self._cycle)

    def _wait(self) -> None:
        jax.block_until_ready((self._state, self._result))

    def figures(self, batch_size: int, peak_flops_per_s: float) -> dict[str, Any]:
        step_s, flops = self.step_s, self.flops
        return {
            "images_per_s": batch_size / step_s,
            "step_ms": 1e3 * step_s,
            "step_ms_min": 1e3 * min(self.times_s),
            "step_ms_max": 1e3 * max(self.times_s),
            "compile_s": self.compile_s,
            "peak_bytes": self.peak_bytes,
            "flops_per_step": flops,
            "share_of_matmul_peak": None if flops is None else flops / step_s / peak_flops_per_s,
        }

    @property
    def flops(self) -> float | None:
        """Floating point operations of the mean step as the compiler counts them; None where it
        does not.

        Counted in what was traced and not in what was compiled, and with XLA's own convolutions, so
        that on every backend they are the same. A loop's body counts once however often it runs:
        where there is one, None.
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
        """Arguments, results and temporaries of the largest step, what it reads included; None
        where unknown.
        """
        peaks: list[int] = []
        for step in self._cycle:
            memory = step.memory_analysis()
            if memory is None:
                return None
            held = (
                memory.argument_size_in_bytes
                + memory.output_size_in_bytes
                - memory.alias_size_in_bytes
            )
            peaks.append(int(held + memory.temp_size_in_bytes))
        return max(peaks)


def _count_flops(step: Any, state: Any, source: Any) -> float | None:
    # A function that jit has not traced yet: it would not trace `step` again.
    def again(state: Any, source: Any) -> Any:
        return step.__wrapped__(state, source)

    with cpu.tuning(False):
        counted = (jax.jit(again).lower(state, source).cost_analysis() or {}).get("flops")
    return None if counted is None else float(counted)


def _matmul_flops_per_s(dtype: str) -> float:
    """Return the best rate of five products of two square matrices on one device, large enough to
    fill it.
    """
    size = 1536 if jax.default_backend() == "cpu" else 8192
    matrix = jnp.full((size, size), 1e-3, dtype)
    product = jax.jit(lambda a, b: a @ b)
    jax.block_until_ready(product(matrix, matrix))
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(product(matrix, matrix))
        best = min(best, time.perf_counter() - start)
    return float(2 * size**3 / best)
