"""PyramidNet, ShakeDrop and Shake-Shake: both networks against NumPy written from the papers, and
the shaking: expectation, draws and gradients."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gnpcli.devices.mesh import make_mesh
from gnpcli.gnp import global_norm, gnp_value_and_grad
from gnpcli.models.base import count_parameters
from gnpcli.models.families import pyramidnet, shake_shake
from gnpcli.models.families.pyramidnet import PyramidNet, bottleneck_widths
from gnpcli.models.families.shake_shake import ShakeShake
from gnpcli.models.layers.dense import DTYPES
from gnpcli.models.layers.shake import Factors, linear_decay, scale, shake_drop
from gnpcli.models.layers.shake import shake_shake as shake_shake_factors
from gnpcli.recipes.presets import resolve
from gnpcli.step.gradient import make_value_and_grad
from gnpcli.step.parts import build_parts
from tests.networks import build
from tests.test_steps import FixedFeed

CIFAR = (32, 32, 3)
# Compiling is what these tests spend their time on; unoptimised code compiles in half of it.
UNOPTIMISED = {"xla_backend_optimization_level": 0}


def of_block(factors: Factors, index: int) -> Factors:
    """Return the factors ``[B]`` of one block."""
    return jax.tree.map(lambda leaf: leaf[index], factors)


def pyramid_model(depth, widening, shape=CIFAR, num_classes=10, dtype="float32", **options):
    shakes = options.get("drop_path") is not None
    if not shakes:
        options.pop("drop_path", None)
    name = "pyramidnet-164-48-shakedrop" if shakes else "pyramidnet-164-48"
    return of_family(
        name, {"depth": depth, "widening": widening}, shape, num_classes, dtype, options
    )


def shake_shake_model(depth, width, shape=CIFAR, num_classes=10, dtype="float32", **options):
    sizes = {"depth": depth, "width": width}
    return of_family("shake-shake-26-2x96d", sizes, shape, num_classes, dtype, options)


def of_family(name, sizes, shape, num_classes, dtype, options):
    size, _, channels = shape
    images = {"image_size": size, "channels": channels, "num_classes": num_classes}
    return build(name, sizes, dtype=dtype, **images, **options)


def shapes_of(model, shape=CIFAR):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), shape))


def randomised(tree, seed=0):
    """Replace every array, so that no zero of the initialisation hides a mistake; variances stay
    positive.
    """
    rng = np.random.default_rng(seed)

    def draw(leaf):
        if leaf.ndim == 1:
            return rng.uniform(0.3, 0.9, leaf.shape).astype(np.float32)
        return (rng.normal(size=leaf.shape) * math.sqrt(2 / math.prod(leaf.shape[:-1]))).astype(
            np.float32
        )

    return jax.tree.map(draw, tree)


def images_of(shape, batch=4, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, *shape)).astype(np.float32)


def compiled(model):
    return jax.jit(model.apply, static_argnames="train", compiler_options=UNOPTIMISED)


@pytest.fixture(params=["pyramidnet", "shakeshake"])
def family(request):
    return request.param


# --- sizes


def test_shake_shake_sizes_of_the_paper():
    for width, millions in ((32, 2.9), (64, 11.7)):
        assert round(count_parameters(shake_shake_model(26, width), CIFAR) / 1e6, 1) == millions


def test_pyramid_widths_end_where_the_paper_says():
    """Table of results: the last block's output has 4 (16 + widening) channels, never fewer."""
    for *size, features in ((164, 48, 256), (164, 270, 1144), (200, 240, 1024), (272, 200, 864)):
        widths = bottleneck_widths(*size)
        assert 4 * widths[-1] == features
        assert len(widths) == (size[0] - 2) // 3
        assert all(
            b - a in (math.floor(size[1] / len(widths)), math.ceil(size[1] / len(widths)))
            for a, b in zip([16, *widths], widths, strict=False)
        )
    assert bottleneck_widths(11, 2) == [17, 17, 18]
    assert bottleneck_widths(20, 3) == [17, 17, 18, 18, 19, 19]  # 16.5 becomes 17


@pytest.mark.parametrize("depth", [2, 100, 12])
def test_depth_is_checked(depth):
    with pytest.raises(ValueError, match=f"9 n \\+ 2, not {depth}"):
        pyramid_model(depth, 48)
    with pytest.raises(ValueError, match=f"6 n \\+ 2, not {depth + 1}"):
        shake_shake_model(depth + 1, 32)


