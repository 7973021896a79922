"""Swin: sizes that fit, the network against NumPy written from the paper, and what is drawn."""

import collections
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy.special import erf

from gnpcli.errors import ConfigError
from gnpcli.models.families import swin
from gnpcli.models.family import Images
from gnpcli.models.layers.dense import DTYPES
from gnpcli.models.layers.dropout import Dropout, DropPath
from gnpcli.models.layers.transformer import FORMS
from gnpcli.models.options import SwinOptions
from tests.test_models import compiled, images_of, shapes_of
from tests.trees import same_structure

TINY = {"dim": 8, "depth": 2, "heads": 1}
RATES = {"dropout": 0.0, "attention_dropout": 0.0, "drop_path": 0.0}


def build(sizes=TINY, image_size=8, num_classes=10, channels=3, dtype="float32", **options):
    own = SwinOptions(name="swin-t", **({"patch_size": 1, "window_size": 2} | options))
    return swin.FAMILY.build(sizes, own, Images(image_size, channels, num_classes), dtype)


def random_weights(shapes, seed=0):
    """Draw parameters so that no part is silent and none saturates: kernels of unit gain, scales
    around 1.
    """
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        spread = 0.3 if leaf.ndim == 1 else 1.5 / math.sqrt(leaf.shape[0])
        return (centre + spread * rng.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


# --- sizes


@pytest.mark.parametrize(
    ("size", "patch", "window", "key", "message"),
    [
        (
            32,
            4,
            7,
            "window_size",
            r"of 7 patches .* 32 x 32 .*fit: 224, 448, 672, 896; windows .*: 1, 2, 4, 8 and more",
        ),
        (
            224,
            2,
            4,
            "window_size",
            r"sizes that fit: 128, 192, 256, 320; windows that fit these images: 1, 2, 7, 14",
        ),
        (
            30,
            4,
            4,
            "patch_size",
            r"patches of 4 pixels .* 30 x 30 .*sizes that fit: 32, 64, 128, 256$",
        ),
        (28, 2, 7, "patch_size", r"sizes that fit: 112, 224, 336, 448$"),
        (4, 8, 4, "patch_size", r"sizes that fit: 64, 128, 256, 512$"),
    ],
)
def test_sizes_that_do_not_fit(size, patch, window, key, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build(image_size=size, patch_size=patch, window_size=window)
    assert caught.value.key == f"model.{key}"


@pytest.mark.parametrize("window", [3, 4, 7])
def test_sizes_fit_exactly_where_the_network_can_be_traced(window):
    for size in (4, 8, 12, 16, 24, 32, 48, 56):
        module = swin.SwinTransformer(
            **{**TINY, "depth": 1, "patch_size": 1, "window_size": window, "num_classes": 2},
            **RATES,
            form=FORMS["paper"],
            dtype=DTYPES["float32"],
        )
        image = jax.ShapeDtypeStruct((1, size, size, 1), jnp.float32)
        try:
            jax.eval_shape(
                lambda x, module=module: module.init(jax.random.key(0), x, train=False), image
            )
        except (TypeError, ZeroDivisionError):
            assert not swin.windows_fit(size, 1, window), size
        else:
            assert swin.windows_fit(size, 1, window), size


# ------------------------------------------------------------------------------------- against
# NumPy, float64, loops


def np_layer_norm(x, p):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * p[
        "scale"
    ] + p["bias"]


def np_dense(x, p):
    return x @ p["kernel"] + p["bias"]


def np_gelu(x, variant):
    if variant == "upstream":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def np_attention(x, p, heads, window, shift):
    """Attention over the whole map, of tokens whose window on the shifted plane, which has edges,
    is the same.
    """
    side, features = x.shape[0], x.shape[2]
    q, k, v = np.split(x.reshape(-1, features) @ p["qkv_kernel"] + p["qkv_bias"], 3, axis=1)
    coordinates = np.stack(
        np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1
    ).reshape(-1, 2)
    cells = (coordinates - shift) // window
    together = (cells[:, None] == cells[None]).all(-1)
    offsets = (
        np.where(together[..., None], coordinates[:, None] - coordinates[None], 0) + window - 1
    )
    answer = np.zeros_like(q)
    for h in range(heads):
        part = slice(h * features // heads, (h + 1) * features // heads)
        scores = q[:, part] @ k[:, part].T / math.sqrt(features // heads)
        scores += p["relative_positions"][offsets[..., 0], offsets[..., 1], h]
        weights = np.where(together, np.exp(scores), 0)
        answer[:, part] = weights / weights.sum(1, keepdims=True) @ v[:, part]
    return np_dense(answer, p["out"]).reshape(x.shape)


def np_swin(params, images, depths, heads, patch, window, variant):
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    out = []
    for image in images.astype(np.float64):
        side = image.shape[0] // patch
        x = np.stack(
            [
                [
                    image[i * patch : (i + 1) * patch, j * patch : (j + 1) * patch].ravel()
                    for j in range(side)
                ]
                for i in range(side)
            ]
        )
        x = np_layer_norm(
            np_dense(x, params["patch_embedding"]["projection"]), params["ln_patches"]
        )
        for stage, depth in enumerate(depths):
            if stage:
                p = params[f"merge_{stage}"]
                quarters = [x[i::2, j::2] for i in range(2) for j in range(2)]
                x = np_layer_norm(np.concatenate(quarters, -1), p["norm"]) @ p["kernel"]
            side = x.shape[0]
            for index in range(depth):
                p = params[f"stage_{stage}_block_{index}"]
                w, shift = (window, window // 2 * (index % 2)) if side > window else (side, 0)
                x = x + np_attention(
                    np_layer_norm(x, p["ln_1"]), p["attention"], heads * 2**stage, w, shift
                )
                y = np_gelu(np_dense(np_layer_norm(x, p["ln_2"]), p["mlp"]["up"]), variant)
                x = x + np_dense(y, p["mlp"]["down"])
        out.append(np_dense(np_layer_norm(x, params["ln"]).mean((0, 1)), params["head"]))
    return np.stack(out)


# Windows shifted in two stages and shrunk in one; windows of an odd side.
@pytest.mark.parametrize(
    ("size", "patch", "window", "variant"),
    [pytest.param(16, 1, 4, "paper", marks=pytest.mark.slow), (48, 2, 3, "upstream")],
)
def test_swin_equals_numpy(size, patch, window, variant):
    model = build(
        image_size=size, channels=2, patch_size=patch, window_size=window, variant=variant
    )
    shape = (size, size, 2)
    params, state = random_weights(shapes_of(model, shape))
    images = images_of(shape, batch=2)
    logits, _ = compiled(model)(params, state, images, train=False, key=None)
    wanted = np_swin(params, images, (2, 2, 2, 2), 1, patch, window, variant)
    assert wanted.std(axis=0).mean() > 0.05
    np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", [1, 2, 5])
def test_relative_bias_by_its_definition(side):
    table = np.random.default_rng(0).normal(size=(2 * side - 1, 2 * side - 1, 3)).astype(np.float32)
    bias = np.asarray(swin.relative_bias(jnp.asarray(table))).reshape(3, side, side, side, side)
    for y, x, to_y, to_x in np.ndindex(side, side, side, side):
        np.testing.assert_array_equal(
            bias[:, y, x, to_y, to_x], table[y - to_y + side - 1, x - to_x + side - 1]
        )


def test_no_gradient_is_a_scatter():
    """A GPU adds the parts of a scatter in any order, so that two equal runs would differ."""
    model = build()
    params, state = shapes_of(model, (8, 8, 3))

    def loss(params, images):
        return model.apply(params, state, images, True, None)[0].sum()

    text = str(jax.make_jaxpr(jax.grad(loss))(params, images_of((8, 8, 3))))
    assert "scatter" not in text


# --- initialisation


@pytest.mark.parametrize("variant", ["paper", "upstream"])
def test_initialisation(variant):
    dim, patch = 96, 4
    model = build(
        {"dim": dim, "depth": 2, "heads": 3},
        32,
        50,
        patch_size=patch,
        window_size=4,
        variant=variant,
    )

    @jax.jit
    def draw():
        params = model.init(jax.random.key(0), (32, 32, 3))[0]
        block = params["stage_0_block_1"]
        return {
            "dense": [block["attention"]["qkv_kernel"], params["head"]["kernel"]],
            "merge": [params["merge_1"]["kernel"]],
            "mlp": [block["mlp"]["up"]["kernel"]],
            "patches": [params["patch_embedding"]["projection"]["kernel"]],
            "table": [block["attention"]["relative_positions"]],
            "zero": [
                block["attention"]["qkv_bias"],
                block["mlp"]["up"]["bias"],
                params["head"]["bias"],
            ],
        }

    drawn = jax.tree.map(np.asarray, draw())
    for kernel in drawn["dense"] + drawn["merge"]:
        wanted = 0.02 if variant == "paper" else kernel.shape[0] ** -0.5
        assert abs(kernel.std() / wanted - 1) < 0.03
    for kernel in drawn["mlp"]:
        wanted = 0.02 if variant == "paper" else math.sqrt(2 / sum(kernel.shape))
        assert abs(kernel.std() / wanted - 1) < 0.03
    (kernel,) = drawn["patches"]
    fans = patch**2 * 3 if variant == "paper" else patch**2 * (3 + dim) / 6
    assert 0.99 * fans**-0.5 < np.abs(kernel).max() <= fans**-0.5 * (1 + 1e-6)
    assert abs(kernel.std() * math.sqrt(3 * fans) - 1) < 0.03
    assert abs(drawn["table"][0].std() / 0.02 - 1) < 0.2
    assert not any(zero.any() for zero in drawn["zero"])


# --- train and eval


def test_at_rate_0_no_random_number_is_drawn():
    model = build()
    params, state = shapes_of(model, (8, 8, 3))
    images = images_of((8, 8, 3))
    text = str(jax.make_jaxpr(lambda p: model.apply(p, state, images, True, None))(params))
    assert "random" not in text


def test_expectation_of_the_attention():
    rates = {"dropout": 0.0, "attention_dropout": 0.3}
    attention = swin.WindowAttention(
        heads=2, window=2, shift=1, form=FORMS["paper"], dtype=DTYPES["float32"], **rates
    )
    image = jnp.asarray(images_of((4, 4, 6), batch=1))
    params = random_weights(
        jax.eval_shape(lambda: attention.init(jax.random.key(0), image, train=False))
    )
    batch = 4000
    images = jnp.broadcast_to(image, (batch, 4, 4, 6))
    answers = jax.jit(
        lambda x: attention.apply(params, x, train=True, rngs={"dropout": jax.random.key(1)})
    )(images)
    deviation = answers.std(axis=0) / math.sqrt(batch)
    assert deviation.min() > 1e-5
    wanted = attention.apply(params, image, train=False)[0]
    assert (jnp.abs(answers.mean(axis=0) - wanted) < 5 * deviation).all()


def test_rates_of_every_layer():
    rates = {}

    def note(call, args, kwargs, context):
        if isinstance(context.module, (Dropout, DropPath)):
            rates["/".join(context.module.path)] = context.module.rate
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        shapes_of(
            build({**TINY, "depth": 4}, dropout=0.01, attention_dropout=0.02, drop_path=0.9),
            (8, 8, 3),
        )
    depths = [(stage, index) for stage, depth in enumerate((2, 2, 4, 2)) for index in range(depth)]
    for number, (stage, index) in enumerate(depths):
        for branch in (1, 2):
            assert rates.pop(f"stage_{stage}_block_{index}/drop_path_{branch}") == pytest.approx(
                0.1 * number
            )
    assert collections.Counter(rates.values()) == {0.01: 1 + 3 * 10, 0.02: 10}


def test_bfloat16_agrees_with_float32():
    shape = (8, 8, 3)
    model = build(dtype="bfloat16")
    params, state = shapes_of(model, shape)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
    logits = jax.eval_shape(
        lambda p: model.apply(p, state, images_of(shape), False, None)[0], params
    )
    assert logits.dtype == np.float32

    def answer(dtype):
        block = swin.Block(
            heads=2, window=2, shift=1, form=FORMS["paper"], dtype=DTYPES[dtype], **RATES
        )
        x = jnp.asarray(images_of((8, 8, 12))).astype(DTYPES[dtype])
        params = random_weights(
            jax.eval_shape(lambda: block.init(jax.random.key(0), x, train=False))
        )
        y = jax.jit(lambda x: block.apply(params, x, train=False))(x)
        assert y.dtype == x.dtype
        return np.asarray((y - x).astype(jnp.float32))

    wide, narrow = answer("float32"), answer("bfloat16")
    assert (wide * narrow).sum() / math.sqrt((wide * wide).sum() * (narrow * narrow).sum()) > 0.999
    assert np.abs(wide - narrow).max() > 1e-3  # it did compute in bfloat16


def test_forward_over_reverse_derivatives():
    """`gr.gradient: exact` differentiates the gradient forward."""
    shape = (8, 8, 3)
    model = build(dropout=0.1, attention_dropout=0.1, drop_path=0.1)
    params, state = shapes_of(model, shape)

    def loss(params):
        return jnp.square(
            model.apply(params, state, images_of(shape), True, jax.random.key(0))[0]
        ).mean()

    _, product = jax.eval_shape(lambda p: jax.jvp(jax.grad(loss), (p,), (p,)), params)
    assert same_structure(product, params)


def test_only_biases_and_norm_scales_have_one_dimension():
    """The decay mask of the optimizer rests on it."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes_of(build(), (8, 8, 3))[0]):
        assert (leaf.ndim == 1) == (path[-1].key in ("bias", "qkv_bias", "scale")), path
