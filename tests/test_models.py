"""The contract of `Model`, ViT and WideResNet: both families against NumPy forward passes written
from the papers.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnpcli.errors import ConfigError
from gnpcli.models.family import Images
from gnpcli.models.layers.dropout import dropout
from gnpcli.models.registry import MODELS, build_model, model_options
from tests.trees import same_structure

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

CIFAR = (32, 32, 3)
# Small members of the families, for what has to run: (registered model to shrink, sizes).
SMALL = {
    "vit": ("vit-ti", {"dim": 16, "depth": 2, "heads": 2, "mlp": 40}),
    "wrn": ("wrn-16-4", {"depth": 10, "width": 1}),
}


def build(name, image_shape=CIFAR, num_classes=10, dtype="float32", **options):
    images = Images(image_shape[0], image_shape[2], num_classes)
    return build_model(model_options(name, **options), images, dtype)


@pytest.fixture
def small(monkeypatch):
    for name, (model, sizes) in SMALL.items():
        monkeypatch.setitem(MODELS, name, dataclasses.replace(MODELS[model], sizes=sizes))
    return build


def images_of(image_shape, batch=4, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, *image_shape)).astype(np.float32)


def shapes_of(model, image_shape):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), image_shape))


def drawn(model, image_shape, *names):
    """Initialise, and return the parameters or statistics of those names alone: the others are not
    even compiled.
    """

    @jax.jit
    def draw():
        params, state = model.init(jax.random.key(0), image_shape)
        leaves = jax.tree_util.tree_leaves_with_path((params, state.get("batch_stats", {})))
        return {
            name: leaf
            for path, leaf in leaves
            if (name := "/".join(p.key for p in path[1:])) in names
        }

    arrays = jax.tree.map(np.asarray, draw())
    return [arrays[name] for name in names]


def compiled(model):
    return jax.jit(model.apply, static_argnames="train")


def randomised(tree, seed=0):
    """Replace every array, so that no zero of the initialisation hides a mistake; variances stay
    positive.
    """
    rng = np.random.default_rng(seed)
    leaves, structure = jax.tree.flatten(tree)
    drawn = [(0.5 + 0.3 * rng.uniform(-1, 1, leaf.shape)).astype(np.float32) for leaf in leaves]
    signed = [
        d
        if d.ndim == 1
        else ((d - 0.5) / math.sqrt(math.prod(d.shape[:-1])) * 6).astype(np.float32)
        for d in drawn
    ]
    return jax.tree.unflatten(structure, signed)


def assert_trees_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", ["vit-ti", "cait-xxs12"])
def test_patches_that_do_not_tile_the_image(name):
    match = (
        r"4 pixels .* 30 x 30 .*sizes that fit: 28, 32; "
        r"patch sizes that fit these images: 1, 2, 3, 5, 6, 10, 15, 30$"
    )
    with pytest.raises(ConfigError, match=match) as caught:
        build(name, (30, 30, 3))
    assert caught.value.key == "model.patch_size"
    with pytest.raises(ConfigError, match=r"sizes that fit: 16; patch"):
        build(name, (8, 8, 3), patch_size=16)


def test_wide_resnet_depth_is_checked(monkeypatch):
    monkeypatch.setitem(
        MODELS,
        "odd",
        dataclasses.replace(MODELS["wrn-16-4"], sizes={"depth": 18, "width": 1}),
    )
    with pytest.raises(ValueError, match="6 n \\+ 4, not 18"):
        build("odd")


# --- train, eval


@pytest.mark.parametrize(
    ("name", "option"),
    [
        (n, o)
        for n, (m, _) in SMALL.items()
        for o in MODELS[m].options.option_names()
        if "dropout" in o
    ],
)
def test_dropout_follows_the_key_in_train_mode_only(small, name, option):
    shape = (8, 8, 3)
    model = small(name, shape, **{option: 0.3})
    params, state = randomised(shapes_of(model, shape))
    apply = compiled(model)
    x, keys = images_of(shape), jax.random.split(jax.random.key(3), 2)
    first, again, other = (
        apply(params, state, x, train=True, key=key)[0] for key in (keys[0], keys[0], keys[1])
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    evals = [apply(params, state, x, train=False, key=key) for key in (*keys, None)]
    for logits, new_state in evals:
        np.testing.assert_array_equal(logits, evals[0][0])
        assert_trees_equal(new_state, state)


@pytest.mark.parametrize("name", SMALL)
def test_without_dropout_no_random_number_is_drawn(small, name):
    shape = (8, 8, 3)
    model = small(name, shape)
    params, state = randomised(shapes_of(model, shape))
    text = str(
        jax.make_jaxpr(lambda k: model.apply(params, state, images_of(shape), True, k))(
            jax.random.key(0)
        )
    )
    assert "random" not in text
    jax.eval_shape(lambda: model.apply(params, state, images_of(shape), True, None))


def test_dropout_keeps_the_rate_and_the_mean():
    for rate, size in ((0.1, 65), (0.5, 64), (0.0, 1), (1 - 1e-9, 2)):
        x = jnp.ones((64, 100, size))
        y = np.asarray(jax.jit(dropout, static_argnums=1)(x, rate, jax.random.key(1)))
        kept = max(1, round((1 - rate) * 2**16)) / 2**16
        assert set(np.unique(y)) <= {np.float32(0), np.float32(1 / kept)}
        deviation = math.sqrt(kept * (1 - kept) / y.size)
        assert abs((y != 0).mean() - kept) <= 5 * deviation
        if size == 64:  # the halves of the axis share words but no bits
            pairs = (y[..., :32] != 0) == (y[..., 32:] != 0)
            assert abs(pairs.mean() - 0.5) < 5 * 0.5 / math.sqrt(pairs.size)


def test_batch_norm_state_moves_in_train_mode_only(small):
    shape = (8, 8, 3)
    model = small("wrn", shape)
    params, state = randomised(shapes_of(model, shape))
    x = images_of(shape)
    apply = compiled(model)
    _, moved = apply(params, state, x, train=True, key=None)
    assert same_structure(moved, state)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), moved, state)))
    assert_trees_equal(apply(params, state, x, train=False, key=None)[1], state)


@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_is_close_and_keeps_parameters_and_logits_float32(small, name):
    shape = (8, 8, 3)
    full, half = small(name, shape), small(name, shape, dtype="bfloat16")
    assert shapes_of(half, shape) == shapes_of(full, shape)
    params, state = randomised(shapes_of(half, shape))
    x = images_of(shape)

    wanted, _ = compiled(full)(params, state, x, train=True, key=None)
    logits, moved = compiled(half)(params, state, x, train=True, key=None)
    assert 0 < np.abs(logits - wanted).max() < 0.05 * np.abs(wanted).max()
    evaluated = jax.eval_shape(lambda: half.apply(params, state, x, False, None))
    grads = jax.eval_shape(jax.grad(lambda p: half.apply(p, state, x, True, None)[0].sum()), params)
    leaves = jax.tree.leaves((logits, moved, evaluated, grads, params, state))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}


# --- initialisers


def test_vit_initialisation():
    dim, hidden, patch = 192, 768, 48
    attention, mlp = "block_3/attention", "block_3/mlp"
    qkv, out, up, down, up_bias, embedding, positions, *zeros = drawn(
        build("vit-ti"),
        CIFAR,
        f"{attention}/qkv_kernel",
        f"{attention}/out/kernel",
        f"{mlp}/up/kernel",
        f"{mlp}/down/kernel",
        f"{mlp}/up/bias",
        "patch_embedding/kernel",
        "positions",
        f"{attention}/qkv_bias",
        f"{attention}/out/bias",
        "patch_embedding/bias",
        "cls",
        "head/kernel",
        "head/bias",
    )
    for kernel, fans in [(p, 2 * dim) for p in (*np.split(qkv, 3, axis=1), out)] + [
        (p, dim + hidden) for p in (up, down)
    ]:
        limit = math.sqrt(6 / fans)
        assert 0.99 * limit < np.abs(kernel).max() <= limit * (1 + 1e-6)
        assert abs(kernel.std() - limit / math.sqrt(3)) < 0.03 * limit
    assert abs(up_bias.std() / 1e-6 - 1) < 0.1
    assert abs(embedding.std() * math.sqrt(patch) - 1) < 0.03
    assert abs(positions.std() / 0.02 - 1) < 0.03
    assert not any(zero.any() for zero in zeros)


def test_wide_resnet_initialisation():
    kernel, head, head_bias, scale, mean, var = drawn(
        build("wrn-16-4", num_classes=25),
        CIFAR,
        "group_1_block_0/conv_1/kernel",
        "head/kernel",
        "head/bias",
        "act/norm/scale",
        "act/norm/mean",
        "act/norm/var",
    )
    assert kernel.shape == (3, 3, 64, 128)
    assert abs(kernel.std() / math.sqrt(2 / (9 * 128)) - 1) < 0.02
    assert 0.19 < np.abs(head).max() <= 0.2 * (1 + 1e-6)
    assert abs(head.mean()) < 0.01
    assert not head_bias.any()
    assert not mean.any()
    assert (scale == 1).all()
    assert (var == 1).all()


# ------------------------------------------------------------------------------------- against
# NumPy, float64, loops


def np_layer_norm(x, p):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def np_vit(params, images, patch, heads):
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    out = []
    for image in images.astype(np.float64):
        height, width, _ = image.shape
        tokens = [p["cls"][0, 0]]
        for i in range(0, height, patch):
            for j in range(0, width, patch):
                pixels = image[i : i + patch, j : j + patch].ravel()
                tokens.append(
                    pixels @ p["patch_embedding"]["kernel"] + p["patch_embedding"]["bias"]
                )
        x = np.stack(tokens) + p["positions"][0]
        dim = x.shape[1]
        for index in range(sum(name.startswith("block_") for name in p)):
            b = p[f"block_{index}"]
            y = np_layer_norm(x, b["ln_1"])
            q, k, v = np.split(
                y @ b["attention"]["qkv_kernel"] + b["attention"]["qkv_bias"], 3, axis=1
            )
            parts = []
            for h in range(heads):
                s = slice(h * dim // heads, (h + 1) * dim // heads)
                weights = np.exp(q[:, s] @ k[:, s].T / math.sqrt(dim // heads))
                parts.append(weights / weights.sum(1, keepdims=True) @ v[:, s])
            x = (
                x
                + np.concatenate(parts, 1) @ b["attention"]["out"]["kernel"]
                + b["attention"]["out"]["bias"]
            )
            y = np_layer_norm(x, b["ln_2"]) @ b["mlp"]["up"]["kernel"] + b["mlp"]["up"]["bias"]
            y = 0.5 * y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
            x = x + y @ b["mlp"]["down"]["kernel"] + b["mlp"]["down"]["bias"]
        out.append(np_layer_norm(x, p["ln"])[0] @ p["head"]["kernel"] + p["head"]["bias"])
    return np.stack(out)


@pytest.mark.parametrize(("shape", "patch"), [((8, 8, 3), 4), ((6, 6, 1), 2)])
@pytest.mark.parametrize("train", [True, False])
def test_vit_equals_numpy(small, shape, patch, train):
    model = small("vit", shape, patch_size=patch)
    params, state = randomised(shapes_of(model, shape))
    x = images_of(shape)
    logits, _ = compiled(model)(params, state, x, train=train, key=None)
    wanted = np_vit(params, x, patch, heads=SMALL["vit"][1]["heads"])
    assert wanted.std() > 0.1
    np.testing.assert_allclose(logits, wanted, rtol=2e-5, atol=2e-5)


def np_conv(x, kernel, stride, before):
    """Convolution by its definition; `before` rows and columns of zeros in front, as many behind as
    are needed.
    """
    size = kernel.shape[0]
    rows = -(-x.shape[1] // stride)
    padded = np.pad(x, ((0, 0), (before, size), (before, size), (0, 0)))
    out = np.zeros((x.shape[0], rows, rows, kernel.shape[3]))
    for i in range(rows):
        for j in range(rows):
            window = padded[:, i * stride : i * stride + size, j * stride : j * stride + size]
            out[:, i, j] = np.tensordot(window, kernel, axes=3)
    return out


def np_wide_resnet(params, state, images, depth, variant, train):
    p, stats = jax.tree.map(lambda a: np.asarray(a, np.float64), (params, state["batch_stats"]))

    def act(x, p, stats):
        p, s = p["norm"], stats["norm"]
        mean, var = s["mean"], s["var"]
        if train:
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
            s["mean"], s["var"] = 0.9 * s["mean"] + 0.1 * mean, 0.9 * s["var"] + 0.1 * var
        return np.maximum((x - mean) / np.sqrt(var + 1e-5) * p["scale"] + p["bias"], 0)

    x = np_conv(images.astype(np.float64), p["stem"]["kernel"], 1, 1)
    for group in range(3):
        for index in range((depth - 4) // 6):
            b, s = p[f"group_{group}_block_{index}"], stats[f"group_{group}_block_{index}"]
            stride = 2 if group and not index else 1
            # XLA's SAME: of the zeros needed, the smaller half goes in front.
            needed = (-(-x.shape[1] // stride) - 1) * stride + 3 - x.shape[1]
            before = needed // 2 if variant == "upstream" else 1
            y = act(x, b["act_1"], s["act_1"])
            z = act(np_conv(y, b["conv_1"]["kernel"], stride, before), b["act_2"], s["act_2"])
            z = np_conv(z, b["conv_2"]["kernel"], 1, 1)
            if variant == "paper" and "shortcut" in b:
                x = np_conv(y, b["shortcut"]["kernel"], stride, 0)
            elif variant == "upstream" and x.shape[3] != z.shape[3]:
                x = y if group == 0 else x
                pooled = np.zeros_like(z)
                for i in range(z.shape[1]):
                    for j in range(z.shape[2]):
                        window = x[:, i * stride : (i + 1) * stride, j * stride : (j + 1) * stride]
                        pooled[:, i, j, : x.shape[3]] = window.mean((1, 2))
                x = pooled
            x = x + z
    x = act(x, p["act"], stats["act"]).mean((1, 2))
    return x @ p["head"]["kernel"] + p["head"]["bias"], {"batch_stats": stats}


@pytest.mark.parametrize("variant", ["paper", "upstream"])
@pytest.mark.parametrize("shape", [(8, 8, 3), (9, 9, 1)])
@pytest.mark.parametrize("train", [True, False])
def test_wide_resnet_equals_numpy(small, monkeypatch, variant, shape, train):
    monkeypatch.setitem(
        MODELS, "wrn", dataclasses.replace(MODELS["wrn"], sizes={"depth": 16, "width": 2})
    )
    model = small("wrn", shape, variant=variant)
    params, state = randomised(shapes_of(model, shape))
    x = images_of(shape)
    logits, moved = compiled(model)(params, state, x, train=train, key=None)
    wanted, wanted_state = np_wide_resnet(params, state, x, 16, variant, train)
    assert wanted.std() > 0.1
    np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), moved, wanted_state
    )


@pytest.mark.parametrize("shape", [(28, 28, 1), (11, 11, 2)])
@pytest.mark.parametrize("variant", ["paper", "upstream"])
def test_wide_resnet_takes_any_image(shape, variant):
    model = build("wrn-16-4", shape, variant=variant)
    logits, _ = jax.eval_shape(
        lambda x: model.apply(*model.init(jax.random.key(0), shape), x, True, None),
        images_of(shape),
    )
    assert logits.shape == (4, 10)


def test_models_have_forward_over_reverse_derivatives(small):
    """`gr.gradient: exact` differentiates the gradient forward: no layer may define a reverse rule
    alone.
    """
    shape = (8, 8, 1)
    for name in SMALL:
        model = small(name, shape, dropout=0.1)
        params, state = randomised(shapes_of(model, shape))

        def loss(params, model=model, state=state):
            return jnp.square(
                model.apply(params, state, images_of(shape), True, jax.random.key(0))[0]
            ).mean()

        _, product = jax.eval_shape(
            lambda p, loss=loss: jax.jvp(jax.grad(loss), (p,), (p,)), params
        )
        assert same_structure(product, params)
