"""What two passes over one batch share: on a CPU the random draws, on an accelerator nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnpcli.devices import cpu
from gnpcli.devices.passes import drawn_anew

PARAMS = {"kernel": jnp.ones((4, 3)), "bias": jnp.arange(3.0)}


def loss(params, key):
    noise = jax.random.normal(drawn_anew(key, params), (4, 3))
    return jnp.sum(jnp.sin(params["kernel"] * noise)) + jnp.sum(params["bias"])


@pytest.mark.parametrize("is_tuned", [True, False])
def test_a_draw_is_what_it_was_and_so_is_the_gradient(is_tuned):
    key = jax.random.key(3)
    with cpu.tuning(is_tuned):
        grads = jax.jit(jax.grad(loss))(PARAMS, key)
    noise = jax.random.normal(key, (4, 3))
    want = np.asarray(noise * jnp.cos(PARAMS["kernel"] * noise))
    np.testing.assert_allclose(grads["kernel"], want, rtol=1e-6)
    np.testing.assert_array_equal(grads["bias"], np.ones(3))


def test_it_is_tied_to_the_parameters_on_an_accelerator_alone():
    traced = jax.jit(jax.grad(loss)).trace(PARAMS, jax.random.key(3))
    ties = {
        platform: traced.lower(lowering_platforms=(platform,)).as_text().count("_barrier")
        for platform in ("cpu", "cuda", "tpu")
    }
    assert ties == {"cpu": 0, "cuda": 1, "tpu": 1}


def test_forward_over_reverse_goes_through_it():
    tangent = {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)}
    key = jax.random.key(3)
    with cpu.tuning(False):
        _, moved = jax.jvp(lambda params: jax.grad(loss)(params, key), (PARAMS,), (tangent,))
    noise = jax.random.normal(key, (4, 3))
    want = np.asarray(-(noise**2) * jnp.sin(PARAMS["kernel"] * noise))
    np.testing.assert_allclose(moved["kernel"], want, rtol=1e-5, atol=1e-6)
