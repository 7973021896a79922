"""LookSAM's decomposition against NumPy, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gnpcli.gnp import orthogonal_component, penalize, reuse, with_gradient


def test_a_round_of_looksam_on_a_quadratic():
    """arXiv 2203.02714 algorithm 1, by NumPy in float64: a penalised step, then two that reuse its
    component.
    """
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6))
    hessian, point, r, weight, lr = (
        root @ root.T / 6 + np.eye(6),
        rng.normal(size=6),
        0.2,
        0.7,
        0.05,
    )
    with jax.enable_x64(True):
        h = jnp.asarray(hessian)
        value_and_grad = jax.value_and_grad(lambda w: (0.5 * w @ h @ w, ()), has_aux=True)
        ours, theirs = jnp.asarray(point), point
        component: Any = None
        vertical: Any = None
        for step in range(3):
            g = hessian @ theirs
            if step == 0:
                perturbed = hessian @ (theirs + r * g / np.linalg.norm(g))
                cosine = g @ perturbed / np.linalg.norm(g) / np.linalg.norm(perturbed)
                vertical = perturbed - np.linalg.norm(perturbed) * cosine * g / np.linalg.norm(g)
                theirs = theirs - lr * perturbed
                turned = penalize(with_gradient(value_and_grad), r=r, alpha=1.0, has_aux=True)
                (_, (_, clean)), grads = turned(ours)
                component = orthogonal_component(grads, clean)
                np.testing.assert_allclose(component, vertical, rtol=1e-11)
            else:
                theirs = theirs - lr * (
                    g + weight * np.linalg.norm(g) / np.linalg.norm(vertical) * vertical
                )
                grads = reuse(value_and_grad(ours)[1], component, weight)
            ours = ours - lr * grads
            np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_nothing_to_reuse_leaves_the_gradient_as_it_is():
    g = {"a": jnp.array([0.1, 0.2]), "b": jnp.array([0.3])}
    zeros = jax.tree.map(jnp.zeros_like, g)
    for component in (orthogonal_component(g, g), orthogonal_component(zeros, zeros)):
        assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(component))
        for a, b in zip(jax.tree.leaves(reuse(g, component, 0.7)), jax.tree.leaves(g), strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_component_is_orthogonal_also_where_the_two_are_nearly_equal():
    clean = jax.random.normal(jax.random.key(0), (1000,))
    other = clean + 1e-4 * jax.random.normal(jax.random.key(1), (1000,))
    component = orthogonal_component(other, clean)
    cosine = jnp.vdot(component, clean) / jnp.linalg.norm(component) / jnp.linalg.norm(clean)
    assert abs(float(cosine)) < 1e-5
    assert 0.9e-4 < float(jnp.linalg.norm(component) / jnp.linalg.norm(clean)) < 1.1e-4