# ------------------------------------------------------------------------------------- against
# NumPy, float64, loops


class NumpyNet:
    """What both papers' networks are made of; `train` normalises with the batch and moves the
    averages in `stats`.
    """

    def __init__(self, variant, train):
        self.variant, self.train = variant, train

    def norm(self, x, p, stats):
        mean, var = stats["mean"], stats["var"]
        if self.train:
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
            stats["mean"], stats["var"] = (
                0.9 * stats["mean"] + 0.1 * mean,
                0.9 * stats["var"] + 0.1 * var,
            )
        return (x - mean) / np.sqrt(var + 1e-5) * p["scale"] + p["bias"]

    def norm_relu(self, x, p, stats):
        return np.maximum(self.norm(x, p["norm"], stats["norm"]), 0)

    def conv(self, x, p, stride=1):
        """Sum over the offsets of the kernel; a 3x3 kernel is centred on the pixels that the stride
        keeps.

        The GNP papers' code puts it a pixel further where the stride is 2 and the side even.
        """
        kernel = p["kernel"]
        size = kernel.shape[0]
        late = stride == 2 and x.shape[1] % 2 == 0 and self.variant == "upstream"
        first = -(size // 2) + (1 if late and size == 3 else 0)
        rows = -(-x.shape[1] // stride)
        bordered = np.pad(x, ((0, 0), (1, 2), (1, 2), (0, 0)))
        out = np.zeros((len(x), rows, rows, kernel.shape[3]))
        for i, j in np.ndindex(size, size):
            kept = [
                slice(start, start + (rows - 1) * stride + 1, stride)
                for start in (1 + first + i, 1 + first + j)
            ]
            out += bordered[:, kept[0], kept[1]] @ kernel[i, j]
        return out

    def head(self, x, p):
        return x.mean((1, 2)) @ p["kernel"] + p["bias"]


def np_pyramid(net, params, stats, images, factors, has_stem_norm):
    """Figure 6(d) and equation 2 of arXiv 1610.02915; `factors` [L, B] multiply the branches."""
    x = net.conv(images, params["stem"])
    if has_stem_norm:
        x = net.norm(x, params["norm"], stats["norm"])
    names = sorted(name for name in params if name.startswith("group"))
    for name, factor in zip(names, factors, strict=True):
        p, s = params[name], stats[name]
        stride = 2 if name in ("group_1_block_0", "group_2_block_0") else 1
        y = net.conv(net.norm(x, p["norm_1"], s["norm_1"]), p["conv_1"])
        y = net.conv(net.norm_relu(y, p["act_2"], s["act_2"]), p["conv_2"], stride)
        y = net.conv(net.norm_relu(y, p["act_3"], s["act_3"]), p["conv_3"])
        y = net.norm(y, p["norm_4"], s["norm_4"]) * factor[:, None, None, None]
        for i, j in np.ndindex(*y.shape[1:3]):
            window = x[:, i * stride : (i + 1) * stride, j * stride : (j + 1) * stride]
            y[:, i, j, : x.shape[3]] += window.mean((1, 2))
        x = y
    return net.head(net.norm_relu(x, params["act"], stats["act"]), params["head"])


def np_shake_shake(net, params, stats, images, factors):
    """Section 2.1 of arXiv 1705.07485; `factors` [L, B] multiply the first branches."""
    x = net.norm(net.conv(images, params["stem"]), params["norm"], stats["norm"])
    names = sorted(name for name in params if name.startswith("group"))
    for name, factor in zip(names, factors, strict=True):
        p, s = params[name], stats[name]
        stride = 2 if name in ("group_1_block_0", "group_2_block_0") else 1
        activated = np.maximum(x, 0)
        if "shortcut" in p:
            shortcut = activated if net.variant == "paper" else x
            shifted = np.zeros_like(shortcut)
            if net.variant == "paper":
                shifted[:, 1:, 1:] = shortcut[:, :-1, :-1]
            else:
                shifted[:, :-1, :-1] = shortcut[:, 1:, 1:]
            halves = [
                half[:, ::stride, ::stride] @ p["shortcut"][conv]["kernel"][0, 0]
                for half, conv in ((shortcut, "conv"), (shifted, "conv_shifted"))
            ]
            x = net.norm(np.concatenate(halves, -1), p["shortcut"]["norm"], s["shortcut"]["norm"])
        for branch, share in (("branch_1", factor), ("branch_2", 1 - factor)):
            q, t = p[branch], s[branch]
            y = net.conv(
                net.norm_relu(net.conv(activated, q["conv_1"], stride), q["act"], t["act"]),
                q["conv_2"],
            )
            x = x + net.norm(y, q["norm"], t["norm"]) * share[:, None, None, None]
    return net.head(np.maximum(x, 0), params["head"])


def drawing_key(module, key):
    """The key that the network draws with, asked from Flax."""
    return module.apply({}, rngs={"dropout": key}, method=lambda m: m.make_rng("dropout"))


def small(family, blocks, variant="paper", shape=(8, 8, 3), shake_drop_rate=0.5, dtype="float32"):
    """Return a network with that many blocks, the Linen module in it, and some parameters and
    state.
    """
    options = {"num_classes": 5, "variant": variant, "dtype": DTYPES[dtype]}
    if family == "shakeshake":
        module = ShakeShake(depth=2 * blocks + 2, width=4, **options)
        model = shake_shake_model(2 * blocks + 2, 4, shape, 5, dtype, variant=variant)
    else:
        module = PyramidNet(depth=3 * blocks + 2, widening=9, shake_drop=shake_drop_rate, **options)
        model = pyramid_model(
            3 * blocks + 2, 9, shape, 5, dtype, variant=variant, drop_path=shake_drop_rate
        )
    return model, module, *randomised(shapes_of(model, shape))


def np_forward(module, params, state, images, key):
    """Logits and new state, in train mode if there is a key, with the factors that the network
    draws from it.
    """
    batch, train = len(images), key is not None
    blocks = sum(name.startswith("group") for name in params)
    drawn_with = drawing_key(module, key) if train else None
    if isinstance(module, ShakeShake):
        factors: Any = np.full((blocks, batch), 0.5)
        if train:
            factors = shake_shake_factors(drawn_with, blocks, batch, true_gradient=False).forward
    else:
        rate = module.shake_drop or 0
        factors = np.repeat(1 - rate * np.arange(1, blocks + 1)[:, None] / blocks, batch, axis=1)
        if train and rate:
            factors = shake_drop(
                drawn_with, linear_decay(rate, blocks), batch, true_gradient=False
            ).forward
    wide: tuple[Any, Any, Any, Any] = jax.tree.map(
        lambda a: np.array(a, np.float64), (params, state["batch_stats"], images, factors)
    )
    net = NumpyNet(module.variant, train)
    if isinstance(module, ShakeShake):
        return np_shake_shake(net, *wide), wide[1]
    has_stem_norm = module.variant == "paper" or module.shake_drop is not None
    return np_pyramid(net, *wide, has_stem_norm), wide[1]


# One block in a group is that with the stride and the shortcut that widens; in Shake-Shake a second
# has an identity.
@pytest.mark.parametrize(
    ("blocks", "variant", "shape", "shake_drop_rate"),
    [
        pytest.param(6, "paper", (8, 8, 3), 0.5, marks=pytest.mark.slow),
        (3, "paper", (8, 8, 3), 0.5),
        (3, "upstream", (8, 8, 3), None),
        pytest.param(3, "paper", (7, 7, 1), None, marks=pytest.mark.slow),
    ],
)
def test_equals_numpy(family, blocks, variant, shape, shake_drop_rate):
    model, module, params, state = small(family, blocks, variant, shape, shake_drop_rate)
    images, run = images_of(shape, 3), compiled(model)
    key, other = jax.random.split(jax.random.key(5))
    for train in (True, False):
        logits, moved = run(params, state, images, train=train, key=key)
        wanted, wanted_stats = np_forward(module, params, state, images, key if train else None)
        assert wanted.std() > 0.1
        np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            moved["batch_stats"],
            wanted_stats,
        )
        # The same key shakes in the same way, another one in another, and in eval mode none is
        # looked at.
        np.testing.assert_array_equal(run(params, state, images, train=train, key=key)[0], logits)
        change = np.abs(run(params, state, images, train=train, key=other)[0] - logits).max()
        is_shaking = train and (family == "shakeshake" or shake_drop_rate)
        assert change > 1e-3 if is_shaking else change == 0
        if not is_shaking:
            np.testing.assert_array_equal(
                run(params, state, images, train=train, key=None)[0], logits
            )


# --- what shakes and how


def test_shake_drop_expectation_and_rates():
    """Evaluation's factor is the mean of training's, block by block; its gate opens with p_l = 1 -
    l / (2 L).
    """
    blocks, batch = 5, 40000
    rates = linear_decay(0.5, blocks)
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    forward, backward = map(
        np.asarray, shake_drop(jax.random.key(1), rates, batch, true_gradient=False)
    )
    evaluated = shake_drop(None, rates, batch, true_gradient=False)
    for block, rate in enumerate(rates):
        is_shaken = forward[block] != 1
        error = 5 * math.sqrt(rate * (1 - rate) / batch)
        assert abs(is_shaken.mean() - rate) < error
        np.testing.assert_array_equal(backward[block] == 1, ~is_shaken)  # one gate for both passes
        for factor, low, high in (
            (forward[block][is_shaken], -1, 1),
            (backward[block][is_shaken], 0, 1),
        ):
            assert low <= factor.min() < low + 0.01
            assert high - 0.01 < factor.max() < high
            assert abs(factor.mean() - (low + high) / 2) < 5 * (high - low) / math.sqrt(
                12 * factor.size
            )
        assert abs(
            np.corrcoef(forward[block][is_shaken], backward[block][is_shaken])[0, 1]
        ) < 5 / math.sqrt(is_shaken.sum())
        mean, deviation = forward[block].mean(), forward[block].std() / math.sqrt(batch)
        assert abs(mean - float(evaluated.forward[block, 0])) < 5 * deviation
        assert float(evaluated.forward[block, 0]) == pytest.approx(1 - rate)
    gates = np.corrcoef(forward != 1)
    assert np.abs(gates - np.eye(blocks)).max() < 5 / math.sqrt(batch)
    assert (np.asarray(shake_drop(jax.random.key(1), [0.0], batch, true_gradient=False)) == 1).all()


def test_shake_shake_expectation():
    blocks, batch = 3, 40000
    draws = np.asarray(shake_shake_factors(jax.random.key(2), blocks, batch, true_gradient=False))
    assert draws.shape == (2, blocks, batch)
    assert 0 <= draws.min() < 0.001
    assert 0.999 < draws.max() < 1
    error = 5 / math.sqrt(12 * batch)
    evaluated = np.asarray(shake_shake_factors(None, blocks, batch, true_gradient=False))
    assert np.abs(draws.mean(axis=2) - evaluated[:, :, 0]).max() < error
    assert np.abs(draws.var(axis=2) - 1 / 12).max() < error
    # Forward and backward draws and those of different blocks have nothing to do with one another.
    assert np.abs(np.corrcoef(draws.reshape(-1, batch)) - np.eye(2 * blocks)).max() < 5 / math.sqrt(
        batch
    )


def test_branches_in_eval_mode_are_their_mean_in_train_mode(family):
    batch = 20000
    images = np.random.default_rng(0).normal(size=(2, 1, 6)).astype(np.float32).repeat(batch, 1)
    first, second = jnp.asarray(images)

    def combined(key):
        if family == "shakeshake":
            factors = of_block(shake_shake_factors(key, 1, batch, true_gradient=False), 0)
            return np.asarray(scale(first, factors) + scale(second, factors.complement()))
        return np.asarray(
            scale(first, of_block(shake_drop(key, [0.3], batch, true_gradient=False), 0))
        )

    trained, evaluated = combined(jax.random.key(4)), combined(None)
    error = trained.mean(axis=0) - evaluated[0]
    deviation = trained.std(axis=0) / math.sqrt(batch)
    assert (deviation > 0).all()
    assert (np.abs(error) < 5 * deviation).all()


def test_scale_multiplies_values_and_gradients_differently():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 2, 4)), jnp.float32)
    factors = Factors(jnp.array([0.5, -1.0, 1.0]), jnp.array([0.25, 0.0, 1.0]))
    values, pull = jax.vjp(lambda x, f: scale(x, f), x, factors)
    np.testing.assert_array_equal(values, x * factors.forward[:, None, None, None])
    cotangent, of_factors = pull(x + 1)
    np.testing.assert_array_equal(cotangent, (x + 1) * factors.backward[:, None, None, None])
    assert not any(leaf.any() for leaf in jax.tree.leaves(of_factors))
    half = jax.vjp(lambda x: scale(x, factors), x.astype(jnp.bfloat16))
    assert half[0].dtype == half[1](half[0])[0].dtype == jnp.bfloat16


