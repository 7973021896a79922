"""How time and memory grow with images, classes, lines of a log and runs.

Each size is made up in a folder of its own, and measured in a process of its own. Image files are
empty: what is measured reads names alone, or the start of a file.
"""

from __future__ import annotations

import contextlib
import json
import math
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gnpcli.bench.timing import Notify
from gnpcli.data.feeds.chunks import ShuffledOrder
from gnpcli.data.fingerprint import fingerprint_files
from gnpcli.data.images.layout import Layout, scan
from gnpcli.devices.process import describe_environment
from gnpcli.errors import ConfigError, GnpError, suggest
from gnpcli.recipes.presets import resolve
from gnpcli.report.plot import plot
from gnpcli.report.run_page import write_report
from gnpcli.runs.compare import compare
from gnpcli.runs.folder import RunFolder
from gnpcli.runs.log import METRICS_FILE, to_lines

LEAST_S, LEAST_BYTES = 0.05, 4 << 20
"""Growth over the smallest size that is more than noise."""
LINEAR = 1.15
"""Exponents up to here are linear, as far as a measurement tells: ``n log n`` has about 1.1."""
_IMAGES, _CLASSES = (10_000, 100_000, 1_000_000), (10, 500, 5_000)
_LINES, _RUNS = (1_000, 10_000, 100_000, 1_000_000), (2, 50, 500)
_BATCH = 128


def _images(folder: Path, count: int) -> None:
    _files(folder, count, classes=10)


def _classes(folder: Path, count: int) -> None:
    _files(folder, 2 * count, classes=count)


def _files(folder: Path, count: int, classes: int) -> None:
    """Write empty images, the classes side by side."""
    for label in range(classes):
        place = folder / "train" / f"c{label:05}"
        place.mkdir(parents=True)
        for index in range(label, count, classes):
            (place / f"{index}.png").touch()


def _lines(folder: Path, count: int) -> None:
    """Write two runs with so many records each."""
    for number in range(2):
        _write_run(folder / f"run{number}", number, count)


def _runs(folder: Path, count: int) -> None:
    """Write the runs of so many seeds."""
    for number in range(count):
        _write_run(folder / f"run{number}", number, 20)


def _write_run(path: Path, seed: int, lines: int) -> None:
    RunFolder(path).create(resolve(None, [f"train.seed={seed}", "mesh.devices=1"]))
    shape = {"split": "train", "error_rate": 0.5, "grad_norm": 1.0, "lr": 1e-3}
    records = (
        {"step": step, "epoch": step / 44, **shape, "loss": 2 + step / lines, "elapsed_s": step / 9}
        for step in range(1, lines + 1)
    )
    (path / METRICS_FILE).write_text(to_lines(records), encoding="utf-8")


def _scan(folder: Path) -> Layout:
    return scan(str(folder), validation_fraction=0.1)


def _fingerprint(folder: Path) -> None:
    found = _scan(folder)
    counts = found.train.class_counts
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    fingerprint_files(found.train.paths, labels, len(counts))


