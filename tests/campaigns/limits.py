"""Time and memory at sizes that no other test reaches.

``python -m tests.campaigns.limits`` measures and prints the rows of docs/results.md;
``--share 0.01`` measures at a hundredth of each size, and a name or more measures those alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tests.campaigns.lab import REPOSITORY, Lab
from tests.campaigns.runs import COMMON
from tests.commands import Completed

MIB = 1 << 20
SMALL = ("model.name=tests.small:small", "mesh.devices=1", "data.batch_size=64", "gr.strategy=none")


@dataclass(frozen=True)
class Measured:
    """A row."""

    limit: str
    n: int
    """Lines, images, classes, runs or steps."""
    what: str
    """The command, without its folders."""
    seconds: float
    cpu_s: float
    peak_mib: int
    """Of the process, whose imports alone take about 170."""


def measure(lab: Lab, limit: str, n: int, what: str, *arguments: object, cwd: Path) -> Measured:
    """Run a command and return what it took.

    Raises:
        AssertionError: It fails.
    """
    start = time.monotonic()
    done = lab.gnp(*arguments, cwd=cwd, timeout=3600)
    assert done.returncode == 0, done.stderr[-2000:]
    return _row(limit, n, what, time.monotonic() - start, done)


def _row(limit: str, n: int, what: str, seconds: float, done: Completed) -> Measured:
    return Measured(limit, n, what, round(seconds, 1), round(done.cpu_s, 1), done.peak_bytes // MIB)


def _settings(*more: str) -> list[str]:
    return [part for text in (*SMALL, *more) for part in ("--set", text)]


def _trained(lab: Lab, run: Path) -> Path:
    """Train a few steps into `run`."""
    sets = [part for text in COMMON for part in ("--set", text)]
    done = lab.gnp("train", "-q", *sets, "--max-steps", 3, "--run-dir", run)
    assert done.returncode == 0, done.stderr
    return run


def log(lab: Lab, folder: Path, n: int) -> Iterator[Measured]:
    """A log of n lines."""
    run = _trained(lab, folder / "run")
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    record = next(line for line in lines if line["split"] == "train")
    kept = ("epoch", "split", "loss", "error_rate", "grad_norm", "lr", "elapsed_s")
    few = {key: record[key] for key in kept}
    last = max(line["step"] for line in lines)
    with path.open("w") as file:
        for number in range(n):
            # Records past the last save would be dropped by resume.
            step = min(last, 1 + number * last // n)
            file.write(json.dumps({"step": step, **few, "loss": 2 + number / n}) + "\n")
    shutil.copytree(run, folder / "other")
    yield measure(lab, "lines of a log", n, "gnp report", "report", "run", cwd=folder)
    yield measure(lab, "lines of a log", n, "gnp plot", "plot", "run", cwd=folder)
    yield measure(
        lab, "lines of a log", n, "gnp compare, with a copy", "compare", "run", "other", cwd=folder
    )
    yield measure(
        lab,
        "lines of a log",
        n,
        "gnp resume, one step",
        "resume",
        "-q",
        "run",
        "--max-steps",
        4,
        cwd=folder,
    )


def _images(folder: Path, classes: int, images: int, held_out: int) -> None:
    """Write a folder of images of 8 x 8 pixels, of which no two are the same."""
    numbers = np.random.default_rng(0)
    for split, count in (("train", images), ("test", held_out)):
        pixels = numbers.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        for index in range(count):
            place = folder / split / f"c{index % classes:05}"
            if index < classes:
                place.mkdir(parents=True)
            Image.fromarray(pixels[index]).save(place / f"{index}.png", compress_level=0)


def images(lab: Lab, folder: Path, n: int) -> Iterator[Measured]:
    """A folder of n images: listed, streamed, and read into memory."""
    _images(folder / "images", 10, n, 100)
    yield from _folder_runs(lab, folder, "images of a folder", n)


def classes(lab: Lab, folder: Path, n: int) -> Iterator[Measured]:
    """A folder of n classes of two images."""
    _images(folder / "images", n, 2 * n, n)
    yield from _folder_runs(lab, folder, "classes of a folder", n)


def _folder_runs(lab: Lab, folder: Path, limit: str, n: int) -> Iterator[Measured]:
    name = f"folder:{folder / 'images'}"
    common = ("train", "-q", "--dataset", name, "--max-steps", 2)
    yield measure(
        lab, limit, n, "gnp train --dry-run", *common[:4], "--dry-run", *_settings(), cwd=folder
    )
    streamed = _settings("data.stream=true", "data.image_size=16", "data.workers=0")
    yield measure(
        lab, limit, n, "gnp train, streamed", *common, *streamed, "--run-dir", "a", cwd=folder
    )
    yield measure(
        lab, limit, n, "gnp resume, streamed", "resume", "-q", "a", "--max-steps", 3, cwd=folder
    )
    memory = _settings("data.stream=false")
    yield measure(
        lab, limit, n, "gnp train, in memory", *common, *memory, "--run-dir", "b", cwd=folder
    )
    yield measure(
        lab, limit, n, "gnp train, from the cache", *common, *memory, "--run-dir", "c", cwd=folder
    )


def runs(lab: Lab, folder: Path, n: int) -> Iterator[Measured]:
    """The runs of n seeds, side by side."""
    run = _trained(lab, folder / "run0")
    shutil.rmtree(run / "checkpoints")
    config = (run / "config.yaml").read_text()
    for number in range(1, n):
        copy = shutil.copytree(run, folder / f"run{number}")
        (copy / "config.yaml").write_text(config.replace("seed: 0", f"seed: {number}"))
    names = [f"run{number}" for number in range(n)]
    yield measure(lab, "runs", n, "gnp compare", "compare", *names, cwd=folder)
    yield measure(lab, "runs", n, "gnp plot", "plot", *names, cwd=folder)


def steps(lab: Lab, folder: Path, n: int) -> Iterator[Measured]:
    """A run of n steps, which evaluates and saves every epoch: its memory on the way."""
    start = time.monotonic()
    command = [sys.executable, "-m", "tests.campaigns.steps", str(n), str(folder / "run")]
    done = subprocess.run(command, env=lab.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    seconds = round(time.monotonic() - start, 1)
    for line in done.stdout.splitlines():
        step, resident = map(int, line.split())
        yield Measured("steps", n, f"resident at step {step}", seconds, 0.0, resident // MIB)


LIMITS: dict[str, tuple[Callable[[Lab, Path, int], Iterator[Measured]], int]] = {
    "log": (log, 1_000_000),
    "images": (images, 200_000),
    "classes": (classes, 5_000),
    "runs": (runs, 500),
    "steps": (steps, 10_000),
}
"""What is measured, and at which size."""


@contextlib.contextmanager
def _own_cache(folder: Path) -> Iterator[None]:
    """Keep the caches of images apart from the user's."""
    old = os.environ.get("GNP_CACHE_DIR")
    os.environ["GNP_CACHE_DIR"] = str(folder / "cache")
    yield
    if old is not None:
        os.environ["GNP_CACHE_DIR"] = old


def main(arguments: list[str]) -> None:
    """Measure, and print a row of a table for each measurement."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.limits")
    parser.add_argument("names", nargs="*", help=f"{', '.join(LIMITS)}; all without one")
    parser.add_argument("--share", type=float, default=1.0, help="share of each size")
    parser.add_argument("--json", type=Path, help="gets a line of JSON for each measurement")
    given = parser.parse_args(arguments)
    print(f"{platform.platform()}, {os.cpu_count()} cores, {REPOSITORY.name}")
    print("| size | command | s | processor s | peak MiB |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name, _own_cache(Path(name)), Lab(Path(name)) as lab:
        for limit in given.names or LIMITS:
            measured, size = LIMITS[limit]
            folder = lab.new_folder()
            for row in measured(lab, folder, max(2, int(size * given.share))):
                cells = (f"{row.n:,} {row.limit}", row.what, row.seconds, row.cpu_s, row.peak_mib)
                print(f"| {' | '.join(map(str, cells))} |", flush=True)
                if given.json:
                    with given.json.open("a") as file:
                        file.write(json.dumps(asdict(row)) + "\n")
            shutil.rmtree(folder)
            print(f"load {os.getloadavg()[0]:.1f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