def test_all_factors_are_drawn_at_once(family):
    """One draw for a network, before any image is looked at: the factors depend on the key and on
    sizes alone.
    """
    model, _, params, state = small(family, 3)
    run = jax.make_jaxpr(lambda p, k: model.apply(p, state, images_of((8, 8, 3)), True, k)[0])
    text = str(run(params, jax.random.key(0)))
    assert text.count("random_bits[") == 1
    assert text.index("random_bits[") < text.index("conv_general_dilated[")


def test_shake_drop_of_rate_zero_is_the_plain_network():
    (never, _, params, state), (plain, *_) = (
        small("pyramidnet", 3, shake_drop_rate=rate) for rate in (0.0, None)
    )
    assert shapes_of(never, (8, 8, 3)) == shapes_of(plain, (8, 8, 3))
    for train in (True, False):
        run = [
            jax.make_jaxpr(
                lambda p, m=m, t=train: m.apply(p, state, images_of((8, 8, 3)), t, None)
            )(params)
            for m in (never, plain)
        ]
        assert str(run[0]) == str(run[1])


# --- gradients


@pytest.mark.slow
@pytest.mark.parametrize("family", ["shakeshake", "pyramidnet"])
def test_the_clean_pass_takes_the_gradient_that_the_configuration_says(family):
    """At alpha = 1 the step is the shaken gradient at a point in the direction of the clean one:
    true or shaken.
    """
    shape, key = (8, 8, 3), jax.random.key(7)
    images, labels = images_of(shape), jnp.arange(4) % 5
    config = resolve(None, ["gr.strategy=constant", "gr.r=0.1", "gr.alpha=1"])
    mesh = make_mesh(config)
    models = {}
    for name in ("shaken", "true"):
        options = {"clean_gradient": name, "variant": "paper"}
        models[name] = (
            shake_shake_model(8, 4, shape, 5, **options)
            if family == "shakeshake"
            else pyramid_model(11, 9, shape, 5, drop_path=0.5, **options)
        )
    drawn = randomised(shapes_of(models["true"], shape))
    params, state = jax.tree.map(jnp.asarray, drawn)
    assert models["shaken"].clean_apply is None

    def of(model, alpha, r):
        parts = build_parts(config, model, FixedFeed(), mesh)
        gradient = make_value_and_grad(parts, "gnp", r=r, alpha=alpha)
        (loss, _), grads, metrics = gradient(params, state, {}, images, labels, key)
        return loss, grads, metrics

    def at(apply, point):
        def loss(params):
            logits, _ = apply(params, state, images, True, key)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        return jax.grad(loss)(point)

    @functools.partial(jax.jit, compiler_options=UNOPTIMISED)
    def everything(r, zero):
        found = {
            name: (*of(model, jnp.float32(1), r), of(model, zero, r)[1])
            for name, model in models.items()
        }
        wanted = {}
        for name, apply in (("shaken", models["true"].apply), ("true", models["true"].clean_apply)):
            clean = at(apply, params)
            scale = r / global_norm(clean)
            point = jax.tree.map(lambda w, g, scale=scale: w + scale * g, params, clean)
            wanted[name] = (clean, at(models["true"].apply, point))
        return found, wanted

    found, wanted = everything(jnp.float32(0.1), jnp.float32(0))
    assert float(found["shaken"][0]) == float(found["true"][0])
    for name in models:
        _, grads, metrics, limit = found[name]
        assert_close(grads, wanted[name][1])
        assert_close(limit, wanted[name][0])
        assert float(metrics.clean_grad_norm) == pytest.approx(
            float(global_norm(wanted[name][0])), rel=1e-4
        )
    with pytest.raises(AssertionError):
        assert_close(found["shaken"][1], found["true"][1])


