"""Convolution and pooling against XLA's own operations, in values and gradients."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from gnpcli.devices import convolution, cpu
from gnpcli.devices.convolution import LAYOUT, convolve
from gnpcli.devices.mesh import on_mesh
from gnpcli.models.layers.convolution import Conv
from gnpcli.models.layers.dense import DTYPES
from gnpcli.models.layers.pooling import avg_pool, max_pool
from tests.networks import build


def integers(*shape, dtype=np.float32):
    """Small whole numbers, whose sums and products are exact in both types and in any order."""
    return jnp.asarray(np.random.default_rng(sum(shape)).integers(-3, 4, size=shape), dtype)


def assert_same(actual, wanted, *arguments):
    """Compare two functions, and the gradients of a function of them, at the same arguments."""

    @jax.jit
    def values_and_gradients(*arguments):
        results = []
        for function in (actual, wanted):
            y, pull = jax.vjp(function, *arguments)
            results.append((y, *pull(integers(*y.shape, dtype=y.dtype))))
        return results

    for a, b in zip(*values_and_gradients(*arguments), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


FORMS = ("tuned for a CPU", "for other backends", "without tuning")


def take(form, monkeypatch):
    """Make every convolution of a test take one of its forms, on whichever machine it runs."""
    if form == "for other backends":
        monkeypatch.setattr(cpu, "on_cpu", lambda own, default, *arguments: default(*arguments))
    if form == "without tuning":
        monkeypatch.setenv(cpu.VARIABLE, "0")


def assert_same_hessian_product(function, wanted, x, kernel):
    def hessian_product(function):
        def loss(x, kernel):
            return jnp.sum(function(x, kernel) ** 2) / 2

        return jax.jit(lambda *at: jax.jvp(jax.grad(loss, (0, 1)), at, (x - 1, kernel + 1))[1])(
            x, kernel
        )

    for a, b in zip(hessian_product(function), hessian_product(wanted), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize(("stride", "side"), [(1, 5), (2, 5), (2, 6)])
def test_pointwise_convolution_in_every_form(monkeypatch, form, same, stride, side):
    take(form, monkeypatch)
    x, kernel = integers(2, side, side, 3), integers(1, 1, 3, 4)
    numbers = ("NHWC", "HWIO", "NHWC")
    assert_same(
        lambda x, kernel: convolve(x, kernel, stride, same),
        lambda x, kernel: jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "VALID", dimension_numbers=numbers
        ),
        x,
        kernel,
    )


SIZES = [
    (3, 1, (5, 4)),
    (3, 1, (2, 2)),
    (3, 2, (5, 6)),
    (3, 2, (8, 1)),
    (3, 2, (12, 11)),
    (3, 3, (16, 17)),
    (7, 2, (12, 11)),
]
"""Side of a kernel, stride, and sides of an image."""


def every_form() -> Iterator[Any]:
    """The forms that are XLA's own operation are quick for one size of each stride."""
    for form in FORMS:
        for index, (size, stride, sides) in enumerate(SIZES):
            is_first = stride not in (other[1] for other in SIZES[:index])
            marks = () if form == FORMS[0] or is_first else pytest.mark.slow
            yield pytest.param(form, size, stride, sides, marks=marks)


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize(("form", "size", "stride", "sides"), [*every_form()])
def test_convolution_is_xlas_in_every_form(monkeypatch, form, same, size, stride, sides):
    take(form, monkeypatch)
    padding = "SAME" if same else ((size // 2, size // 2),) * 2

    def wanted(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), padding, dimension_numbers=LAYOUT
        )

    x, kernel = integers(2, *sides, 3), integers(size, size, 3, 4)
    assert_same(lambda x, kernel: convolve(x, kernel, stride, same), wanted, x, kernel)

    assert_same_hessian_product(
        lambda x, kernel: convolve(x, kernel, stride, same), wanted, x, kernel
    )


@pytest.mark.parametrize("images", [1, 2, pytest.param(3, marks=pytest.mark.slow), 6])
@pytest.mark.parametrize(("stride", "inputs", "outputs"), [(1, 2, 4), (1, 4, 2), (2, 4, 2)])
def test_a_batch_is_computed_in_chunks_that_fit(monkeypatch, images, stride, inputs, outputs):
    """6 images of 8 x 7 pixels, in chunks of so many as fit, forward as well as backward."""
    padding = ((1, 1), (1, 1))

    def wanted(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), padding, dimension_numbers=LAYOUT
        )

    windows = 8 * 7 if stride == 1 else 4 * 4
    monkeypatch.setattr(convolution, "CHUNK", images * windows * 9 * max(inputs, outputs))
    monkeypatch.setattr(convolution, "MIN_SIDE", 1)
    monkeypatch.setattr(convolution, "MIN_PAIRS", 1)
    x, kernel = integers(6, 8, 7, inputs), integers(3, 3, inputs, outputs)
    assert (
        len(convolution._in_chunks(x, windows * max(inputs, outputs) // inputs, 3, False))
        == 6 // images
    )
    assert_same(lambda x, kernel: convolve(x, kernel, stride, False), wanted, x, kernel)
    assert_same_hessian_product(
        lambda x, kernel: convolve(x, kernel, stride, False), wanted, x, kernel
    )


def test_a_batch_that_devices_share_is_one_chunk(monkeypatch):
    monkeypatch.setattr(convolution, "CHUNK", 1)
    x = integers(6, 8, 7, 2)
    assert convolution._in_chunks(x, 56, 3, False).shape == (6, 1, 8, 7, 2)
    assert convolution._in_chunks(x, 56, 3, True).shape == (1, 6, 8, 7, 2)


def loops(mesh, x, kernel):
    """Return how many loops there are in a narrow convolution on a mesh, and in its gradients."""

    @on_mesh(mesh)
    def loss(x, kernel):
        return jnp.sum(convolve(x, kernel, 1, False) ** 2)

    return str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(x, kernel)).count("length=2")


def test_the_mesh_says_whether_devices_share_a_batch(monkeypatch):
    """A loop over chunks would gather the batch on each of them."""
    monkeypatch.setattr(convolution, "CHUNK", 16 * 16 * 9 * 32)
    x, kernel = integers(2, 16, 16, 32), integers(3, 3, 32, 32)
    alone, shared = (AbstractMesh((size,), ("data",)) for size in (1, 2))
    assert loops(alone, x, kernel) == 3  # values, and both gradients
    assert loops(shared, x, kernel) == 0


def test_chunks_are_added_up_in_float32(monkeypatch):
    """257 is no bfloat16 number: a sum of 512 ones that stops at each chunk to be rounded would
    stick at 256.
    """
    monkeypatch.setattr(convolution, "CHUNK", 1)
    x, kernel = jnp.ones((512, 8, 8, 1), jnp.bfloat16), jnp.ones((3, 3, 1, 1), jnp.bfloat16)
    chosen = jnp.zeros((512, 8, 8, 1), jnp.bfloat16).at[:, 4, 4].set(1)
    gradient = jax.grad(
        lambda kernel: jnp.sum((convolve(x, kernel, 1, False) * chosen).astype(jnp.float32))
    )(kernel)
    np.testing.assert_array_equal(gradient, jnp.full_like(kernel, 512))


@pytest.mark.parametrize(
    "name",
    [
        "vgg16-bn",
        "resnet18",
        "wrn-16-4",
        pytest.param("shake-shake-26-2x96d", marks=pytest.mark.slow),
    ],
)
def test_every_convolution_of_a_step_has_the_layout_that_a_cpu_is_fast_in(name):
    """In a loop XLA's CPU backend rewrites none, and any other layout then takes twenty times as
    long.
    """
    model = build(name)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    params, state = jax.eval_shape(lambda: model.init(jax.random.key(0), (32, 32, 3)))

    def gradient(params, state, images):
        return jax.grad(
            lambda p: jnp.sum(model.apply(p, state, images, True, jax.random.key(0))[0])
        )(params)

    program = jax.jit(gradient).lower(params, state, images).as_text()
    layouts = re.findall(r"stablehlo\.convolution\(.*dim_numbers = (.*?), window", program)
    assert len(layouts) >= 10
    assert set(layouts) == {"[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"}


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("side", [1, 8, 9])
def test_convolution_halves_upwards(size, side):
    for same in (False, True):
        for stride in (1, 2):
            y = jax.eval_shape(
                lambda x, k, s=stride, p=same: convolve(x, k, s, p),
                integers(1, side, side, 2),
                integers(size, size, 2, 3),
            )
            assert y.shape == (1, -(-side // stride), -(-side // stride), 3)


def test_bias_is_added_per_channel():
    x = integers(1, 4, 4, 2)
    layer = Conv(3, 3, bias=True)
    params = layer.init(jax.random.key(0), x)["params"]
    bias = integers(3)
    difference = layer.apply({"params": {**params, "bias": bias}}, x) - layer.apply(
        {"params": params}, x
    )
    np.testing.assert_allclose(difference, np.broadcast_to(bias, (1, 4, 4, 3)), atol=1e-6)
    assert "bias" not in Conv(3, 3).init(jax.random.key(0), x)["params"]


@pytest.mark.parametrize("dtype", DTYPES.values())
@pytest.mark.parametrize("side", [(8, 8), (7, 10), (3, 2)])
@pytest.mark.parametrize(("size", "same"), [(2, False), (3, False), (3, True)])
def test_max_pool(dtype, side, size, same):
    border = (size - 1) // 2
    padding = "SAME" if same else ((0, 0), (border, border), (border, border), (0, 0))
    # Distinct values: which of equal ones gets the gradient is where the two differ.
    x = jnp.asarray(
        np.random.default_rng(1).permutation(3 * side[0] * side[1]).reshape(1, *side, 3), dtype
    )
    assert np.unique(x).size == x.size
    assert_same(
        lambda x: max_pool(x, size, same),
        lambda x: jax.lax.reduce_window(
            x, -jnp.inf, jax.lax.max, (1, size, size, 1), (1, 2, 2, 1), padding
        ),
        x,
    )


def test_pixels_that_share_the_maximum_share_its_gradient():
    gradient = jax.grad(lambda x: max_pool(x, 2).sum())(jnp.ones((1, 2, 2, 1)))
    np.testing.assert_array_equal(gradient, np.full((1, 2, 2, 1), 0.25))


@pytest.mark.parametrize("dtype", DTYPES.values())
@pytest.mark.parametrize(("side", "size"), [((8, 8), 2), ((7, 10), 2), ((1, 3), 2), ((6, 7), 3)])
def test_avg_pool_is_the_mean_of_the_pixels_that_a_window_has(dtype, side, size):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, *side, 3)), dtype)
    pooled, pull = jax.vjp(lambda x: avg_pool(x, size), x)
    (gradient,) = pull(pooled)
    assert pooled.dtype == gradient.dtype == dtype
    # each index into an array of JAX would be a program of its own
    means, slopes = np.asarray(pooled), np.asarray(gradient)
    tolerance = 4 * float(jnp.finfo(dtype).eps)
    wide = np.asarray(x, np.float64)
    assert means.shape[1:3] == (-(-side[0] // size), -(-side[1] // size))
    for i, j in np.ndindex(*means.shape[1:3]):
        window = (slice(None), slice(i * size, (i + 1) * size), slice(j * size, (j + 1) * size))
        np.testing.assert_allclose(
            means[:, i, j], wide[window].mean((1, 2)), rtol=tolerance, atol=tolerance
        )
        share = np.asarray(means[:, i : i + 1, j : j + 1], np.float64) / np.prod(
            wide[window].shape[1:3]
        )
        np.testing.assert_allclose(
            slopes[window],
            np.broadcast_to(share, wide[window].shape),
            rtol=tolerance,
            atol=tolerance,
        )
