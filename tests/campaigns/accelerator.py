"""What a real accelerator shows: ``python -m tests.campaigns.accelerator DIR [--minutes 12]``.

It runs the commands of `MEASUREMENTS` one after another, the telling ones first, as far as the time
goes. Each leaves its JSON document and what it said in DIR. A second call in the same folder goes
on where the first one ended. ``report.md`` has the figures with their commands.

Nothing is downloaded: steps are timed on random images, and runs train on the bundled digits.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.commands import PROGRAM, REPOSITORY

BATCH = 256
MODELS = {
    "vit-b-cifar10": 0.50,
    "vit-s-cifar10": 0.35,
    "vit-ti-cifar10": 0.20,
    "wrn-28-10-cifar10": None,
}
"""Presets, and the share of the measured peak of matrix products that a plain step is to reach in
bfloat16; None asks for none."""
GNP_OVER_PLAIN = 2.03
"""What a GNP step may cost at most, in plain ones."""
DETERMINISTIC = {"XLA_FLAGS": "--xla_gpu_deterministic_ops=true"}
"""What makes a GPU give the same bits again. TPUs and CPUs need nothing."""


@dataclass(frozen=True)
class Measurement:
    """A command."""

    name: str
    """Of its files."""
    arguments: tuple[str, ...]
    """Of ``gnp``; ``DIR`` stands for the folder."""
    variables: Mapping[str, str] | None = None
    """Of its environment, beside those that there are."""

    @property
    def command(self) -> str:
        """As a person types it."""
        given = [f"{name}={value}" for name, value in (self.variables or {}).items()]
        return " ".join([*given, "gnp", *self.arguments])


def _bench(preset: str, dtype: str) -> Measurement:
    sets = ("--set", f"data.batch_size={BATCH}", "--set", f"train.dtype={dtype}")
    rounds = ("--rounds", "7", "--steps", "20", "--json")
    return Measurement(f"bench-{preset}-{dtype}", ("bench", "--preset", preset, *sets, *rounds))


def _peer(preset: str) -> Measurement:
    sets = ("--set", f"data.batch_size={BATCH}")
    return Measurement(
        f"peer-{preset}", ("bench", "peer", "--preset", preset, *sets, "--compile", "--json")
    )


def _run(name: str, *arguments: str, steps: int) -> Measurement:
    return Measurement(name, (*arguments, "--max-steps", str(steps), "--json"), DETERMINISTIC)


MEASUREMENTS = (
    Measurement("doctor", ("doctor", "--json")),
    *(_bench(preset, "bfloat16") for preset in MODELS),
    _run("whole", "train", "--run-dir", "DIR/whole", steps=60),
    _run("first-part", "train", "--run-dir", "DIR/parts", steps=33),
    _run("second-part", "resume", "DIR/parts", steps=60),
    *(_bench(preset, "float32") for preset in MODELS),
    _peer("vit-ti-cifar10"),
    _peer("vit-s-cifar10"),
)


def main(arguments: Sequence[str]) -> int:
    """Take the measurements, as far as the time goes, and write the report.

    Returns:
        1 where a command failed, or a resumed run differs from the undisturbed one.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.accelerator")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=12, help="for all commands together")
    given = parser.parse_args(arguments)
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * given.minutes
    for measurement in MEASUREMENTS:
        if _status(folder, measurement) != 0:
            _take(folder, measurement, end)
        (folder / "report.md").write_text(report(folder))
    print(report(folder))
    has_failed = any(_status(folder, one) not in (0, None) for one in MEASUREMENTS)
    return int(has_failed or resumes_exactly(folder) is False)


def _take(folder: Path, measurement: Measurement, end: float) -> None:
    """Run a command, where time is left for it."""
    left = end - time.monotonic()
    if left <= 0:
        return
    print(f"{left / 60:4.1f} min left  {measurement.command}", flush=True)
    arguments = [text.replace("DIR", str(folder)) for text in measurement.arguments]
    files = {kind: (folder / f"{measurement.name}.{kind}").open("wb") for kind in ("json", "err")}
    environment = {**os.environ, "PYTHONPATH": _search_path(), **(measurement.variables or {})}
    start = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=files["json"],
            stderr=files["err"],
            env=environment,
            timeout=left,
        )
        status = done.returncode
    except subprocess.TimeoutExpired:
        return  # it is taken in the next call
    finally:
        for file in files.values():
            file.close()
    taken = {"status": status, "seconds": time.monotonic() - start}
    (folder / f"{measurement.name}.done").write_text(json.dumps(taken))


def _search_path() -> str:
    return os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))


def _status(folder: Path, measurement: Measurement) -> int | None:
    """Return the exit status of a command; None where it was not run to its end."""
    path = folder / f"{measurement.name}.done"
    return int(json.loads(path.read_text())["status"]) if path.exists() else None


def _document(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text())


def report(folder: Path) -> str:
    """Return the figures that there are, in Markdown."""
    lines = ["| command | GNP / plain | share of the peak, plain | images/s plain, GNP |"]
    lines.append("|---|---|---|---|")
    notes: list[str] = []
    for measurement in MEASUREMENTS:
        status = _status(folder, measurement)
        if status is None:
            notes.append(f"not reached: `{measurement.command}`")
        elif status != 0:
            said = (folder / f"{measurement.name}.err").read_text().strip()
            notes.append(f"failed with {status}: `{measurement.command}`\n\n{said[-2000:]}\n")
        elif measurement.name.startswith("bench-"):
            lines.append(_row(measurement, _document(folder, measurement.name)))
    resumed = {None: "not compared", True: "the same bits", False: "DIFFERENT bits"}
    notes.append(f"a run that was stopped and resumed: {resumed[resumes_exactly(folder)]}")
    return "\n".join([*lines, "", *(f"- {note}" for note in notes), ""])


def _row(measurement: Measurement, found: Mapping[str, Any]) -> str:
    plain, gnp = found["measurements"]
    share = plain["share_of_matmul_peak"]
    preset = measurement.name.removeprefix("bench-").removesuffix(f"-{found['dtype']}")
    aim = MODELS[preset] if found["dtype"] == "bfloat16" else None
    cells = [
        f"`{measurement.command}`",
        f"{gnp['gnp_over_plain']:.3f} (aim {GNP_OVER_PLAIN})",
        ("-" if share is None else f"{share:.0%}") + (f" (aim {aim:.0%})" if aim else ""),
        f"{plain['images_per_s']:,.0f}, {gnp['images_per_s']:,.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def resumes_exactly(folder: Path) -> bool | None:
    """Return whether the digests of the last saves agree; None where there are not two."""
    found = []
    for run in ("whole", "parts"):
        manifest = folder / run / "checkpoints" / "60" / "manifest" / "manifest"
        if not manifest.exists():
            return None
        found.append(json.loads(manifest.read_bytes().partition(b"\n")[2])["digests"])
    return bool(found[0] == found[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
