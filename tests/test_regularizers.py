"""Dropout, drop path, Shake-Shake and ShakeDrop under the penalty: one set of draws for both
passes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnpcli.gnp import global_norm, gnp_value_and_grad
from gnpcli.gnp.trees import dot
from tests.networks import build_tiny
from tests.test_models_stack import compiled, images, weights

# Random in train mode, with the rates that they have there; the others are told apart by what
# compiles.
RANDOM = {
    "vit": {"attention_dropout": 0.2},
    "cait": {},
    "swin": {},
    "wide_resnet": {},
    "shake_shake": {},
    "pyramidnet": {},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n == "vit" else pytest.mark.slow) for n in RANDOM],
)
def test_both_passes_draw_the_same(name):
    """At a radius that moves next to nothing the two gradients are one; with other draws they are
    not.
    """
    model = build_tiny(name, **RANDOM[name])
    params, state = weights(model)

    def loss(params, key):
        logits, moved = model.apply(params, state, images(), True, key)
        return jnp.square(logits - 1).mean(), moved

    def both(params, key, other):
        mixed = gnp_value_and_grad(loss, r=1e-5, alpha=0.5, has_aux=True, with_metrics=True)
        _, _, metrics = mixed(params, key)
        grads, strange = (jax.grad(loss, has_aux=True)(params, k)[0] for k in (key, other))
        return metrics.cosine, dot(grads, strange) / (global_norm(grads) * global_norm(strange))

    same, different = compiled(both)(params, *jax.random.split(jax.random.key(0)))
    assert same > 1 - 1e-4
    assert np.abs(different) < 1 - 1e-3
