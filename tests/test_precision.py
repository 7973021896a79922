"""bfloat16 as compute type.

What stays float32 in every family, what the direction loses, and what a run says of it.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from gnpcli.config.schema import DataConfig
from gnpcli.data.registry import load_dataset
from gnpcli.engine.train import train
from gnpcli.gnp import gnp_value_and_grad
from gnpcli.models.registry import MODELS
from gnpcli.recipes.presets import resolve
from gnpcli.step import precision
from gnpcli.step.losses import cross_entropy
from gnpcli.step.precision import half_ulp, lost_share
from tests.networks import build
from tests.trees import same_structure

ONE_OF_EACH = sorted({entry.module: name for name, entry in reversed(MODELS.items())}.values())
# Tracing two passes with their gradients takes seconds, of the deepest half a minute.
QUICK = ("vit-nano", "vgg16", "wrn-16-4")
TRACED = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ONE_OF_EACH
]
BFLOAT16 = jnp.dtype(jnp.bfloat16)
NARROW_PRODUCTS = {"dot_general", "conv_general_dilated"}
WIDE = {"exp", "rsqrt", "log", "sqrt"}
"""Softmax, normalisation and norms are made of these."""


@functools.cache
def traced(name):
    """Trace a GNP gradient of a member of a family in bfloat16.

    Returns shapes of what goes in and comes out, and the jaxpr.
    """
    model = build(name, dtype="bfloat16")
    params, state = jax.eval_shape(lambda: model.init(jax.random.key(0), (32, 32, 3)))
    points = []

    def loss(params, state, images, labels, key):
        points.append(params)
        logits, state = model.apply(params, state, images, True, key)
        return jnp.mean(cross_entropy(logits, labels)), (logits, state)

    gradient = gnp_value_and_grad(loss, r=0.1, alpha=0.8, has_aux=True, with_metrics=True)
    images, labels = (
        jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32),
        jax.ShapeDtypeStruct((2,), jnp.int32),
    )
    arguments = params, state, images, labels, jax.eval_shape(lambda: jax.random.key(0))
    jaxpr, out = jax.make_jaxpr(gradient, return_shape=True)(*arguments)
    return params, state, points, out, jaxpr.jaxpr


def equations(jaxpr, platform, times=1):
    """Yield each equation that runs on a platform, and how often it runs."""
    for equation in jaxpr.eqns:
        yield equation, times
        inner_times = times * equation.params["length"] if is_scan(equation) else times
        for value in parameters(equation, platform):
            for inner in value if isinstance(value, list | tuple) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner, platform, inner_times)


def is_scan(equation):
    return equation.primitive.name == "scan"


def parameters(equation, platform):
    """Return the parameters of an equation: of a choice between platforms, one branch alone."""
    platforms = equation.params.get("branches_platforms")
    if platforms is None:
        return list(equation.params.values())
    chosen = [
        branch
        for branch, names in zip(equation.params["branches"], platforms, strict=True)
        if names is None or platform in names  # None are those that no branch before it names
    ]
    return chosen[:1]


def dtypes(tree):
    return {np.dtype(leaf.dtype) for leaf in jax.tree.leaves(tree)}


@pytest.mark.parametrize("name", TRACED)
def test_everything_but_the_layers_is_float32(name):
    params, state, points, out, _ = traced(name)
    ((loss, (logits, new_state)), grads, metrics) = out
    wide = {np.dtype(np.float32)}
    assert len(points) == 2
    for tree in (params, *points, grads, loss, logits, metrics):
        assert dtypes(tree) == wide
    assert dtypes((state, new_state)) <= wide
    assert same_structure(new_state, state)
    for optimizer in (optax.sgd(0.1, momentum=0.9), optax.adamw(1e-3), optax.rmsprop(1e-3)):
        moments = [
            leaf for leaf in jax.tree.leaves(jax.eval_shape(optimizer.init, params)) if leaf.ndim
        ]
        assert dtypes(moments) == wide


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
@pytest.mark.parametrize("name", TRACED)
def test_layers_compute_in_bfloat16_softmax_and_norms_in_float32(name, platform):
    *_, jaxpr = traced(name)
    found = list(equations(jaxpr, platform))
    sizes = {BFLOAT16: 0, np.dtype(np.float32): 0}
    for equation, times in found:
        if equation.primitive.name in NARROW_PRODUCTS:
            left, right = (variable.aval for variable in equation.invars[:2])
            assert left.dtype == right.dtype
            sizes[np.dtype(left.dtype)] += times * flops(equation)
    # The head, talking heads before the softmax, and means are float32; they are little of the
    # work.
    assert sizes[BFLOAT16] > 0.95 * sum(sizes.values())
    for equation, _ in found:
        if equation.primitive.name in WIDE:
            assert equation.invars[0].aval.dtype != BFLOAT16, equation


def flops(equation):
    out = math.prod(equation.outvars[0].aval.shape)
    left = equation.invars[0].aval.shape
    if equation.primitive.name == "dot_general":
        (contracting, _), _ = equation.params["dimension_numbers"]
        return out * math.prod(left[axis] for axis in contracting)
    kernel = equation.invars[1].aval.shape
    spec = equation.params["dimension_numbers"].rhs_spec
    return out * math.prod(kernel[axis] for axis in spec[1:])


SMALL: dict[str, tuple[str, dict[str, int], dict[str, Any]]] = {
    "vit": ("vit-ti", {"dim": 32, "depth": 2, "heads": 2, "mlp": 64}, {"patch_size": 2}),
    "wide_resnet": ("wrn-16-4", {"depth": 10, "width": 1}, {"variant": "paper"}),
}


def gradients_of_trained(family):
    """GNP gradients, by compute type, of a small network after 100 steps of SGD on digits."""
    dataset = load_dataset(DataConfig(name="digits"))
    images = (
        dataset.train.images.astype(np.float32) / 255 - dataset.spec.mean[0]
    ) / dataset.spec.std[0]
    images, labels = jnp.asarray(images), jnp.asarray(dataset.train.labels)
    name, sizes, options = SMALL[family]
    models = {
        dtype: build(name, sizes, image_size=8, channels=1, dtype=dtype, **options)
        for dtype in ("float32", "bfloat16")
    }
    model = models["float32"]

    def loss(model, params, state, images, labels):
        logits, state = model.apply(params, state, images, True, jax.random.key(0))
        return jnp.mean(cross_entropy(logits, labels)), state

    optimizer = optax.sgd(0.1, momentum=0.9)

    @jax.jit
    def step(params, state, opt_state, key):
        chosen = jax.random.choice(key, len(labels), (64,), replace=False)
        batch = images[chosen], labels[chosen]
        (value, state), grads = jax.value_and_grad(functools.partial(loss, model), has_aux=True)(
            params, state, *batch
        )
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), state, opt_state, value

    params, state = jax.jit(model.init, static_argnums=1)(jax.random.key(0), (8, 8, 1))
    opt_state, losses = optimizer.init(params), []
    for key in jax.random.split(jax.random.key(1), 100):
        params, state, opt_state, value = step(params, state, opt_state, key)
        losses.append(float(value))
    assert np.mean(losses[-10:]) < 0.5 * losses[0]
    return {
        dtype: jax.jit(
            gnp_value_and_grad(functools.partial(loss, model), r=0.05, alpha=0.8, has_aux=True)
        )(params, state, images[:128], labels[:128])[1]
        for dtype, model in models.items()
    }


def cosine(left, right):
    left, right = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (left, right)
    )
    return left @ right / (np.linalg.norm(left) * np.linalg.norm(right))


@pytest.mark.slow
@pytest.mark.parametrize("family", SMALL)
def test_the_direction_agrees_with_float32(family):
    gradients = gradients_of_trained(family)
    assert cosine(gradients["float32"], gradients["bfloat16"]) > 0.99


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32])
def test_half_an_ulp_is_where_rounding_begins(dtype):
    rng = np.random.default_rng(0)
    weights = (
        (rng.normal(size=2000) * 2.0 ** rng.integers(-6, 6, 2000)).astype(dtype).astype(np.float32)
    )
    half = np.asarray(half_ulp(jnp.asarray(weights), jnp.dtype(dtype)), np.float64)
    away = np.sign(weights)  # towards 0 the spacing halves at a power of two
    below, above = (weights + away * half * factor for factor in (0.99, 1.01))
    assert (below.astype(dtype).astype(np.float32) == weights).all()
    assert (above.astype(dtype).astype(np.float32) != weights).all()


def test_share_counts_scalars_of_the_leaves_that_move():
    params = {"a": jnp.ones(30), "b": jnp.full(10, 1e-3), "still": jnp.ones(1000)}
    steps = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1e-3), params)  # half an ulp of 1 is 2^-8
    moves = {"a": True, "b": True, "still": False}
    assert lost_share(params, steps, moves, BFLOAT16) == 0.75
    assert lost_share(params, steps, moves, jnp.dtype(jnp.float32)) == 0
    assert lost_share(params, steps, jax.tree.map(lambda _: False, moves), BFLOAT16) == 0
    assert lost_share(params, jax.tree.map(jnp.zeros_like, steps), moves, BFLOAT16) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("r", "times"), [(0.01, 1), (20.0, 0)])
def test_a_run_warns_once_of_a_perturbation_that_is_rounded_away(
    tmp_path, capsys, monkeypatch, r, times
):
    monkeypatch.setattr(precision, "EVERY_STEPS", 10)
    keys = [
        "train.dtype=bfloat16",
        "data.batch_size=16",
        f"gr.r={r}",
        "gr.alpha=0.1",
        "gr.strategy=constant",
    ]
    keys += [
        "optimizer.name=sgd",
        "optimizer.lr=0.05",
        "optimizer.weight_decay=0",
        "schedule.warmup_epochs=0",
    ]
    train(resolve(None, keys), tmp_path / "run", max_steps=21)
    lines = [line for line in capsys.readouterr().err.splitlines() if "can represent" in line]
    assert len(lines) == times
    for line in lines:
        assert line.startswith("warning: at step 10, ")
        assert (
            "% of the parameters are perturbed by less than bfloat16 can represent (r = 0.01"
            in line
        )
        assert "train.dtype=float32" in line
