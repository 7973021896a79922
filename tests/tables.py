"""A small table that several test files write and load."""

from __future__ import annotations

from pathlib import Path

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


def write(tmp_path: Path, text: str = SMALL) -> Table:
    path = tmp_path / "small.yaml"
    path.write_text(text)
    return load_table(str(path))
