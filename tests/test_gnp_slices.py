"""Averages over slices of a batch, and their composition with the penalty."""

from __future__ import annotations

import doctest
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gnpcli import accumulate, penalize
from gnpcli.gnp import global_norm, slices
from tests.trees import same_structure

R, ALPHA = 0.1, 0.8
SLICES, ROWS = 4, 6


def network(params, images, labels, key):
    """A smooth loss with dropout drawn from `key`; aux is what depends on the slice: its mean image
    and its mask.
    """
    keep = jax.random.bernoulli(key, 0.5, (8,)).astype(images.dtype)
    hidden = jnp.tanh(images @ params["w1"]) * keep[None, :]
    loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(hidden @ params["w2"], labels))
    return loss, {"mean": images.mean(axis=0), "keep": keep}


def without_dropout(params, images, labels):
    logits = jnp.tanh(images @ params["w1"]) @ params["w2"]
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


@pytest.fixture
def problem():
    keys = jax.random.split(jax.random.key(3), 3)
    params = {
        "w1": 0.6 * jax.random.normal(keys[0], (5, 8)),
        "w2": 0.6 * jax.random.normal(keys[1], (8, 3)),
    }
    images = (
        jax.random.normal(keys[2], (SLICES, ROWS, 5)) * jnp.arange(1.0, SLICES + 1)[:, None, None]
    )
    labels = jnp.arange(SLICES * ROWS, dtype=jnp.int32).reshape(SLICES, ROWS) % 3
    return params, images, labels


def flat(images, labels):
    return images.reshape(-1, 5), labels.reshape(-1)


def assert_close(left, right, rtol=2e-5):
    assert same_structure(left, right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6)


def mean(results):
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *results)


@pytest.mark.parametrize("at_once", [None, "slice"])
def test_slices_of_a_mean_have_the_value_and_gradient_of_the_whole(problem, at_once):
    params, images, labels = problem
    whole = jax.jit(jax.value_and_grad(without_dropout))(params, *flat(images, labels))
    sliced = jax.jit(accumulate(jax.value_and_grad(without_dropout), [1, 2], at_once=at_once))(
        params, images, labels
    )
    assert_close(sliced, whole)


@pytest.mark.parametrize("gradient", ["finite-difference", "exact"])
@pytest.mark.parametrize("recompute", [False, True])
def test_one_perturbation_over_slices_is_that_of_the_whole_batch(problem, gradient, recompute):
    params, images, labels = problem
    turn = partial(
        penalize, r=R, alpha=ALPHA, gradient=gradient, recompute=recompute, with_metrics=True
    )
    whole = jax.jit(turn(jax.value_and_grad(without_dropout)))(params, *flat(images, labels))
    sliced = jax.jit(turn(accumulate(jax.value_and_grad(without_dropout), [1, 2])))(
        params, images, labels
    )
    assert_close(sliced, whole)


@pytest.mark.parametrize("at_once", [None, "slice"])
def test_a_perturbation_for_each_slice_is_the_mean_of_the_penalised_slices(problem, at_once):
    params, images, labels = problem
    key = jax.random.key(9)
    turned = jax.jit(
        penalize(
            jax.value_and_grad(network, has_aux=True),
            r=R,
            alpha=ALPHA,
            has_aux=True,
            with_metrics=True,
        )
    )
    expected = mean(
        [turned(params, images[i], labels[i], jax.random.fold_in(key, i)) for i in range(SLICES)]
    )
    found = jax.jit(accumulate(turned, [1, 2], [3], at_once=at_once))(params, images, labels, key)
    assert_close(found, expected)
    assert len({float(norm) for norm in found[0][1]["keep"]}) > 1  # the slices drew differently
    once = penalize(
        accumulate(jax.value_and_grad(network, has_aux=True), [1, 2], [3]),
        r=R,
        alpha=ALPHA,
        has_aux=True,
    )
    apart = global_norm(
        jax.tree.map(jnp.subtract, jax.jit(once)(params, images, labels, key)[1], found[1])
    )
    assert float(apart) > 1e-3  # m-sharpness is another objective


def test_groups_and_pieces_nest(problem):
    params, images, labels = problem
    turned = penalize(jax.value_and_grad(without_dropout), r=R, alpha=ALPHA)
    groups = accumulate(turned, [1, 2])(params, images, labels)
    pieces = accumulate(
        penalize(accumulate(jax.value_and_grad(without_dropout), [1, 2]), r=R, alpha=ALPHA), [1, 2]
    )(params, images.reshape(SLICES, 2, ROWS // 2, 5), labels.reshape(SLICES, 2, ROWS // 2))
    assert_close(pieces, groups)


@pytest.mark.parametrize("at_once", [None, "slice"])
def test_slices_spread_over_a_mapped_axis_draw_and_average_as_in_one_place(problem, at_once):
    params, images, labels = problem
    key = jax.random.key(9)
    turned = penalize(jax.value_and_grad(network, has_aux=True), r=R, alpha=ALPHA, has_aux=True)
    here = jax.jit(accumulate(turned, [1, 2], [3]))(params, images, labels, key)
    over_shards = jax.vmap(
        accumulate(turned, [1, 2], [3], axis_name="shard", at_once=at_once),
        in_axes=(None, 0, 0, None),
        axis_name="shard",
    )
    halves = (leaf.reshape(2, SLICES // 2, *leaf.shape[1:]) for leaf in (images, labels))
    spread = jax.jit(over_shards)(params, *halves, key)
    for shard in range(2):
        assert_close(jax.tree.map(lambda leaf, shard=shard: leaf[shard], spread), here)


def test_averages_are_taken_in_float32_and_keep_their_type():
    def value_and_grad(w, x):
        return x[0], (w * x).astype(jnp.bfloat16)

    x = jnp.array([1.0] + [2.0**-9] * 511).reshape(512, 1)  # in bfloat16 the sum would stay at 1
    _, grads = accumulate(value_and_grad, [1])(jnp.ones(1), x)
    assert grads.dtype == jnp.bfloat16
    np.testing.assert_allclose(grads[0], (1 + 511 / 512) / 512, rtol=1e-2)


@pytest.mark.parametrize("at_once", [None, "slice"])
def test_what_has_no_mean_is_refused(at_once):
    def value_and_grad(w, x):
        return (w, jnp.int32(1)), w

    with pytest.raises(TypeError, match="int32 has no mean"):
        accumulate(value_and_grad, [1], at_once=at_once)(jnp.ones(()), jnp.ones((2, 3)))


def test_recomputing_keeps_the_intermediate_values_of_one_slice_only():
    def loss(w, x):
        for _ in range(12):
            x = jnp.tanh(x @ w)
        return jnp.mean(jnp.square(x))

    def temporary(recompute):
        turned = penalize(
            accumulate(jax.value_and_grad(loss), [1]),
            r=R,
            alpha=ALPHA,
            gradient="exact",
            recompute=recompute,
        )
        compiled = jax.jit(turned).lower(jnp.ones((64, 64)), jnp.ones((16, 256, 64))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(True) < 0.3 * temporary(False)


def test_docstring_examples():
    found = doctest.testmod(slices)
    assert found.failed == 0
    assert found.attempted > 0
