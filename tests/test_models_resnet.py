"""Residual networks: initialisation, and forward passes against NumPy written from the paper."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnpcli.errors import CheckpointError
from gnpcli.models.base import from_linen
from gnpcli.models.families.resnet import FAMILY, STAGES, ResNet
from gnpcli.models.layers.dense import DTYPES
from tests.test_models import build, compiled, images_of, np_conv, randomised, shapes_of
from tests.trees import same_structure

VARIANTS = ["paper", "upstream"]


def small(bottleneck=True, stem="cifar", variant="paper", stages=(1, 2), dtype="float32"):
    return from_linen(ResNet(stages, bottleneck, 4, 10, stem, variant, DTYPES[dtype]))


# --- initialisers


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("bottleneck", "last"), [(False, "norm_2"), (True, "norm_3")])
def test_blocks_of_the_paper_form_start_as_identities(variant, bottleneck, last):
    model = small(bottleneck, variant=variant)

    @jax.jit
    def scales():  # alone, for the draws of the kernels take long to compile
        leaves = jax.tree_util.tree_leaves_with_path(model.init(jax.random.key(0), (8, 8, 3))[0])
        return {
            "/".join(k.key for k in path): leaf for path, leaf in leaves if path[-1].key == "scale"
        }

    zeros = {name for name, scale in scales().items() if not scale.any()}
    ones = {name for name, scale in scales().items() if (scale == 1).all()}
    blocks = ("stage_0_block_0", "stage_1_block_0", "stage_1_block_1")
    assert zeros == ({f"{block}/{last}/scale" for block in blocks} if variant == "paper" else set())
    assert ones == scales().keys() - zeros


@pytest.mark.parametrize(("variant", "fan"), [("paper", 2048), ("upstream", 25)])
def test_initialisation(variant, fan):
    model = build("resnet50", num_classes=25, variant=variant)

    @jax.jit
    def draw():
        params = model.init(jax.random.key(0), (32, 32, 3))[0]
        return params["stage_1_block_0"]["conv_2"], params["head"]

    conv, head = jax.tree.map(np.asarray, draw())
    assert conv["kernel"].shape == (3, 3, 128, 128)
    assert abs(conv["kernel"].std() / math.sqrt(2 / (9 * 128)) - 1) < 0.02
    assert 0.99 / math.sqrt(fan) < np.abs(head["kernel"]).max() <= (1 + 1e-6) / math.sqrt(fan)
    assert not head["bias"].any()


# ------------------------------------------------------------------------------------- against
# NumPy, float64, loops


def np_same(size, stride, length):
    """Zeros in front that XLA's SAME padding has: the smaller half."""
    return max(0, (-(-length // stride) - 1) * stride + size - length) // 2


def np_max_pool(x, before):
    rows = -(-x.shape[1] // 2)
    padded = np.pad(x, ((0, 0), (before, 3), (before, 3), (0, 0)), constant_values=-np.inf)
    out = np.zeros((x.shape[0], rows, rows, x.shape[3]))
    for i in range(rows):
        for j in range(rows):
            out[:, i, j] = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((1, 2))
    return out


def np_resnet(params, state, images, stages, bottleneck, stem, variant, train):
    p, stats = jax.tree.map(lambda a: np.asarray(a, np.float64), (params, state["batch_stats"]))
    upstream = variant == "upstream"

    def conv(x, layer, stride):
        size = layer["kernel"].shape[0]
        before = np_same(size, stride, x.shape[1]) if upstream else size // 2
        return np_conv(x, layer["kernel"], stride, before) + layer.get("bias", 0)

    def norm(x, p, s):
        mean, var = s["mean"], s["var"]
        if train:
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
            s["mean"], s["var"] = 0.9 * s["mean"] + 0.1 * mean, 0.9 * s["var"] + 0.1 * var
        return (x - mean) / np.sqrt(var + 1e-5) * p["scale"] + p["bias"]

    x = conv(images.astype(np.float64), p["stem"], 2 if stem == "imagenet" else 1)
    x = norm(x, p["stem_norm"], stats["stem_norm"])
    if not upstream:
        x = np.maximum(x, 0)
    if stem == "imagenet":
        x = np_max_pool(x, np_same(3, 2, x.shape[1]) if upstream else 1)
    for stage, blocks in enumerate(stages):
        for index in range(blocks):
            b, s = p[f"stage_{stage}_block_{index}"], stats[f"stage_{stage}_block_{index}"]
            stride = 2 if stage and not index else 1
            y = x
            strides = (1, stride, 1) if bottleneck else (stride, 1)
            for k, layer_stride in enumerate(strides, start=1):
                y = norm(conv(y, b[f"conv_{k}"], layer_stride), b[f"norm_{k}"], s[f"norm_{k}"])
                if k < len(strides):
                    y = np.maximum(y, 0)
            if x.shape != y.shape:
                x = norm(conv(x, b["shortcut"], stride), b["shortcut_norm"], s["shortcut_norm"])
            else:
                assert "shortcut" not in b
            x = np.maximum(x + y, 0)
    return x.mean((1, 2)) @ p["head"]["kernel"] + p["head"]["bias"], {"batch_stats": stats}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("bottleneck", "stem", "shape", "train"),
    [
        (True, "cifar", (8, 8, 3), True),
        (True, "imagenet", (21, 21, 1), False),
        (False, "imagenet", (16, 16, 3), True),
        (False, "cifar", (9, 9, 3), False),
    ],
)
def test_resnet_equals_numpy(variant, bottleneck, stem, shape, train):
    model = small(bottleneck, stem, variant)
    params, state = randomised(shapes_of(model, shape))
    x = images_of(shape)
    logits, moved = compiled(model)(params, state, x, train=train, key=None)
    wanted, wanted_state = np_resnet(params, state, x, (1, 2), bottleneck, stem, variant, train)
    assert wanted.std() > 0.1
    np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), moved, wanted_state
    )


# --- train, eval


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_takes_any_image(stem):
    for shape in ((1, 1, 1), (28, 28, 1), (65, 65, 4)):
        model = small(stem=stem, stages=(1, 1, 1, 1))
        logits, _ = jax.eval_shape(
            lambda x, m=model, s=shape: m.apply(*m.init(jax.random.key(0), s), x, True, None),
            images_of(shape),
        )
        assert logits == jax.ShapeDtypeStruct((4, 10), jnp.float32)


def test_bfloat16_is_close_and_keeps_parameters_and_logits_float32():
    shape = (32, 32, 3)
    full, half = (small(stem="imagenet", dtype=dtype) for dtype in ("float32", "bfloat16"))
    params, state = randomised(shapes_of(half, shape))
    x = images_of(shape)
    wanted, _ = compiled(full)(params, state, x, train=True, key=None)
    logits, moved = compiled(half)(params, state, x, train=True, key=None)
    assert 0 < np.abs(logits - wanted).max() < 0.05 * np.abs(wanted).max()
    grads = jax.eval_shape(jax.grad(lambda p: half.apply(p, state, x, True, None)[0].sum()), params)
    assert {leaf.dtype for leaf in jax.tree.leaves((logits, moved, grads))} == {
        jnp.dtype(jnp.float32)
    }


def test_has_forward_over_reverse_derivatives():
    """`gr.gradient: exact` differentiates the gradient forward."""
    shape = (32, 32, 1)
    model = small(stem="imagenet")
    params, state = randomised(shapes_of(model, shape))

    def loss(params):
        return jnp.square(model.apply(params, state, images_of(shape), True, None)[0]).mean()

    _, product = jax.eval_shape(lambda p: jax.jvp(jax.grad(loss), (p,), (p,)), params)
    assert same_structure(product, params)


def test_draws_nothing():
    shape = (8, 8, 3)
    model = small()
    params, state = randomised(shapes_of(model, shape))
    text = str(
        jax.make_jaxpr(lambda k: model.apply(params, state, images_of(shape), True, k))(
            jax.random.key(0)
        )
    )
    assert "random" not in text


# --- import


def torch_names(depth):
    """Names and shapes of torchvision's state dict, from the architecture."""
    shapes = {"conv1.weight": (64, 3, 7, 7), "fc.bias": (1000,)}

    def norm(name, channels):
        shapes.update(
            {
                f"{name}.{kind}": (channels,)
                for kind in ("weight", "bias", "running_mean", "running_var")
            }
        )
        shapes[f"{name}.num_batches_tracked"] = ()

    norm("bn1", 64)
    before = 64
    for stage, blocks in enumerate(STAGES[depth]):
        width = 64 * 2**stage
        for index in range(blocks):
            block = f"layer{stage + 1}.{index}"
            sizes = (
                [(width, 1), (width, 3), (4 * width, 1)]
                if depth >= 50
                else [(width, 3), (width, 3)]
            )
            inside = before
            for k, (channels, size) in enumerate(sizes, start=1):
                shapes[f"{block}.conv{k}.weight"] = (channels, inside, size, size)
                norm(f"{block}.bn{k}", channels)
                inside = channels
            if index == 0 and (stage or depth >= 50):
                shapes[f"{block}.downsample.0.weight"] = (inside, before, 1, 1)
                norm(f"{block}.downsample.1", inside)
            before = inside
    shapes["fc.weight"] = (1000, before)
    return shapes


@pytest.mark.parametrize("depth", [18, 50])
def test_torch_names_fill_the_whole_tree(depth):
    shape = (224, 224, 3)
    arrays = {name: np.broadcast_to(np.float16(1), s) for name, s in torch_names(depth).items()}
    ours = FAMILY.from_torch(arrays)
    wanted = shapes_of(build(f"resnet{depth}", shape, 1000, stem="imagenet"), shape)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), ours) == jax.tree.map(
        lambda a: (a.shape, a.dtype), wanted
    )


@pytest.mark.parametrize(
    "name", ["conv1.weight", "bn1.running_var", "layer2.0.bn2.bias", "fc.bias"]
)
def test_import_misses_what_is_not_there(name):
    arrays = {name: np.broadcast_to(np.float16(1), s) for name, s in torch_names(18).items()}
    del arrays[name]
    with pytest.raises(CheckpointError, match=f"no tensor '{name}'"):
        FAMILY.from_torch(arrays)


@pytest.mark.parametrize(
    "name", ["layer5.0.conv1.weight", "layer1.0.se.fc1.weight", "conv1.0.weight"]
)
def test_import_refuses_what_it_has_no_place_for(name):
    arrays = {name: np.broadcast_to(np.float16(1), s) for name, s in torch_names(18).items()}
    with pytest.raises(CheckpointError, match=f"no place for the tensors {name}"):
        FAMILY.from_torch({**arrays, name: np.zeros(1)})
