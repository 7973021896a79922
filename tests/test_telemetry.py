"""What a step tells beside losses and norms, against float64 NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnpcli.config.optimizers import AdamWConfig, RmsPropConfig, SgdConfig
from gnpcli.config.training import TrainConfig
from gnpcli.step.optimizer import build_optimizer, clip_ratio, make_statistics
from gnpcli.step.telemetry import mean_and_variance, surrogate_gap, update_ratio


@pytest.mark.parametrize("shapes", [[(3,), (4, 5), ()], [(200, 300), (7,), (2**15,), (50_000,)]])
def test_mean_and_variance_count_every_element_once(shapes):
    rng = np.random.default_rng(0)
    leaves = [
        1e4 + 10 * rng.normal(size=shape) for shape in shapes
    ]  # E[x^2] - E[x]^2 would be lost in rounding
    everything = np.concatenate([leaf.ravel() for leaf in leaves])
    tree = {str(number): jnp.asarray(leaf, jnp.float32) for number, leaf in enumerate(leaves)}
    mean, variance = mean_and_variance(tree)
    np.testing.assert_allclose(mean, everything.mean(), rtol=1e-6)
    np.testing.assert_allclose(variance, everything.var(), rtol=1e-3)
    assert [float(value) for value in mean_and_variance({})] == [0, 0]


@pytest.mark.parametrize(
    "config",
    [
        AdamWConfig(name="adamw", b2=0.95, eps=1e-6, weight_decay=0.1),
        RmsPropConfig(name="rmsprop", decay=0.8, eps=1e-5, momentum=0.5),
    ],
)
@pytest.mark.parametrize("updates", [0, 1, 5])
def test_adaptive_rates_are_those_of_the_last_update(config, updates):
    rng = np.random.default_rng(1)
    params = {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}
    gradients = [{"w": rng.normal(size=(4, 3)), "b": np.zeros(3)} for _ in range(updates)]
    optimizer = build_optimizer(config, TrainConfig(epochs=1))
    state = optimizer.init(params)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes types
        for gradient in gradients:
            _, state = optimizer.update(
                jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), gradient), state, params
            )
    statistics = make_statistics(config)
    assert statistics is not None
    told = statistics(state)

    b2 = config.b2 if config.name == "adamw" else config.decay
    v = np.zeros(15)
    for gradient in gradients:
        v = b2 * v + (1 - b2) * np.concatenate([gradient["w"].ravel(), gradient["b"]]) ** 2
    if config.name == "adamw":
        psi = 1 / (np.sqrt(v / (1 - b2 ** max(updates, 1))) + config.eps)
    else:
        psi = 1 / np.sqrt(v + config.eps)
    np.testing.assert_allclose(told["adaptive_lr_mean"], psi.mean(), rtol=1e-5)
    np.testing.assert_allclose(
        told["adaptive_lr_variance"], psi.var(), rtol=1e-4, atol=1e-13 * psi.mean() ** 2
    )
    np.testing.assert_allclose(
        told["adaptive_lr_log_variance"], np.log(psi).var(), rtol=1e-4, atol=1e-9
    )


def test_what_adapts_nothing_has_no_adaptive_rates():
    assert make_statistics(SgdConfig(name="sgd")) is None


def test_ratios_and_gap():
    ratio = update_ratio(jnp.float32(0.3), jnp.float32(1.5))
    np.testing.assert_allclose(ratio, 0.2, rtol=1e-6)
    assert float(update_ratio(jnp.float32(0.3), jnp.float32(0))) == 0
    np.testing.assert_allclose(surrogate_gap(jnp.float32(1.5), jnp.float32(1.25)), -0.25)
    for norm, expected in ((0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (8.0, 0.25)):
        assert float(clip_ratio(jnp.float32(norm), 2.0)) == expected
    assert float(clip_ratio(jnp.float32(8), None)) == 1
