"""What a contributor adds, from outside the package: one file and one registry line each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import pytest

from gnpcli.config.optimizers import OPTIMIZERS, OptimizerConfig
from gnpcli.config.resolved import Resolved
from gnpcli.config.schedules import SCHEDULES, Moment, ScheduleConfig
from gnpcli.config.strategies import STRATEGIES, Strategy
from gnpcli.data import registry as data_sources
from gnpcli.data.registry import SourceEntry
from gnpcli.engine.train import train
from gnpcli.recipes.presets import resolve
from gnpcli.recipes.wording import objective_in_words
from gnpcli.runs.log import read_metrics

if TYPE_CHECKING:
    import optax

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


def logged(config: Resolved, run_dir: Path) -> list[dict[str, Any]]:
    """Train four steps, and return what the run logged of each."""
    with jax.numpy_dtype_promotion("standard"):  # optax mixes types
        train(config, run_dir, max_steps=4, quiet=True)
    return [record for record in read_metrics(run_dir / "metrics.jsonl") if "lr" in record]


ON_DIGITS = [
    "model.name=tests.small:small",
    "data.batch_size=256",
    "train.log_every_steps=1",
    "mesh.devices=1",
]
"""Five steps an epoch."""


def test_a_strategy_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = Strategy(
        "half-warmup",
        "alpha rises from half",
        warmup=lambda w, r, alpha: (r, alpha * (0.5 + 0.5 * w)),
        words="alpha rising from half",
    )
    monkeypatch.setitem(STRATEGIES, strategy.name, strategy)
    regularized = ["gr.strategy=half-warmup", "gr.r=0.1", "gr.alpha=0.8", "gr.warmup_epochs=0.4"]
    config = resolve(None, [*ON_DIGITS, *regularized])
    assert objective_in_words(config).endswith(", alpha rising from half for the first 0.4 epochs")
    records = logged(config, tmp_path / "run")
    np.testing.assert_allclose([record["alpha"] for record in records], [0.4, 0.6, 0.8, 0.8])
    np.testing.assert_allclose([record["r"] for record in records], 0.1)


class SignConfig(OptimizerConfig):
    """The sign of the gradient."""

    scale: float = 1.0
    """Multiplies the sign."""

    def transform(self) -> optax.GradientTransformation:
        import optax

        return optax.chain(optax.scale_by_sign(), optax.scale(self.scale))


def test_an_optimizer_is_one_class_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OPTIMIZERS, "sign", SignConfig)
    chosen = ["optimizer.name=sign", "optimizer.scale=0.5", "optimizer.lr=0.01"]
    plain = ["optimizer.weight_decay=0", "gr.strategy=none", "schedule.warmup_epochs=0"]
    config = resolve(None, [*ON_DIGITS, *chosen, *plain, "schedule.name=constant"])
    records = logged(config, tmp_path / "run")
    norms = [record["update_norm"] for record in records]
    parameters = 64 * 32 + 2 * 32 + 32 * 10 + 10  # each of them moves by 0.01 * 0.5
    np.testing.assert_allclose(norms, 0.005 * parameters**0.5, rtol=0.02)


class InverseConfig(ScheduleConfig):
    """One over the number of the step."""

    power: float = 1.0
    """Of the number of the step."""

    def decay(self, at: Moment) -> jax.Array:
        return (1 + at.step) ** -self.power


def test_a_schedule_is_one_class_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SCHEDULES, "inverse", InverseConfig)
    chosen = ["schedule.name=inverse", "schedule.power=2", "schedule.warmup_epochs=0"]
    config = resolve(None, [*ON_DIGITS, *chosen, "optimizer.lr=0.1", "gr.strategy=none"])
    rates = [record["lr"] for record in logged(config, tmp_path / "run")]
    np.testing.assert_allclose(rates, [0.1, 0.1 / 4, 0.1 / 9, 0.1 / 16], rtol=1e-6)