@pytest.fixture(scope="module", params=["pyramidnet", "shakeshake"])
def gradients(request):
    """Gradients of a training loss on one image: shaken, true, and of a plain product.

    The factors of the last block come with them.
    """
    name, key = request.param, jax.random.key(7)
    images = jnp.asarray(images_of((16, 16, 3), 1))
    targets = images_of((5,), 1, seed=1)
    _, module, params, state = small(name, 3)

    def loss(params, module):
        variables = {"params": params, **state}
        logits, _ = module.apply(
            variables, images, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
        )
        return jnp.square(logits - targets).mean()

    def all_of(params):
        found = [
            jax.value_and_grad(loss)(params, module.clone(true_gradient=flag))
            for flag in (False, True)
        ]
        with pytest.MonkeyPatch.context() as patch:  # while JAX traces
            family = shake_shake if name == "shakeshake" else pyramidnet
            patch.setattr(
                family, "scale", lambda x, factors: x * factors.forward[:, None, None, None]
            )
            return [*found, jax.value_and_grad(loss)(params, module)]

    key_of_draws = drawing_key(module, key)
    if name == "shakeshake":
        last = of_block(shake_shake_factors(key_of_draws, 3, 1, true_gradient=False), 2)
        factors = {"branch_1": last, "branch_2": last.complement()}
    else:
        drawn = shake_drop(key_of_draws, linear_decay(0.5, 3), 1, true_gradient=False)
        last = of_block(drawn, 2)
        factors = {"conv_2": last, "act_3": last, "conv_3": last}
    return jax.jit(all_of, compiler_options=UNOPTIMISED)(params), factors


