"""Small tables that several test files write, load and run."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gnpcli.runs.log import read_metrics
from gnpcli.tables.spec import Changes, Table, load_table

NO_CHANGES = Changes()
SMALL = """\
title: Small
purpose: A table for the tests
preset: vit-nano-digits
seeds: [0, 1, 2]
baseline: adam
rows:
  nano: {label: ViT-nano}
columns:
  adam:
    label: Adam
    set:
      gr: {strategy: none}
  zero:
    set:
      gr: {strategy: zero-warmup, r: 0.1}
variants:
  paper: {about: the formula}
  unit: {about: the code, set: {gr: {mix: unit}}}
published:
  source: a paper
  variant: unit
  values:
    nano: {adam: 4.0, zero: 3.0}
  unknown: [the number of devices]
notes: [a note]
"""


TINY = """\
title: Tiny
purpose: Two columns of a few steps
preset: vit-nano-digits
set:
  data: {batch_size: 256}
  optimizer: {lr: 0.002}
  schedule: {warmup_epochs: 1}
  train: {epochs: 2, log_every_steps: 1}
  checkpoint: {every_steps: 1, keep: 1, keep_best: false}
  mesh: {devices: 1}
seeds: [0, 1]
baseline: adam
rows:
  nano: {label: ViT-nano}
columns:
  adam:
    label: Adam
    set:
      gr: {strategy: none}
  zero:
    label: zero-warmup
    set:
      gr: {strategy: zero-warmup, r: 0.05}
"""
"""5 steps an epoch, 10 in all."""

CLOCK = ("elapsed_s", "images_per_s")


def command(*arguments: object) -> list[str]:
    return [
        sys.executable,
        "-c",
        "from gnpcli.cli import main; main()",
        "reproduce-table",
        *map(str, arguments),
    ]


def records(out: Path) -> dict[str, list[dict[str, Any]]]:
    """What every cell has logged, but for wall-clock fields, which no run repeats."""
    return {
        str(path.parent.relative_to(out)): [
            {key: value for key, value in record.items() if key not in CLOCK}
            for record in read_metrics(path)
        ]
        for path in sorted(out.glob("cells/*/*/*/metrics.jsonl"))
    }


def wait_for(
    condition: Callable[[], bool], process: subprocess.Popen[Any], timeout_s: float = 240
) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        assert process.poll() is None, "it ended before"
        time.sleep(0.02)


def has_step(folder: Path, step: int) -> bool:
    return any(record["step"] >= step for record in read_metrics(folder / "metrics.jsonl"))


def children(process: subprocess.Popen[Any]) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout
    return [int(line) for line in found.split()]


def write(tmp_path: Path, text: str = SMALL) -> Table:
    path = tmp_path / "small.yaml"
    path.write_text(text)
    return load_table(str(path))
