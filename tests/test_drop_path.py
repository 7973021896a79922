"""Stochastic depth: rates, draws and expectation, alone and inside the blocks of Swin and CaiT."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnpcli.models.families import cait, swin
from gnpcli.models.layers.dense import DTYPES
from gnpcli.models.layers.dropout import DropPath, drop_path, linear_rates
from gnpcli.models.layers.transformer import FORMS
from tests.test_models import randomised

COMMON = {
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "form": FORMS["paper"],
    "dtype": DTYPES["float32"],
}
# Family: (block, by the rate of its drop path; one input).
BLOCKS: dict[str, Any] = {
    "swin": (
        lambda rate: swin.Block(heads=2, window=2, shift=1, drop_path=rate, **COMMON),
        (1, 4, 4, 6),
    ),
    "cait": (
        lambda rate: cait.Block(heads=2, layer_scale=0.1, drop_path=rate, **COMMON),
        (1, 5, 6),
    ),
}


def test_rates_grow_linearly():
    np.testing.assert_allclose(linear_rates(0.3, 4), [0, 0.1, 0.2, 0.3])
    assert linear_rates(0.3, 1) == (0.0,)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
def test_drop_path_keeps_the_mean(rate, dtype):
    batch = 20000
    x = jnp.ones((batch, 2, 3), DTYPES[dtype])
    out = drop_path(x, rate, jax.random.key(1))
    assert out.dtype == x.dtype
    dropped = np.asarray(out.astype(jnp.float32))
    assert (dropped == dropped[:, :1, :1]).all()  # an image as a whole
    scale = float(jnp.asarray(1 / (1 - rate), DTYPES[dtype]))
    assert set(np.unique(dropped)) == {0.0, np.float32(scale)}
    deviation = (rate / (1 - rate) / batch) ** 0.5
    assert abs((dropped > 0).mean() / (1 - rate) - 1) < 4 * deviation


def test_scale_is_not_rounded_to_the_compute_type():
    given = jax.random.normal(jax.random.key(0), (4000, 8)).astype(jnp.bfloat16)
    kept = np.asarray(drop_path(given, 0.3, jax.random.key(1)).astype(jnp.float32))
    x = np.asarray(given.astype(jnp.float32))
    kept, x = kept[kept.any(1)], x[kept.any(1)]
    # 1 / 0.7 in bfloat16 is 0.1 % too large; the roundings of single products cancel.
    assert abs(np.abs(kept).sum() / np.abs(x).sum() * 0.7 - 1) < 2e-4


def test_nothing_is_drawn_where_nothing_is_dropped():
    x = jnp.ones((2, 3))
    for rate, train in [(0.0, True), (0.5, False)]:
        np.testing.assert_array_equal(DropPath(rate).apply({}, x, train), x)


@pytest.mark.parametrize("family", BLOCKS)
def test_expectation_of_a_block(family):
    """Of one image many times over, each is kept or dropped as a whole, as the key has it, whatever
    the parameters.
    """
    make, shape = BLOCKS[family]
    rate, batch = 0.3, 2000
    block = make(rate)
    image = jax.random.normal(jax.random.key(0), shape)
    images = jnp.broadcast_to(image, (batch, *shape[1:]))
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), image, train=False))
    rngs = {"dropout": jax.random.key(7)}
    run = jax.jit(
        lambda params, x, train: block.apply(params, x, train, rngs=rngs), static_argnums=2
    )

    def kept_images(branch, seed):
        # One branch alone: of two, the second sees what the first dropped, and the expectation is
        # no longer exact.
        params = randomised(shapes, seed)
        silent = (
            params["params"]["mlp"]["down"]
            if branch == "attention"
            else params["params"]["attention"]["out"]
        )
        silent.update(jax.tree.map(np.zeros_like, silent))
        whole = run(params, image, False) - image
        answers = run(params, images, True) - images
        kept = np.abs(answers).max(axis=tuple(range(1, answers.ndim))) > 0
        np.testing.assert_allclose(
            answers[kept] * (1 - rate), whole.repeat(kept.sum(), 0), rtol=1e-3, atol=1e-5
        )
        assert abs(kept.mean() / (1 - rate) - 1) < 4 * (rate / (1 - rate) / batch) ** 0.5
        return kept

    attention, mlp = kept_images("attention", 0), kept_images("mlp", 0)
    np.testing.assert_array_equal(attention, kept_images("attention", 1))
    assert abs((attention & mlp).mean() - (1 - rate) ** 2) < 0.05  # the branches draw apart