def assert_close(tree, wanted):
    """To rounding: of each array, against the largest value of all."""
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(wanted))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * largest), tree, wanted
    )


@pytest.mark.slow
def test_true_gradient_is_that_of_the_loss(gradients):
    (shaken, true, wanted), _ = gradients
    assert float(shaken[0]) == float(true[0]) == pytest.approx(float(wanted[0]), rel=1e-6)
    assert_close(true[1], wanted[1])
    with pytest.raises(AssertionError):
        assert_close(shaken[1], wanted[1])


def test_shaking_scales_the_gradient_of_a_branch_by_its_own_factor(gradients):
    """Behind the last block both gradients agree; in its branches their ratio is backward /
    forward.
    """
    (shaken, true, _), factors = gradients
    assert_close(shaken[1]["head"], true[1]["head"])
    block, true_block = (found[1]["group_2_block_0"] for found in (shaken, true))
    for name, (forward, backward) in factors.items():
        ratio = np.float32(backward[0] / forward[0])
        assert abs(ratio - 1) > 0.05
        assert_close(block[name], jax.tree.map(lambda g, ratio=ratio: g * ratio, true_block[name]))


def test_exact_gradient_of_the_penalty_sees_the_shaking():
    """`gr.gradient: exact` is the limit of the finite difference, though the gradient is that of no
    function.
    """
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(6, 5)), jnp.float32)
    w = {name: jnp.asarray(rng.normal(size=(5, 5)) / 2, jnp.float32) for name in "ab"}
    factors = of_block(shake_drop(jax.random.key(0), [1.0], 6, true_gradient=False), 0)

    def loss(w):
        return jnp.square(jnp.tanh(scale(jnp.tanh(x @ w["a"]), factors) @ w["b"])).mean()

    def penalised(gradient, r):
        mixed = gnp_value_and_grad(loss, r=r, alpha=0.1 / r, gradient=gradient)
        return jax.jit(mixed, compiler_options=UNOPTIMISED)(w)[1]

    clean = jax.grad(loss)(w)
    exact, near = penalised("exact", 0.02), penalised("finite-difference", 0.02)
    far = penalised("finite-difference", 0.04)
    errors = [
        math.sqrt(
            sum(
                float(jnp.square(a - b).sum())
                for a, b in zip(*map(jax.tree.leaves, (exact, g)), strict=True)
            )
        )
        for g in (near, far, clean)
    ]
    assert errors[0] < 0.02 * errors[2]
    assert errors[0] < 0.6 * errors[1]


def test_bfloat16_is_close_and_keeps_float32_outside(family):
    model, module, params, state = small(family, 3, dtype="bfloat16")
    images, key = images_of((8, 8, 3)), jax.random.key(0)
    logits, moved = compiled(model)(params, state, images, train=True, key=key)
    wanted, _ = np_forward(module, params, state, images, key)
    assert 1e-5 < np.abs(logits - wanted).max() / np.abs(wanted).max() < 0.1
    grads = jax.eval_shape(
        jax.grad(lambda p: model.apply(p, state, images, True, key)[0].sum()), params
    )
    evaluated = jax.eval_shape(lambda: model.apply(params, state, images, False, None))
    leaves = jax.tree.leaves((logits, moved, grads, evaluated, params, state))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}
    text = str(jax.make_jaxpr(lambda p: model.apply(p, state, images, True, key)[0])(params))
    convolutions = [line for line in text.splitlines() if "conv_general_dilated[" in line]
    assert convolutions
    assert all("bf16" in line for line in convolutions)
