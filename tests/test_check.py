"""The finite difference against the exact Hessian-vector gradient: closed forms, regimes, verdicts,
real commands.
"""

from __future__ import annotations

import doctest
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gnpcli.measure.fidelity
from gnpcli.errors import GnpError
from gnpcli.measure.fidelity import Deviation, deviation, exact_products
from gnpcli.measure.figures import draw_fidelity
from gnpcli.measure.verdict import check, judge
from gnpcli.models.base import Model
from gnpcli.recipes.presets import resolve
from gnpcli.report.style import save
from gnpcli.terminal.screen import Screen
from tests.conftest import Gnp, fails

RADII = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]
EPSILON = float(jnp.finfo(jnp.float32).eps)


def errors(
    loss, params, radii, *, dtype="float32", gradient="finite-difference", alpha=0.8, scales=None
):
    """The deviations of `loss` at each radius, and what they are measured against."""

    def with_aux(params):
        return loss(params), None

    exact = exact_products(with_aux, scales)(params)
    measure = deviation(with_aux, dtype, gradient, scales)
    return [jax.tree.map(float, measure(r, alpha, exact, params)) for r in radii], exact


def mlp(activation, width=256, batch=64) -> tuple[Any, Any]:
    """A network of one hidden layer, its parameters, and a cross-entropy on random images."""
    keys = jax.random.split(jax.random.key(3), 3)
    images = jax.random.normal(keys[0], (batch, 16))
    labels = jnp.arange(batch, dtype=jnp.int32) % 4
    params = {
        "in": jax.random.normal(keys[1], (16, width)) / 4,
        "out": jax.random.normal(keys[2], (width, 4)) / math.sqrt(width),
    }

    def loss(params):
        log_probs = jax.nn.log_softmax(activation(images @ params["in"]) @ params["out"])
        return -jnp.mean(jnp.take_along_axis(log_probs, labels[:, None], axis=1))

    return loss, params


def test_on_a_quadratic_the_error_is_rounding_alone():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(8, 8))
    hessian, point = root @ root.T / 8 + np.eye(8), rng.normal(size=8)
    matrix = jnp.asarray(hessian, jnp.float32)
    found, exact = errors(
        lambda w: 0.5 * jnp.vdot(w, matrix @ w), jnp.asarray(point, jnp.float32), RADII
    )
    gradient = hessian @ point
    product = hessian @ gradient / np.linalg.norm(gradient)
    np.testing.assert_allclose(exact.product, product, rtol=1e-5)
    # Both gradients and the perturbed point are rounded once: a few units in the last place,
    # divided by r.
    rounding = EPSILON * (
        np.linalg.norm(gradient) + np.linalg.norm(hessian, 2) * np.linalg.norm(point)
    )
    for r, error in zip(RADII, found, strict=True):
        assert error.penalty <= 4 * rounding / (r * np.linalg.norm(product)) + 4 * EPSILON, r
    assert (
        found[0].penalty > 100 * found[3].penalty
    )  # and it is the rounding that is seen at a small r


@pytest.mark.parametrize("ascent", ["l2", "adaptive"])
def test_on_a_cubic_the_error_is_the_closed_form(ascent):
    """L = sum c w^3 / 6 has g = c w^2 / 2 and H = diag(c w); the difference is r H u + r^2 c u^2 /
    2 and no more.
    """
    rng = np.random.default_rng(1)
    c, w = rng.uniform(1, 2, 6), rng.uniform(1, 2, 6)
    weights = jnp.asarray(c, jnp.float32)
    radii, alpha = [0.1, 0.5, 2.0], 0.6
    found, _ = errors(
        lambda w: jnp.sum(weights * w**3) / 6,
        jnp.asarray(w, jnp.float32),
        radii,
        alpha=alpha,
        scales=jnp.abs if ascent == "adaptive" else None,
    )
    g = c * w**2 / 2
    stretch = w if ascent == "adaptive" else np.ones(6)
    u = stretch**2 * g / np.linalg.norm(stretch * g)
    product = c * w * u
    for r, error in zip(radii, found, strict=True):
        wrong = r**2 * c * u**2 / 2
        penalty = r * product + wrong
        np.testing.assert_allclose(
            error.penalty, np.linalg.norm(wrong) / np.linalg.norm(r * product), rtol=1e-4
        )
        mixed = alpha * np.linalg.norm(wrong) / np.linalg.norm(g + alpha * r * product)
        np.testing.assert_allclose(error.mixed, mixed, rtol=1e-4)
        cosine = penalty @ product / np.linalg.norm(penalty) / np.linalg.norm(product)
        np.testing.assert_allclose(error.cosine, cosine, rtol=1e-5)
        assert error.moved == 1


def test_on_a_smooth_network_the_error_is_of_first_order_in_r():
    radii = [0.003, 0.03]
    (small, large), _ = errors(*mlp(jnp.tanh), radii)
    slope = math.log(large.penalty / small.penalty) / math.log(10)
    assert 0.9 < slope < 1.1
    assert large.penalty < 0.1


