"""The transform against closed forms, the exact Hessian-vector gradient and optax's SAM."""

from __future__ import annotations

import doctest
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from gnpcli import gnp_value_and_grad, penalize, perturbation_scales
from gnpcli.gnp import ascent, global_norm, penalty, plain
from gnpcli.gnp.trees import half_squared_norm
from tests.trees import same_structure

R, ALPHA = 0.1, 0.8
GRADIENTS: tuple[Literal["finite-difference", "exact"], ...] = ("finite-difference", "exact")
MIXES = ("raw", "unit")


def quadratic(size: int = 6, seed: int = 0):
    """A loss w'Hw/2 with symmetric H over a two-leaf tree, and H and a point as float64 arrays."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(size, size))
    hessian, point = root @ root.T / size + np.eye(size), rng.normal(size=size)

    def loss(params, scale=1.0):
        w = jnp.concatenate([params["a"], params["b"].reshape(-1)])
        return 0.5 * scale * jnp.vdot(w, jnp.asarray(hessian, w.dtype) @ w)

    return loss, hessian, point


def as_tree(vector, dtype=jnp.float32):
    return {"a": jnp.asarray(vector[:2], dtype), "b": jnp.asarray(vector[2:], dtype).reshape(2, 2)}


def as_vector(tree):
    return np.concatenate(
        [np.asarray(tree["a"], np.float64), np.asarray(tree["b"], np.float64).reshape(-1)]
    )


def network(params, images, labels):
    """A smooth loss: a small network with tanh and cross-entropy; aux is the mean of the hidden
    layer.
    """
    hidden = jnp.tanh(images @ params["w1"] + params["b1"][None, :])
    logits = hidden @ params["w2"]
    loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
    return loss, {"mean": hidden.mean(axis=0)}


@pytest.fixture
def problem():
    keys = jax.random.split(jax.random.key(1), 4)
    params = {
        "w1": 0.5 * jax.random.normal(keys[0], (5, 8)),
        "b1": 0.1 * jax.random.normal(keys[1], (8,)),
        "w2": 0.5 * jax.random.normal(keys[2], (8, 3)),
    }
    images = jax.random.normal(keys[3], (16, 5))
    return params, images, jnp.arange(16, dtype=jnp.int32) % 3


def distance(left, right):
    return float(global_norm(jax.tree.map(jnp.subtract, left, right)))


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("alpha", [0.3, 0.8, 1.0])
def test_quadratic_equals_the_gradient_of_the_penalised_loss(gradient, alpha):
    loss, hessian, point = quadratic()
    g = hessian @ point
    closed_form = g + alpha * R * hessian @ g / np.linalg.norm(g)
    value, grads = gnp_value_and_grad(loss, r=R, alpha=alpha, gradient=gradient)(as_tree(point))
    np.testing.assert_allclose(as_vector(grads), closed_form, rtol=2e-6)
    np.testing.assert_allclose(value, 0.5 * point @ hessian @ point, rtol=1e-6)

    def penalised(params):
        return loss(params) + alpha * R * optax.tree.norm(jax.grad(loss)(params))

    np.testing.assert_allclose(
        as_vector(grads), as_vector(jax.grad(penalised)(as_tree(point))), rtol=5e-6
    )


def test_quadratic_in_float64_is_exact_to_rounding():
    with jax.enable_x64(True):
        loss, hessian, point = quadratic()
        g = hessian @ point
        closed_form = g + ALPHA * R * hessian @ g / np.linalg.norm(g)
        params = as_tree(point, jnp.float64)
        _, grads = jax.jit(lambda p, r: gnp_value_and_grad(loss, r=r, alpha=ALPHA)(p))(
            params, jnp.float32(0.0) + R
        )
        assert grads["a"].dtype == jnp.float64
        # r itself came in float32
        np.testing.assert_allclose(as_vector(grads), closed_form, rtol=1e-8)
        _, grads = gnp_value_and_grad(loss, r=R, alpha=ALPHA)(params)
        np.testing.assert_allclose(as_vector(grads), closed_form, rtol=1e-14)


def test_unit_mix_takes_the_clean_gradient_as_a_unit_vector():
    loss, hessian, point = quadratic()
    g = hessian @ point
    unit = g / np.linalg.norm(g)
    expected = (1 - ALPHA) * unit + ALPHA * (g + R * hessian @ unit)
    _, grads = gnp_value_and_grad(loss, r=R, alpha=ALPHA, mix="unit")(as_tree(point))
    np.testing.assert_allclose(as_vector(grads), expected, rtol=2e-6)
    assert distance(grads, gnp_value_and_grad(loss, r=R, alpha=ALPHA)(as_tree(point))[1]) > 0.1


def test_finite_difference_converges_to_exact_at_first_order(problem):
    with jax.enable_x64(True):
        params, images, labels = jax.tree.map(
            lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, problem
        )

        def penalty_error(r):
            # lambda = alpha r is held fixed, so that only the difference quotient changes with r.
            both = [
                gnp_value_and_grad(network, r=r, alpha=0.01 / r, gradient=gradient, has_aux=True)(
                    params, images, labels
                )
                for gradient in GRADIENTS
            ]
            return distance(both[0][1], both[1][1]) / 0.01

        errors = [penalty_error(r) for r in (0.08, 0.04, 0.02, 0.01)]
        ratios = np.divide(errors[:-1], errors[1:])
        assert np.all((ratios > 1.8) & (ratios < 2.2)), errors


@pytest.mark.parametrize("nesterov", [False, True])
def test_alpha_one_equals_optax_sam_in_opaque_mode(problem, nesterov):
    params, images, labels = problem

    def loss(p):
        return network(p, images, labels)[0]

    outer = optax.sgd(0.1, momentum=0.9, nesterov=nesterov)
    # Opaque SAM calls grad_fn(params, step); its adversarial step is normalised gradient ascent of
    # length rho.
    sam = contrib.sam(
        outer,
        optax.chain(contrib.normalize(), optax.sgd(R)),
        sync_period=2,
        opaque_mode=True,
        reset_state=False,
    )
    sam_params, sam_state = params, sam.init(params)
    our_params, our_state = params, outer.init(params)
    ours = gnp_value_and_grad(loss, r=R, alpha=1.0)
    for _ in range(5):
        updates, sam_state = sam.update(
            jax.grad(loss)(sam_params),
            sam_state,
            sam_params,
            grad_fn=lambda p, _: jax.grad(loss)(p),
        )
        sam_params = optax.apply_updates(sam_params, updates)
        updates, our_state = outer.update(ours(our_params)[1], our_state, our_params)
        our_params = optax.apply_updates(our_params, updates)
    assert distance(params, our_params) > 0.05
    assert distance(sam_params, our_params) < 2e-6


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize(("r", "alpha"), [(R, 0.0), (0.0, ALPHA), (0.0, 0.0)])
@pytest.mark.parametrize("is_traced", [False, True])
def test_without_strength_the_result_is_the_plain_gradient_bit_for_bit(
    problem, gradient, mix, r, alpha, is_traced
):
    params, images, labels = problem

    def both(r, alpha):
        transformed = gnp_value_and_grad(
            network, r=r, alpha=alpha, gradient=gradient, mix=mix, has_aux=True
        )
        return transformed(params, images, labels), jax.value_and_grad(network, has_aux=True)(
            params, images, labels
        )

    ours, plain = both(jnp.float32(r), jnp.float32(alpha)) if is_traced else both(r, alpha)
    for left, right in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("mix", MIXES)
def test_a_zero_gradient_has_no_direction(gradient, mix):
    loss, _, _ = quadratic()
    zero = as_tree(np.zeros(6))
    with jax.debug_nans(True):
        value, grads, metrics = gnp_value_and_grad(
            loss, r=R, alpha=jnp.float32(ALPHA), gradient=gradient, mix=mix, with_metrics=True
        )(zero)
    assert value == 0
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(grads))
    assert metrics.cosine == 0
    assert metrics.perturbed_loss == 0


def test_a_gradient_that_is_not_finite_shows_in_the_norm_and_the_result():
    def loss(w):
        return jnp.sum(jnp.log(w))

    value, grads, metrics = gnp_value_and_grad(loss, r=R, alpha=ALPHA, with_metrics=True)(
        jnp.zeros(2)
    )
    assert value == -np.inf
    assert not np.isfinite(metrics.clean_grad_norm)
    assert not np.all(np.isfinite(grads))


def test_a_perturbed_pass_that_is_not_finite_leaks_only_where_it_is_used():
    def loss(w):  # finite at 0.01, NaN at the perturbed point: its negative gradient leads across 0
        return -jnp.sum(jnp.sqrt(w))

    point = jnp.array([0.01, 0.04])
    for alpha, is_used in ((0.0, False), (0.5, True)):
        _, grads, metrics = gnp_value_and_grad(
            loss, r=jnp.float32(1), alpha=jnp.float32(alpha), with_metrics=True
        )(point)
        assert np.isnan(metrics.perturbed_loss)
        assert np.isfinite(metrics.clean_grad_norm)
        np.testing.assert_array_equal(
            grads, jax.grad(loss)(point) if not is_used else np.full(2, np.nan)
        )


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_aux_and_value_come_from_the_clean_pass_and_arguments_reach_both(problem, gradient):
    params, images, labels = problem
    (value, aux), _, metrics = gnp_value_and_grad(
        network, r=R, alpha=ALPHA, gradient=gradient, has_aux=True, with_metrics=True
    )(params, images, labels=labels)
    clean_value, clean_aux = network(params, images, labels)
    np.testing.assert_allclose(value, clean_value, rtol=1e-6)
    np.testing.assert_allclose(aux["mean"], clean_aux["mean"], rtol=1e-6)
    assert metrics.perturbed_loss > value


def test_metrics_are_those_of_the_two_passes(problem):
    params, images, labels = problem
    _, grads, metrics = gnp_value_and_grad(
        network, r=R, alpha=1.0, has_aux=True, with_metrics=True
    )(params, images, labels)
    clean = jax.grad(lambda p: network(p, images, labels)[0])(params)
    norm = optax.tree.norm(clean)
    at = jax.tree.map(lambda p, g: p + R / norm * g, params, clean)
    np.testing.assert_allclose(
        optax.tree.norm(jax.tree.map(jnp.subtract, at, params)), R, rtol=1e-5
    )
    loss, perturbed = jax.value_and_grad(lambda p: network(p, images, labels)[0])(at)
    np.testing.assert_allclose(metrics.perturbed_loss, loss, rtol=1e-5)
    np.testing.assert_allclose(metrics.clean_grad_norm, norm, rtol=1e-5)
    np.testing.assert_allclose(metrics.perturbed_grad_norm, optax.tree.norm(perturbed), rtol=1e-5)
    cosine = optax.tree.vdot(clean, perturbed) / (norm * optax.tree.norm(perturbed))
    np.testing.assert_allclose(metrics.cosine, cosine, rtol=1e-5)
    assert distance(grads, perturbed) < 1e-6


def test_metrics_of_the_exact_gradient_are_first_order_values():
    loss, hessian, point = quadratic()
    g = hessian @ point
    unit = g / np.linalg.norm(g)
    value, _, metrics = gnp_value_and_grad(
        loss, r=R, alpha=ALPHA, gradient="exact", with_metrics=True
    )(as_tree(point))
    np.testing.assert_allclose(metrics.perturbed_loss, value + R * np.linalg.norm(g), rtol=1e-6)
    np.testing.assert_allclose(
        metrics.perturbed_grad_norm, np.linalg.norm(g + R * hessian @ unit), rtol=1e-6
    )


def test_plain_has_the_same_result_type(problem):
    params, images, labels = problem
    one_pass = plain(jax.value_and_grad(network, has_aux=True), has_aux=True)(
        params, images, labels
    )
    full = gnp_value_and_grad(network, r=R, alpha=ALPHA, has_aux=True, with_metrics=True)(
        params, images, labels
    )
    assert same_structure(one_pass, full)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(one_pass)] == [
        (x.shape, x.dtype) for x in jax.tree.leaves(full)
    ]
    np.testing.assert_allclose(one_pass[2].clean_grad_norm, full[2].clean_grad_norm, rtol=1e-6)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("mix", MIXES)
def test_low_precision_parameters_keep_their_dtype_and_the_norm_is_accumulated_in_float32(
    gradient, mix
):
    def loss(w):
        return jnp.sum(jnp.square(w.astype(jnp.float32))) * 0.5

    w = jnp.ones(100_000, jnp.bfloat16)
    _, grads, metrics = gnp_value_and_grad(
        loss,
        r=jnp.float32(R),
        alpha=jnp.float32(ALPHA),
        gradient=gradient,
        mix=mix,
        with_metrics=True,
    )(w)
    assert grads.dtype == jnp.bfloat16
    assert metrics.clean_grad_norm.dtype == jnp.float32
    np.testing.assert_allclose(metrics.clean_grad_norm, np.sqrt(100_000), rtol=1e-6)


def test_traced_strength_compiles_once():
    traces = []

    def loss(w):
        traces.append(1)
        return jnp.sum(w**4)

    step = jax.jit(lambda w, r, alpha: gnp_value_and_grad(loss, r=r, alpha=alpha)(w))
    for scale in (0.0, 0.3, 1.0):
        step(jnp.ones(3), scale * R, scale * ALPHA)
    assert len(traces) == 2  # two passes, traced once each


def test_bad_arguments_are_refused():
    loss, _, _ = quadratic()
    with pytest.raises(ValueError, match="gradient must be"):
        gnp_value_and_grad(loss, r=R, alpha=ALPHA, gradient="backward")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mix must be"):
        gnp_value_and_grad(loss, r=R, alpha=ALPHA, mix="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 0"):
        gnp_value_and_grad(loss, r=-R, alpha=ALPHA)


def test_the_global_norm_is_the_same_however_leaves_are_grouped():
    rng = np.random.default_rng(0)
    shapes = [(3,), (200, 300), (1, 40_000), (), (7, 7), (32_768,), (32_767,)]
    tree = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    wide = np.concatenate([np.asarray(leaf, np.float64).reshape(-1) for leaf in tree])
    np.testing.assert_allclose(global_norm(tree), np.linalg.norm(wide), rtol=1e-6)
    assert global_norm({}) == 0


def adaptive_t(point, eta=0.01):
    """T of ASAM as a vector: leaf `a` is adaptive and `b` is not."""
    return np.concatenate([np.abs(point[:2]) + eta, np.ones(4)])


def stretched(params):
    return perturbation_scales(params, adapts={"a": True, "b": False}, eta=0.01)


def only_b(params):
    return perturbation_scales(params, perturbs={"a": False, "b": True})


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize(
    ("scales", "t_of"),
    [(stretched, adaptive_t), (only_b, lambda point: np.array([0, 0, 1, 1, 1, 1]))],
    ids=["adaptive", "subset"],
)
def test_a_shaped_ball_on_a_quadratic_equals_the_closed_form(gradient, scales, t_of):
    """ASAM, arXiv 2102.11600 equation 8, and SAM-ON: e = T^2 g / ||T g||, in float64."""
    with jax.enable_x64(True):
        loss, hessian, point = quadratic()
        g, t = hessian @ point, t_of(point)
        direction = t**2 * g / np.linalg.norm(t * g)
        value, grads, metrics = gnp_value_and_grad(
            loss, r=R, alpha=ALPHA, gradient=gradient, scales=scales, with_metrics=True
        )(as_tree(point, jnp.float64))
        np.testing.assert_allclose(
            as_vector(grads), g + ALPHA * R * hessian @ direction, rtol=1e-13
        )
        if gradient == "exact":
            np.testing.assert_allclose(
                metrics.perturbed_loss, value + R * np.linalg.norm(t * g), rtol=1e-13
            )

        def penalised(params):  # lambda ||T g|| with T held where it is
            slopes = as_tree(t, jnp.float64)
            return loss(params) + ALPHA * R * optax.tree.norm(
                jax.tree.map(jnp.multiply, slopes, jax.grad(loss)(params))
            )

        np.testing.assert_allclose(
            as_vector(grads),
            as_vector(jax.grad(penalised)(as_tree(point, jnp.float64))),
            rtol=1e-12,
        )


def test_no_step_in_the_ball_climbs_faster_than_the_direction():
    """The maximiser of <g, e> over ||T^-1 e|| <= 1, checked against random steps on the border of
    the ball.
    """
    rng = np.random.default_rng(0)
    _, hessian, point = quadratic()
    t, g = adaptive_t(point), hessian @ point
    ray, slope = ascent.steepest(as_tree(point), as_tree(g), stretched)
    direction = as_vector(ray) / float(slope)
    np.testing.assert_allclose(np.linalg.norm(direction / t), 1, rtol=1e-6)
    others = rng.normal(size=(1000, 6))
    climbs = (t * others / np.linalg.norm(others, axis=1, keepdims=True)) @ g
    assert climbs.max() < g @ direction
    np.testing.assert_allclose(g @ direction, float(slope), rtol=1e-5)


def test_parameters_out_of_the_ball_are_seen_at_their_own_values():
    seen = []

    def loss(params):
        jax.debug.callback(lambda leaf: seen.append(np.asarray(leaf)), params["a"])
        return jnp.sum(params["a"] ** 2) + jnp.sum(params["b"] ** 3)

    params = {"a": jnp.array([0.1, 0.3]), "b": jnp.array([1.0, 2.0])}
    _, grads = gnp_value_and_grad(loss, r=R, alpha=1.0, scales=only_b)(params)
    jax.effects_barrier()
    assert len(seen) == 2
    np.testing.assert_array_equal(seen[0], seen[1])
    np.testing.assert_array_equal(grads["a"], 2 * params["a"])
    assert np.all(np.asarray(grads["b"]) > 3 * np.square([1.0, 2.0]))


def test_a_zero_gradient_on_the_parameters_that_move_is_no_direction():
    def loss(params):
        return jnp.sum(params["a"] ** 2) + 0 * jnp.sum(params["b"])

    params = {"a": jnp.array([0.1, 0.3]), "b": jnp.ones(2)}
    with jax.debug_nans(True):
        _, grads = gnp_value_and_grad(loss, r=R, alpha=1.0, mix="unit", scales=only_b)(params)
    np.testing.assert_array_equal(grads["a"], 2 * params["a"])


@pytest.mark.parametrize("alpha", [1.0, 0.6])
def test_the_surrogate_gap_takes_out_the_orthogonal_part_of_the_clean_gradient(alpha):
    """GSAM, arXiv 2203.08065 algorithm 1 (alpha = 1), by NumPy in float64."""
    gap = 0.4
    with jax.enable_x64(True):
        loss, hessian, point = quadratic()
        g = hessian @ point
        perturbed = hessian @ (point + R * g / np.linalg.norm(g))
        unit = perturbed / np.linalg.norm(perturbed)
        orthogonal = g - (g @ unit) * unit
        expected = (1 - alpha) * g + alpha * perturbed - gap * orthogonal
        _, grads = gnp_value_and_grad(loss, r=R, alpha=alpha, surrogate_gap=gap)(
            as_tree(point, jnp.float64)
        )
        np.testing.assert_allclose(as_vector(grads), expected, rtol=1e-13)
        _, without = gnp_value_and_grad(loss, r=R, alpha=alpha)(as_tree(point, jnp.float64))
        assert abs((as_vector(grads) - as_vector(without)) @ unit) < 1e-13


def test_recomputing_the_clean_pass_changes_the_memory_and_not_the_exact_gradient(problem):
    params, images, labels = problem
    results = [
        penalize(
            jax.value_and_grad(network, has_aux=True),
            r=R,
            alpha=ALPHA,
            gradient="exact",
            recompute=recompute,
            has_aux=True,
            with_metrics=True,
        )(params, images, labels)
        for recompute in (False, True)
    ]
    for left, right in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "options", [{"scales": stretched}, {"surrogate_gap": 0.4}, {"scales": only_b}]
)
def test_variants_without_strength_are_plain_bit_for_bit(options):
    loss, _, point = quadratic()
    plain_grads = jax.grad(loss)(as_tree(point))
    for r, alpha in ((R, 0.0), (0.0, ALPHA)):
        for wrap in (float, jnp.float32):
            _, grads = gnp_value_and_grad(loss, r=wrap(r), alpha=wrap(alpha), **options)(
                as_tree(point)
            )
            np.testing.assert_array_equal(as_vector(grads), as_vector(plain_grads))


@pytest.mark.parametrize("module", [penalty, ascent])
def test_docstring_examples(module):
    found = doctest.testmod(module)
    assert found.failed == 0
    assert found.attempted > 0


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_clean_pass_of_its_own_gives_the_direction_and_its_share(gradient, recompute):
    """A value may have two gradients, as in networks that shake: here ``C w`` and ``P w``, of no
    function.
    """
    loss, _, point = quadratic()
    rng = np.random.default_rng(3)
    clean_matrix, matrix = rng.normal(size=(2, 6, 6))

    def linear(matrix):
        def value_and_grad(params):
            w = jnp.concatenate([params["a"], params["b"].reshape(-1)])
            return loss(params), as_tree(jnp.asarray(matrix, jnp.float32) @ w)

        return value_and_grad

    def mixed(alpha):
        return penalize(
            linear(matrix),
            r=R,
            alpha=alpha,
            clean=linear(clean_matrix),
            gradient=gradient,
            recompute=recompute,
            with_metrics=True,
        )(as_tree(point))

    value, grads, metrics = jax.jit(lambda: mixed(jnp.float32(ALPHA)))()
    clean = clean_matrix @ point
    perturbed = matrix @ (point + R * clean / np.linalg.norm(clean))
    np.testing.assert_allclose(
        as_vector(grads), (1 - ALPHA) * clean + ALPHA * perturbed, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(value, loss(as_tree(point)), rtol=1e-6)
    np.testing.assert_allclose(metrics.clean_grad_norm, np.linalg.norm(clean), rtol=1e-5)
    np.testing.assert_allclose(metrics.perturbed_grad_norm, np.linalg.norm(perturbed), rtol=1e-5)
    for nothing in (0.0, jnp.float32(0)):
        np.testing.assert_allclose(as_vector(mixed(nothing)[1]), clean, rtol=1e-4, atol=1e-5)


def _program(arrays: int, size: int) -> str:
    params = [jnp.full(size, float(index)) for index in range(arrays)]
    transform = gnp_value_and_grad(
        lambda leaves: 0.5 * sum(jnp.vdot(leaf, leaf) for leaf in leaves),
        r=0.1,
        alpha=0.5,
        with_metrics=True,
    )
    return str(jax.jit(transform).lower(params).compile().as_text())


def test_small_arrays_are_reduced_together():
    # The loss sums each array, in either pass; the norms and the cosine do not.
    assert _program(40, 64).count(" reduce(") < 3 * 40


def test_the_gradient_of_half_the_squared_norm_is_the_tree_and_its_derivative_the_direction():
    tree = {
        "kernel": jnp.full((2, 2), 3.0),
        "large": jnp.full(1 << 15, 0.5),
        "bias": jnp.full(2, 5.0, jnp.bfloat16),
    }
    assert float(half_squared_norm(tree)) == 18 + (1 << 12) + 25
    direction = jax.tree.map(lambda leaf: leaf + 1, tree)
    gradient, along = jax.jvp(
        jax.grad(lambda tree: 2 * half_squared_norm(tree)), (tree,), (direction,)
    )
    for got, want in ((gradient, tree), (along, direction)):
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, 2 * b), got, want)
        assert jax.tree.map(jnp.result_type, got) == jax.tree.map(jnp.result_type, tree)
