"""Scanned, stored and rematerialised blocks: the same network, from the same weights."""

from __future__ import annotations

import math
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnpcli.devices.cpu import stored, storing, tuning
from gnpcli.models.layers.blocks import rematerialised
from tests.networks import ONE_OF_EACH, build_tiny, tiny

SHAPE = (8, 8, 3)
FAMILIES = list(ONE_OF_EACH)
STACKS = [family for family in FAMILIES if family != "vgg"]
"""The families of residual blocks."""


def weights(model, shape=SHAPE):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), shape))

    def draw(leaf):
        if leaf.ndim == 1:
            return rng.uniform(0.3, 0.9, leaf.shape).astype(np.float32)
        return (rng.normal(size=leaf.shape) * math.sqrt(2 / math.prod(leaf.shape[:-1]))).astype(
            np.float32
        )

    return jax.tree.map(draw, shapes)


def images(shape=SHAPE):
    return jnp.asarray(np.random.default_rng(0).normal(size=(4, *shape)), jnp.float32)


def passes(model, state, shape=SHAPE, is_rematerialised=False, is_stored=False):
    """Logits, new state and gradient of a function of the logits."""

    def loss(params):
        key = jax.random.key(1)
        with rematerialised(is_rematerialised), storing(key) if is_stored else nullcontext():
            logits, moved = model.apply(params, state, images(shape), True, key)
        return jnp.sin(logits).sum(), (logits, moved)

    return jax.grad(loss, has_aux=True)


def compiled(function):
    # Compiling is what these tests spend their time on; unoptimised code compiles in half of it.
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def assert_close(a, b, rounding=1e-7):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(
            x, y, rtol=2e-4, atol=2e-5 * np.abs(y).max() + rounding
        ),
        a,
        b,
    )


# Quick: a kind without state and one with; the others differ in what is compiled.
QUICK = ("vit", "wide_resnet")
each_family, each_stack = (
    pytest.mark.parametrize(
        "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in names]
    )
    for names in (FAMILIES, STACKS)
)


@pytest.mark.slow
@each_stack
def test_rematerialised_blocks_compute_the_same(name):
    model = build_tiny(name)
    params, state = weights(model)
    plain, again = (passes(model, state, is_rematerialised=is_on) for is_on in (False, True))
    assert "remat" in str(jax.make_jaxpr(again)(params))
    assert "remat" not in str(jax.make_jaxpr(plain)(params))
    assert_close(compiled(again)(params), compiled(plain)(params))


@pytest.mark.slow
@pytest.mark.parametrize("name", STACKS)
def test_every_family_stores_what_each_block_answers(name):
    model = build_tiny(name)
    params, state = weights(model)
    blocks = [part for part in params if "block" in part and not part.startswith("class")]
    loops = []
    for is_on in (False, True):
        program = jax.jit(passes(model, state, is_stored=is_on)).lower(params)
        loops.append(program.as_text().count("stablehlo.while"))
    assert loops[1] - loops[0] == 2 * len(blocks)  # once each way


@each_stack
def test_stored_blocks_compute_the_same(name):
    model = build_tiny(name)
    params, state = weights(model)
    plain, own = (passes(model, state, is_stored=is_on) for is_on in (False, True))
    assert_close(compiled(own)(params), compiled(plain)(params))


@each_family
def test_tuning_for_a_cpu_changes_no_value(name):
    """The form for a CPU and the form for every other backend agree, in logits and gradients."""
    model, side = build_tiny(name), tiny(name).image_size
    shape = (side, side, 3)
    params, state = weights(model, shape)
    tuned, own = (passes(model, state, shape, is_stored=is_on) for is_on in (True, False))

    def untuned(params):
        with tuning(False):
            return own(params)

    found, wanted = compiled(tuned)(params), compiled(untuned)(params)
    # The gradient of a bias before a BatchNorm is 0. What is seen of it is the rounding of sums as
    # large as the other gradients.
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(wanted[0]))
    assert_close(found, wanted, rounding=2e-6 * largest)


def deep(depth, x, weight, key):
    with storing(key):
        for _ in range(depth):
            x = stored(x + jnp.tanh(x @ weight))
    return (x**2).sum()


def test_storing_changes_no_bit_and_has_a_gradient_of_second_order():
    x = jnp.asarray([[0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, 0.1]], jnp.float32)
    for key in jax.random.split(jax.random.key(0), 3):
        with storing(key):
            np.testing.assert_array_equal(
                np.asarray(stored(x)).view(np.int32), np.asarray(x).view(np.int32)
            )
    weight = jnp.asarray(np.random.default_rng(0).normal(size=(5, 5)) / 3, jnp.float32)
    x, key = jnp.linspace(0.1, 1, 10, dtype=jnp.float32).reshape(2, 5), jax.random.key(1)
    gradient = jax.grad(lambda w: deep(3, x, w, key))
    product = jax.jvp(gradient, (weight,), (jnp.ones_like(weight),))[1]
    step = 1e-2
    difference = (gradient(weight + step) - gradient(weight - step)) / (2 * step)
    np.testing.assert_allclose(product, difference, rtol=2e-2, atol=1e-2 * np.abs(product).max())


def test_kernels_do_not_grow_with_the_depth():
    """The program of a chain of residual blocks is twice as long for twice the blocks, not four
    times.
    """
    x, weight = jnp.ones((4, 8)), jnp.ones((8, 8))
    sizes = []
    for depth in (8, 16):
        program = jax.jit(jax.grad(deep, argnums=2), static_argnums=0).lower(
            depth, x, weight, jax.random.key(0)
        )
        sizes.append(program.compile().as_text().count("\n"))
    assert sizes[1] < 2.3 * sizes[0], sizes


@pytest.mark.parametrize("is_rematerialised", [pytest.param(False, marks=pytest.mark.slow), True])
def test_scanned_blocks_compute_the_same_from_the_same_weights(is_rematerialised):
    quiet = {"dropout": 0.0, "drop_path": 0.0}
    plain, scanned = build_tiny("cait", **quiet), build_tiny("cait", scan=True, **quiet)
    shapes = [
        jax.eval_shape(lambda m=model: m.init(jax.random.key(0), SHAPE))
        for model in (plain, scanned)
    ]
    assert shapes[0] == shapes[1]
    params, state = weights(plain)
    run = passes(scanned, state, is_rematerialised=is_rematerialised)
    text = str(jax.make_jaxpr(run)(params))
    assert "scan[" in text
    assert ("remat" in text) == is_rematerialised
    assert_close(compiled(run)(params), compiled(passes(plain, state))(params))


def test_scanned_blocks_drop_at_their_rates_each_with_its_own_key():
    """Every block has a key of its own, all follow the step's, and evaluation needs none."""
    model = build_tiny("cait", scan=True)
    params, state = weights(model)
    run = jax.jit(
        model.apply, static_argnames="train", compiler_options={"xla_backend_optimization_level": 0}
    )
    keys = jax.random.split(jax.random.key(0), 2)
    first, again, other = (
        run(params, state, images(), train=True, key=key)[0] for key in (keys[0], keys[0], keys[1])
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-4
    evaluated = [run(params, state, images(), train=False, key=key)[0] for key in (keys[0], None)]
    np.testing.assert_array_equal(*evaluated)