def test_kinks_leave_an_error_that_falls_with_the_root_of_r_and_the_verdict_says_so():
    """A parabola per coordinate and a kink behind it: k kinks crossed add a jump of 1 each, unknown
    to the Hessian.
    """
    size, curvature, spread = 4096, 0.5, 1.0
    kinks = 1 + spread * (jnp.arange(size, dtype=jnp.float32) + 0.5) / size
    radii = [0.01, 0.1, 1.0]

    def loss(w):
        return jnp.sum(curvature * w**2 / 2 + jax.nn.relu(w - kinks))

    found, _ = errors(loss, jnp.ones(size), radii)
    for r, error in zip(radii, found, strict=True):
        crossed = round(
            size * r / math.sqrt(size) / spread
        )  # each coordinate moves by r / sqrt(size)
        np.testing.assert_allclose(error.penalty, math.sqrt(crossed) / (r * curvature), rtol=0.1)
    assert "kinks" in judge([found], radii, 0.1, 0.1, "float32")["verdict"]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.05)])
def test_the_exact_gradient_of_the_transform_deviates_by_rounding_alone(dtype, tolerance):
    loss, params = mlp(jnp.tanh)

    def rounded(params):
        return loss(jax.tree.map(lambda leaf: leaf.astype(dtype).astype(jnp.float32), params))

    (error,), _ = errors(rounded, params, [0.1], dtype=dtype, gradient="exact")
    assert error.penalty < tolerance


def test_a_step_below_the_spacing_of_the_compute_type_moves_no_weight():
    (in_bfloat16,), _ = errors(
        lambda w: 0.5 * jnp.vdot(w, w), jnp.ones(4), [1e-3], dtype="bfloat16"
    )
    (in_float32,), _ = errors(lambda w: 0.5 * jnp.vdot(w, w), jnp.ones(4), [1e-3])
    assert (in_bfloat16.moved, in_float32.moved) == (
        0,
        1,
    )  # a step of 5e-4 on weights of 1, spaced by 1/128


def rows(*values):
    def deviation(value: Any, one: Any = 1.0) -> Deviation:
        return Deviation(value, value / 10, one, one)

    return [[deviation(value) for value in batch] for batch in values]


SWEEP = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]
VALLEY = [0.5, 0.05, 0.01, 0.08, 0.9]


@pytest.mark.parametrize(
    ("batches", "r", "trustworthy", "parts"),
    [
        (
            [VALLEY],
            1e-2,
            [1e-3, 1e-1],
            [("from 0.001 to 0.1; the configured r = 0.01 is trustworthy (off by 1 %)")],
        ),
        ([VALLEY], 1.0, [1e-3, 1e-1], ["r = 1 is off by 90 % by curvature: take r <= 0.1"]),
        ([VALLEY], 1e-4, [1e-3, 1e-1], ["r = 0.0001 is off by 50 % by rounding: take r >= 0.001"]),
        ([VALLEY], None, [1e-3, 1e-1], ["for r from 0.001 to 0.1"]),
        # The worst batch decides, and a radius beyond a gap is not in the range around the best
        # one.
        ([VALLEY, [0.5, 0.2, 0.01, 0.01, 0.9]], 1e-2, [1e-2, 1e-1], ["from 0.01 to 0.1"]),
        ([[0.05, 0.2, 0.01, 0.01, math.nan]], 1e-4, [1e-2, 1e-1], ["is trustworthy"]),
        (
            [[4.0, 0.4, 0.2, 2.0, math.inf]],
            1e-3,
            None,
            ["nowhere within 10 %", ("off by 40 %, by rounding")],
        ),
        ([[4.0, 0.4, 0.2, 2.0, math.inf]], 1e-1, None, ["off by 2 times its length, by curvature"]),
        ([[4.0, 0.4, 0.2, 2.0, math.inf]], 1.0, None, ["off by infinity, too large a step"]),
        ([[32.0, 10.0, 3.2, 1.1, 1.0]], 1e-2, None, ["off by 3.2 times its length", "kinks"]),
    ],
)
def test_the_verdict_names_range_cause_and_remedy(batches, r, trustworthy, parts):
    found = judge(rows(*batches), SWEEP, r, 0.1, "float32")
    assert found["trustworthy"] == trustworthy
    for part in parts:
        assert part in found["verdict"]
    assert [row["r"] for row in found["radii"] if row["is_configured"]] == (
        [] if r is None else [r]
    )
    assert all(row["penalty"] is None or math.isfinite(row["penalty"]) for row in found["radii"])


def tiny_model(config, spec):
    """A network of one layer with a heavy dropout, so that a pass with draws of its own would be
    seen at once.
    """

    def init(key, image_shape):
        return {"w": jax.random.normal(key, (math.prod(image_shape), spec.num_classes)) / 8}, {}

    def apply(params, state, images, train, key):
        flat = images.reshape(images.shape[0], -1)
        kept = jax.random.bernoulli(key, 0.5, flat.shape)
        logits = jnp.where(kept, flat, jnp.zeros_like(flat)) @ params["w"].astype(
            config.train.dtype
        )
        return jnp.tanh(logits).astype(jnp.float32), state

    return Model(init, apply)


