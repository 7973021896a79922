"""Losses and metric sums against NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnpcli.config.schema import GrConfig
from gnpcli.config.training import TrainConfig
from gnpcli.models.base import Model
from gnpcli.step.losses import cross_entropy, is_outside_top, main_class, metric_sums, zero_sums
from gnpcli.step.objective import make_objective


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(40, 10)).astype(np.float32)
    return jnp.asarray(logits), jnp.asarray(rng.integers(0, 10, 40), jnp.int32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_cross_entropy_is_the_entropy_to_the_smoothed_target(batch, smoothing):
    logits, labels = batch
    wide = np.asarray(logits, np.float64)
    log_probs = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    target = (1 - smoothing) * np.eye(10)[labels] + smoothing / 10
    expected = -(target * log_probs).sum(-1)
    np.testing.assert_allclose(cross_entropy(logits, labels, smoothing), expected, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_linear_in_the_class_probabilities(batch, smoothing):
    logits, labels = batch
    share = np.random.default_rng(1).random(40, dtype=np.float32)
    partners = jnp.roll(labels, 1)
    mixed = share[:, None] * np.eye(10, dtype=np.float32)[labels]
    mixed += (1 - share)[:, None] * np.eye(10, dtype=np.float32)[partners]
    own, others = (cross_entropy(logits, of, smoothing) for of in (labels, partners))
    np.testing.assert_allclose(
        cross_entropy(logits, jnp.asarray(mixed), smoothing),
        share * own + (1 - share) * others,
        rtol=1e-5,
        atol=1e-6,
    )


def test_main_class_is_the_largest_share_and_the_lower_class_of_a_tie():
    probabilities = jnp.array([[0.2, 0.8, 0.0], [0.5, 0.0, 0.5], [0.0, 0.0, 1.0]])
    assert main_class(probabilities).tolist() == [1, 0, 2]
    labels = jnp.array([2, 0], jnp.int32)
    assert main_class(labels) is labels


def test_cross_entropy_of_huge_logits_is_finite():
    logits = jnp.array([[1e4, -1e4, 0.0]])
    np.testing.assert_allclose(cross_entropy(logits, jnp.array([1])), [2e4])


@pytest.mark.parametrize("k", [1, 5, 10])
def test_top_k_agrees_with_a_stable_sort(batch, k):
    logits, labels = batch
    order = np.argsort(-np.asarray(logits), axis=-1, kind="stable")[:, :k]
    expected = ~(order == np.asarray(labels)[:, None]).any(-1)
    np.testing.assert_array_equal(is_outside_top(logits, labels, k), expected)


def test_equal_logits_count_as_argmax_counts_them():
    logits, labels = jnp.zeros((3, 4)), jnp.array([0, 1, 3])
    np.testing.assert_array_equal(is_outside_top(logits, labels, 1), [False, True, True])
    np.testing.assert_array_equal(is_outside_top(logits, labels, 2), [False, False, True])


@pytest.mark.parametrize("where", [0, 1])
def test_a_nan_is_never_a_right_answer(where):
    logits = jnp.array([[0.0, 1.0, 2.0]]).at[0, where].set(jnp.nan)
    assert bool(is_outside_top(logits, jnp.array([0]), 1)[0])


def test_sums_ignore_padding_whatever_it_holds(batch):
    logits, labels = batch
    padded = jnp.concatenate([logits, jnp.full((3, 10), jnp.nan, jnp.float32)])
    padded_labels = jnp.concatenate([labels, jnp.zeros(3, jnp.int32)])
    sums = metric_sums(padded, padded_labels, jnp.arange(43) < 40)
    full = metric_sums(logits, labels, jnp.ones(40, bool))
    assert jax.tree.map(int, sums[1:]) == jax.tree.map(int, full[1:])
    np.testing.assert_allclose(sums.loss, full.loss, rtol=1e-6)
    assert int(sums.num_examples) == 40
    assert int(sums.errors) == int((logits.argmax(-1) != labels).sum())
    np.testing.assert_allclose(
        sums.loss, np.asarray(cross_entropy(logits, labels)).sum(), rtol=1e-6
    )
    assert [float(x) for x in zero_sums()] == [0, 0, 0, 0]


def test_the_objective_of_mixed_colour_images_is_the_cross_entropy_to_their_shares():
    """A pass of 3 channels and 10 classes, whose signature names both."""
    rng = np.random.default_rng(2)
    images = jnp.asarray(rng.normal(size=(4, 2, 2, 3)), jnp.float32)
    shares = jnp.asarray(rng.dirichlet(np.ones(10), 4), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(12, 10)), jnp.float32)
    model = Model(
        init=lambda key, shape: ({"kernel": kernel}, {}),
        apply=lambda params, state, x, train, key: (x.reshape(4, -1) @ params["kernel"], state),
    )
    objective = make_objective(model, TrainConfig(epochs=1), GrConfig())
    loss, (_, measures) = objective({"kernel": kernel}, {}, images, shares, jax.random.key(0))
    expected = jnp.mean(cross_entropy(images.reshape(4, -1) @ kernel, shares))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(measures["cross_entropy"], expected, rtol=1e-6)