def _shuffle(folder: Path) -> None:
    """Take the batches of an epoch."""
    count = int((folder / "count").read_text())
    order = ShuffledOrder(count, _BATCH, (0,))
    for step in range(count // _BATCH):
        order(step)


def _note(folder: Path, count: int) -> None:
    (folder / "count").write_text(str(count))


def _report(folder: Path) -> None:
    write_report(folder / "run0", None)


def _plot(folder: Path) -> None:
    runs = sorted(folder.glob("run*"))
    out = folder / "plot.png"
    plot(runs, out, metrics=(), axis="step", spread="std", columns=3, warn=_nothing)


def _compare(folder: Path) -> None:
    compare(sorted(folder.glob("run*")), _nothing)


def _nothing(text: str) -> None:
    """Be told."""


@dataclass(frozen=True)
class Kind:
    """Something that is done at several sizes."""

    of: str
    """What there is so many of."""
    sizes: tuple[int, ...]
    prepare: Callable[[Path, int], None]
    """Makes so many of it, in an empty folder."""
    work: Callable[[Path], object]


KINDS: dict[str, Kind] = {
    "listing": Kind("images", _IMAGES, _images, _scan),
    "fingerprint": Kind("images", _IMAGES, _images, _fingerprint),
    "shuffling": Kind("images", _IMAGES, _note, _shuffle),
    "classes": Kind("classes", _CLASSES, _classes, _fingerprint),
    "report": Kind("lines", _LINES, _lines, _report),
    "plot": Kind("lines", _LINES, _lines, _plot),
    "compare": Kind("lines", _LINES, _lines, _compare),
    "plot-runs": Kind("runs", _RUNS, _runs, _plot),
    "compare-runs": Kind("runs", _RUNS, _runs, _compare),
}
"""What `bench_scale` can measure."""


@dataclass(frozen=True)
class Cost:
    """What a size took."""

    size: int
    seconds: float
    cpu_s: float
    """Of all threads."""
    peak_bytes: int
    """Of the process, its imports included."""


def bench_scale(kinds: Sequence[str], most: int | None, notify: Notify) -> dict[str, Any]:
    """Measure kinds at each of their sizes, one after another.

    Args:
        kinds: Names out of `KINDS`.
        most: The largest size; None takes all.
        notify: Told what is being done.

    Returns:
        JSON-able: `environment`, and `measurements`, one for each kind, with its `name`, what it is
        `of`, its `costs`, and the exponents `time_exponent` and `memory_exponent` of `exponent`.

    Raises:
        ConfigError: An unknown kind, or no size is that small.
        GnpError: A measurement failed.
    """
    for name in kinds:
        if name not in KINDS:
            raise ConfigError(
                f"unknown kind '{name}'{suggest(name, KINDS)} (kinds: {', '.join(KINDS)})"
            )
    return {
        "measurements": [_measure(name, most, notify) for name in kinds],
        "environment": describe_environment(),
    }


def _measure(name: str, most: int | None, notify: Notify) -> dict[str, Any]:
    kind = KINDS[name]
    sizes = [size for size in kind.sizes if most is None or size <= most]
    if not sizes:
        raise ConfigError(f"the smallest size of {name} is {min(kind.sizes):,} {kind.of}")
    costs = []
    for size in sizes:
        notify(f"{name}: {size:,} {kind.of}")
        costs.append(_cost(name, size))
    return {
        "name": name,
        "of": kind.of,
        "costs": [asdict(cost) for cost in costs],
        "time_exponent": exponent({cost.size: cost.cpu_s for cost in costs}, LEAST_S),
        "memory_exponent": exponent({cost.size: cost.peak_bytes for cost in costs}, LEAST_BYTES),
    }


def exponent(costs: Mapping[int, float], least: float) -> float | None:
    """Return the p of ``cost = a + b size^p``, fitted by least squares of the logarithms.

    What the smallest size costs stands for a, and is taken off. A linear cost has p = 1 exactly.

    Args:
        costs: By size.
        least: Growth that is more than noise; sizes that have grown by less are left out.

    Returns:
        p; None where fewer than two sizes are left.
    """
    smallest = min(costs)
    points = [
        (math.log(size - smallest), math.log(cost - costs[smallest]))
        for size, cost in costs.items()
        if size > smallest and cost - costs[smallest] >= least
    ]
    if len(points) < 2:
        return None
    sizes, grown = np.transpose(points)
    slope, _ = np.polyfit(sizes, grown, 1)
    return float(slope)


def _cost(name: str, size: int) -> Cost:
    """Measure a size in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "made"
        folder.mkdir()
        KINDS[name].prepare(folder, size)
        done = subprocess.run(
            [sys.executable, "-m", "gnpcli.bench.scale", name, str(size), str(folder)],
            capture_output=True,
            text=True,
        )
        shutil.rmtree(folder)
    if done.returncode:
        problem = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise GnpError(f"{name} of {size:,} {KINDS[name].of} failed: {problem}")
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Do a kind of work once, and print what it took as JSON."""
    name, size, folder = sys.argv[1:]
    start, cpu_start = time.perf_counter(), time.process_time()
    KINDS[name].work(Path(folder))
    cost = Cost(
        size=int(size),
        seconds=time.perf_counter() - start,
        cpu_s=time.process_time() - cpu_start,
        peak_bytes=_peak_bytes(),
    )
    print(json.dumps(asdict(cost)))


def _peak_bytes() -> int:
    """Return the most memory that this process has held."""
    with contextlib.suppress(OSError):  # what the system counts begins with the parent's on Linux
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # in bytes there, elsewhere in KiB


if __name__ == "__main__":
    main()