def test_all_passes_and_types_see_the_same_batch_and_the_same_dropout(monkeypatch, tmp_path):
    monkeypatch.setattr(gnpcli.measure.fidelity, "build_for", tiny_model)
    config = resolve(None, ["data.batch_size=32", "gr.r=0.02", "gr.alpha=0.5"])
    result = check(
        config,
        None,
        radii=[1e-3, 1e-2, 1e-1],
        dtypes=["bfloat16", "float32"],
        batches=3,
        threshold=0.2,
        screen=Screen(quiet=True),
    )
    assert (result["r"], result["alpha"], len(result["batches"])) == (0.02, 0.5, 3)
    low, full = result["types"]
    assert (low["dtype"], full["dtype"], full["exact"]) == ("bfloat16", "float32", None)
    assert low["exact"]["worst_penalty"] < 0.1
    one, two, *_ = full["radii"]
    assert two["r"] == 0.01
    assert one["worst_penalty"] < 0.01  # other draws, or another batch, would be an error of 1 / r
    assert 0.9 < math.log10(two["penalty"] / one["penalty"]) < 1.1
    assert all(row["penalty"] <= row["worst_penalty"] for row in full["radii"])
    json.dumps(result, allow_nan=False)
    save(draw_fidelity(result), tmp_path / "errors.svg")
    drawn = (tmp_path / "errors.svg").read_text()
    assert all(text in drawn for text in ("float32", "bfloat16", "configured r = 0.02", "20 %"))


def test_a_batch_without_a_gradient_is_an_error_that_says_so(monkeypatch):
    flat = Model(
        lambda key, shape: ({"w": jnp.ones(2)}, {}),
        lambda p, s, x, t, k: (jnp.zeros((x.shape[0], 10)), s),
    )
    monkeypatch.setattr(gnpcli.measure.fidelity, "build_for", lambda config, spec: flat)
    with pytest.raises(GnpError, match="the gradient is zero on training batch 0"):
        check(
            resolve(None),
            None,
            radii=[0.1],
            dtypes=["float32"],
            batches=1,
            threshold=0.1,
            screen=Screen(quiet=True),
        )


def test_doctests():
    assert doctest.testmod(gnpcli.measure.fidelity).failed == 0


@pytest.mark.slow
def test_a_preset_is_checked_on_its_own_batches(gnp: Gnp, tmp_path):
    sweep = (
        "--r-min",
        "1e-3",
        "--r-max",
        "1",
        "--per-decade",
        "1",
        "--dtypes",
        "float32",
        "--batches",
        "2",
    )
    done = gnp(
        "check", *sweep, "--batch-size", "16", "--set", "gr.r=0.02", "--json", "--out", "errors.svg"
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["model"], result["batch_size"], result["step"], len(result["batches"])) == (
        "vit-nano",
        16,
        0,
        2,
    )
    (kind,) = result["types"]
    assert [row["r"] for row in kind["radii"]] == [0.001, 0.01, 0.02, 0.1, 1.0]
    small, *_ = kind["radii"]
    slope = math.log10(kind["radii"][1]["penalty"] / small["penalty"])
    assert small["is_trustworthy"]
    assert 0.8 < slope < 1.2  # of first order, on a real network and real images
    assert small["cosine"] > 0.99
    assert (tmp_path / "errors.svg").read_text().startswith("<?xml")


@pytest.mark.slow
def test_a_run_is_checked_from_its_checkpoint_on(gnp: Gnp, tmp_path):
    assert gnp("train", "--max-steps", "3", "--quiet", "--run-dir", "run").returncode == 0
    sweep = (
        "--r-min",
        "0.01",
        "--r-max",
        "0.1",
        "--per-decade",
        "1",
        "--batches",
        "1",
        "--batch-size",
        "8",
    )
    done = gnp("check", "run", *sweep, "--out", "errors.png")
    assert done.returncode == 0, done.stderr
    assert "from step 3" in done.stdout
    assert "float32: the finite difference is" in done.stdout
    assert "bfloat16: the finite difference is" in done.stdout
    assert (tmp_path / "errors.png").read_bytes().startswith(b"\x89PNG")
    fails(gnp("check", "run", "--set", "model.name=vit-ti"), "run", "trained", "preset")


@pytest.mark.parametrize(
    ("arguments", "status", "part"),
    [
        (["--dtypes", "float16"], 2, "float16"),
        (["--r-min", "1", "--r-max", "0.1"], 2, "--r-min"),
        (["--threshold", "0"], 2, "--threshold"),
        (["--out", "errors.gif"], 1, "errors.gif"),
        (["--out", "nowhere/errors.png"], 1, "nowhere"),
        (["vit-nano-digit"], 1, "'vit-nano-digits'"),
        (["--set", "gr.r=-1"], 1, "gr.r"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_loaded(gnp: Gnp, arguments, status, part):
    done = gnp("check", *arguments)
    assert done.returncode == status, done.stderr
    assert part in done.stderr
    assert "Traceback" not in done.stderr
