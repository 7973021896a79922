"""What a contributor adds, from outside the package: one file and one registry line each."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest

from gnpcli.data import registry as data_sources
from gnpcli.data.registry import SourceEntry
from gnpcli.engine.train import train
from gnpcli.recipes.presets import resolve

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"  # raised inside Orbax, about itself
)

TWO_STEPS = [
    "model.name=tests.small:small",
    "data.batch_size=16",
    "train.epochs=1",
    "schedule.warmup_epochs=0",
    "gr.strategy=constant",
    "mesh.devices=1",
]
"""Settings of a run of two steps on 32 images."""


def test_a_data_source_is_one_file_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = SourceEntry("tests.stripes", "stripes along rows or columns", by_hand="it is drawn")
    monkeypatch.setitem(data_sources.SOURCES, "stripes", entry)
    config = resolve(None, [*TWO_STEPS, "data.name=stripes"])
    with jax.numpy_dtype_promotion("standard"):  # optax mixes types
        summary = train(config, tmp_path / "run", quiet=True)
    assert summary["status"] == "finished"
    assert summary["step"] == summary["total_steps"] == 2
    assert summary["test"]["num_examples"] == 8
    listed = {row.name: row for row in data_sources.list_sources(None)}
    assert listed["stripes"].splits == {"train": 32, "test": 8}
