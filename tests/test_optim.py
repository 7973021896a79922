"""Each optimizer against its update rule written out in NumPy, with clipping, decay and masks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnpcli.config.optimizers import (
    OPTIMIZERS,
    AdamWConfig,
    RmsPropConfig,
    SgdConfig,
)
from gnpcli.config.training import TrainConfig
from gnpcli.gnp import global_norm
from gnpcli.step.optimizer import build_optimizer, clip_by_norm, decay_mask

CONFIGS: dict[str, Any] = {
    "sgd": SgdConfig(name="sgd", momentum=0.9),
    "sgd-plain": SgdConfig(name="sgd", momentum=0.0),
    "sgd-nesterov-decay": SgdConfig(name="sgd", momentum=0.9, nesterov=True, weight_decay=0.2),
    "adamw": AdamWConfig(name="adamw", b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.3),
    "rmsprop": RmsPropConfig(name="rmsprop", decay=0.8, eps=1e-5),
    "rmsprop-momentum": RmsPropConfig(name="rmsprop", decay=0.8, momentum=0.7, weight_decay=0.1),
}
START = {"kernel": np.array([[1.0, -2.0], [0.5, 3.0]]), "bias": np.array([0.3, -0.7])}


def lr(step):
    return 0.05 / (1 + step)


def gradients(step):
    rng = np.random.default_rng(step)
    return {name: rng.normal(size=leaf.shape) for name, leaf in START.items()}


def by_hand(config, *, clip_norm, decays, steps):
    params = {name: leaf.copy() for name, leaf in START.items()}
    first, second = ({name: np.zeros_like(leaf) for name, leaf in START.items()} for _ in range(2))
    for step in range(steps):
        grads = gradients(step)
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        scale = min(1.0, clip_norm / norm) if clip_norm else 1.0
        for name, g in grads.items():
            g = g * scale
            match config.name:
                case "sgd":
                    first[name] = g + config.momentum * first[name]
                    update = g + config.momentum * first[name] if config.nesterov else first[name]
                case "adamw":
                    first[name] = config.b1 * first[name] + (1 - config.b1) * g
                    second[name] = config.b2 * second[name] + (1 - config.b2) * g**2
                    m, v = (
                        first[name] / (1 - config.b1 ** (step + 1)),
                        second[name] / (1 - config.b2 ** (step + 1)),
                    )
                    update = m / (np.sqrt(v) + config.eps)
                case "rmsprop":
                    second[name] = config.decay * second[name] + (1 - config.decay) * g**2
                    update = g / np.sqrt(second[name] + config.eps)
                    if config.momentum:
                        first[name] = update = update + config.momentum * first[name]
            if name in decays:
                update = update + config.weight_decay * params[name]
            params[name] = params[name] - 0.05 / (1 + step) * update
    return params


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("biases_and_norms", [False, True])
def test_updates_equal_the_rule(name, clip_norm, biases_and_norms):
    config = CONFIGS[name]
    train = TrainConfig(epochs=1, decay_biases_and_norms=biases_and_norms)
    optimizer = build_optimizer(config, train)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), START)
    state = optimizer.init(params)
    for step in range(4):
        grads = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), gradients(step))
        with jax.numpy_dtype_promotion("standard"):  # optax itself mixes float and int counts
            clipped = clip_by_norm(grads, global_norm(grads), clip_norm)
            directions, state = optimizer.update(clipped, state, params)
        params = jax.tree.map(
            lambda param, direction: param - lr(step) * direction,  # noqa: B023
            params,
            directions,
        )
    expected = by_hand(
        config,
        clip_norm=clip_norm,
        decays=("kernel", "bias") if biases_and_norms else ("kernel",),
        steps=4,
    )
    for leaf in START:
        np.testing.assert_allclose(params[leaf], expected[leaf], rtol=2e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_downhill_and_tells_its_rates_if_it_is_adaptive(name):
    config = OPTIMIZERS[name](name=name)
    optimizer = build_optimizer(config, TrainConfig(epochs=1))
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), START)
    with jax.numpy_dtype_promotion("standard"):
        directions, state = optimizer.update(params, optimizer.init(params), params)
    for leaf in START:  # the parameters are the gradient of half their squared norm
        assert np.vdot(directions[leaf], params[leaf]) > 0
    if config.is_adaptive:
        rates = config.adaptive_rates(state)
        assert jax.tree.map(jnp.shape, rates) == jax.tree.map(jnp.shape, params)
        assert all(np.all(rate > 0) for rate in jax.tree.leaves(rates))


@pytest.mark.parametrize("max_norm", [None, 0.1, 10.0])
def test_clipping_leaves_a_zero_gradient_zero_and_a_small_one_alone(max_norm):
    for grads in ({"w": jnp.zeros(3)}, {"w": jnp.array([0.03, 0.04, 0.0])}):
        np.testing.assert_array_equal(
            clip_by_norm(grads, global_norm(grads), max_norm)["w"], grads["w"]
        )


def test_decay_mask_leaves_out_one_dimension():
    params = {
        "w": jnp.zeros((2, 3)),
        "scale": jnp.zeros(3),
        "pos": jnp.zeros((1, 4, 3)),
        "s": jnp.zeros(()),
    }
    assert decay_mask(params, biases_and_norms=False) == {
        "w": True,
        "scale": False,
        "pos": True,
        "s": False,
    }
    assert all(decay_mask(params, biases_and_norms=True).values())
