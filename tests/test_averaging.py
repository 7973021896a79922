"""Averaged weights and the BatchNorm statistics that fit them, against NumPy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from gnpcli.devices.mesh import make_mesh
from gnpcli.engine.evaluator import Recalibration
from gnpcli.keys import augment_key, run_keys
from gnpcli.models.base import from_linen
from gnpcli.models.layers.norm import BatchNorm
from gnpcli.recipes.presets import resolve
from gnpcli.runs.log import read_metrics
from gnpcli.step.averaging import ema_decay, ema_update
from tests.conftest import Gnp, fails
from tests.feeds import GivenFeed


@pytest.mark.parametrize(
    ("decay", "step", "expected"),
    [(0.99, 0, 0.1), (0.99, 8, 0.5), (0.99, 90, 0.91), (0.99, 10**6, 0.99), (0.05, 0, 0.05)],
)
def test_the_decay_rises_to_its_limit(decay, step, expected):
    np.testing.assert_allclose(ema_decay(decay, step), expected, rtol=1e-6)
    np.testing.assert_allclose(ema_decay(decay, jnp.int32(step)), expected, rtol=1e-6)


def test_the_average_is_the_recursion():
    rng = np.random.default_rng(0)
    points = [{"w": rng.normal(size=(3, 4)), "b": rng.normal(size=4)} for _ in range(30)]
    expected: Any = {name: leaf.copy() for name, leaf in points[0].items()}
    average: Any = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), points[0])
    for step, point in enumerate(points[1:]):
        d = min(0.7, (1 + step) / (10 + step))
        expected = {name: d * expected[name] + (1 - d) * point[name] for name in point}
        leaves = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), point)
        average = jax.jit(ema_update)(average, leaves, ema_decay(0.7, step))
    for name in expected:
        np.testing.assert_allclose(average[name], expected[name], rtol=1e-5, atol=1e-6)


class Normed(nn.Module):
    """Two normalisations with different momenta, of the pixels and of a product of them, and a
    constant.
    """

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x = BatchNorm(momentum=0.9, name="first")(images, train)
        x = x.reshape(x.shape[0], -1)
        x = jnp.tanh(x @ self.param("w", nn.initializers.normal(0.5), (x.shape[1], 5), jnp.float32))
        x = BatchNorm(momentum=0.99, name="second")(x, train)
        self.variable("batch_stats", "constant", lambda: jnp.full(2, 7.0))
        return x


class Feed(GivenFeed):
    """Three steps an epoch; a batch is noise that its key and its place in the epoch decide."""

    steps_per_epoch = 3

    def source(self, step: int) -> dict[str, jax.Array]:
        return {"scale": jnp.float32(1 + step)}

    def batch(
        self, source: Any, step_in_epoch: jax.Array | int, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        noise = jax.random.normal(key, (16, 3, 3, 2)) * source["scale"]
        return 50 + noise + jnp.float32(step_in_epoch), jnp.zeros(16, jnp.int32)


@pytest.mark.parametrize("num_batches", [1, 4])
def test_recalibrated_statistics_are_means_over_batches_whatever_the_momentum(num_batches):
    model, feed = from_linen(Normed()), Feed()
    params, old = model.init(jax.random.key(0), (3, 3, 2))
    mesh = make_mesh(resolve(None, ["mesh.devices=1"]))
    recalibration = Recalibration(model, feed, mesh, seed=5, num_batches=num_batches)
    new = recalibration(params, old)["batch_stats"]

    firsts, seconds = [], []
    for step in range(num_batches):
        key = augment_key(run_keys(5).steps, step)
        images, _ = feed.batch(feed.source(step), jnp.int32(step % 3), key)
        pixels = np.asarray(images, np.float64).reshape(-1, 2)
        firsts.append((pixels.mean(0), pixels.var(0)))
        x = (np.asarray(images, np.float64) - pixels.mean(0)) / np.sqrt(pixels.var(0) + 1e-5)
        x = np.tanh(x.reshape(16, -1) @ np.asarray(params["w"], np.float64))
        seconds.append((x.mean(0), x.var(0)))
    for name, moments in (("first", firsts), ("second", seconds)):
        mean, var = (np.mean([batch[kind] for batch in moments], axis=0) for kind in (0, 1))
        np.testing.assert_allclose(new[name]["mean"], mean, rtol=1e-4, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(
            new[name]["var"], var, rtol=2e-3, err_msg=name
        )  # of pixels around 50, in one pass
    np.testing.assert_array_equal(new["constant"], [7, 7])


def test_a_model_without_statistics_is_not_read_a_batch_for():
    mesh = make_mesh(resolve(None, ["mesh.devices=1"]))
    assert (
        Recalibration(from_linen(Normed()), Feed(), mesh, seed=0, num_batches=10**9)({}, {}) == {}
    )


SHORT = [
    "--epochs",
    "1",
    "--set",
    "data.batch_size=256",
    "--set",
    "schedule.warmup_epochs=0",
    "--set",
    "mesh.devices=1",
    "--set",
    "train.ema_decay=0.9",
    "--gr",
    "none",
]


def evaluated(gnp: Gnp, *options: object) -> dict[str, Any]:
    done = gnp("eval", "run", "--json", *options)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.slow
def test_averaged_weights_are_saved_and_evaluated(gnp, tmp_path: Path):
    done = gnp("train", *SHORT, "--run-dir", "run")
    assert done.returncode == 0, done.stderr
    record = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    raw, averaged = evaluated(gnp), evaluated(gnp, "--weights", "ema")
    assert (record["weights"], raw["weights"], averaged["weights"]) == ("raw", "raw", "ema")
    assert raw["loss"] == record["loss"]
    assert averaged["loss"] != raw["loss"]
    fails(
        gnp("eval", "run", "--recalibrate", "2"),
        "vit-nano has no BatchNorm statistics to recalibrate",
    )


@pytest.mark.slow
def test_a_run_without_an_average_says_so(gnp):
    plain = [*SHORT[:-4], "--gr", "none", "--set", "model.name=tests.small:small"]
    assert gnp("train", *plain, "--max-steps", "1", "--run-dir", "run").returncode == 0
    fails(
        gnp("eval", "run", "--weights", "ema"),
        "step 1",
        "has no averaged weights",
        "train.ema_decay=null",
    )
    done = gnp("eval", "run", "--weights", "mean")
    assert done.returncode == 2
    assert "is not one of 'raw', 'ema'" in done.stderr
    fails(
        gnp("train", *plain, "--set", "train.evaluate_weights=ema", "--dry-run"),
        "train.evaluate_weights: ema needs an average",
        "set train.ema_decay",
    )


@pytest.mark.slow
def test_a_run_that_evaluates_its_average_recalibrates_it(gnp, tmp_path: Path):
    done = gnp(
        "train",
        *SHORT,
        "--set",
        "model.name=tests.small:small",
        "--set",
        "train.evaluate_weights=ema",
        "--set",
        "train.recalibrate_batches=3",
        "--run-dir",
        "run",
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    record = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    own, same, stale, raw, fresh = (
        evaluated(gnp, *options)
        for options in (
            (),
            ("--weights", "ema", "--recalibrate", 3),
            ("--recalibrate", 0),
            ("--weights", "raw"),
            ("--weights", "raw", "--recalibrate", 3),
        )
    )
    assert record["weights"] == own["weights"] == "ema"
    np.testing.assert_allclose([own["loss"], same["loss"]], record["loss"], rtol=1e-5)
    losses = [own["loss"], stale["loss"], raw["loss"], fresh["loss"]]
    assert len({round(loss, 4) for loss in losses}) == 4, losses
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["test"]["weights"] == "ema"
