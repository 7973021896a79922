"""VGG: initialisation, and forward passes against NumPy written from the paper."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnpcli.errors import CheckpointError, ConfigError
from gnpcli.models.base import from_linen
from gnpcli.models.families.vgg import FAMILY, STAGES, Vgg
from gnpcli.models.layers.dense import DTYPES
from tests.test_models import build, compiled, drawn, images_of, np_conv, randomised, shapes_of
from tests.trees import same_structure

SHAPE = (32, 32, 3)


def small(batch_norm=False, stages=(1, 1, 2, 1, 1), dropout=0.0, dtype="float32"):
    return from_linen(Vgg(stages, 2, 8, batch_norm, 10, dropout, "paper", DTYPES[dtype]))


@pytest.mark.parametrize(("size", "side"), [(33, 1), (63, 1), (64, 2), (224, 7), (250, 7)])
def test_the_first_hidden_layer_takes_the_whole_map(size, side):
    params, _ = shapes_of(build("vgg16", (size, size, 3)), (size, size, 3))
    assert params["hidden_1"]["kernel"].shape == (side * side * 512, 4096)


def test_images_that_the_poolings_use_up():
    with pytest.raises(
        ConfigError, match=r"vgg19-bn halves .* 31 x 31 pixels .*: 32 and larger$"
    ) as caught:
        build("vgg19-bn", (31, 31, 1))
    assert caught.value.key == "data.image_size"


@pytest.mark.parametrize(
    ("variant", "deviation"), [("paper", 0.01), ("upstream", 1 / math.sqrt(3 * 4096))]
)
def test_initialisation(variant, deviation):
    kernel, bias, hidden, hidden_bias = drawn(
        build("vgg16", variant=variant),
        SHAPE,
        "conv_3/kernel",
        "conv_3/bias",
        "hidden_1/kernel",
        "hidden_1/bias",
    )
    assert kernel.shape == (3, 3, 64, 128)
    assert abs(kernel.std() / math.sqrt(2 / (9 * 128)) - 1) < 0.02
    assert abs(hidden.std() / deviation - 1) < 0.01
    assert (np.abs(hidden).max() <= 1 / math.sqrt(4096) + 1e-6) == (variant == "upstream")
    assert not bias.any()
    assert not hidden_bias.any()


# ------------------------------------------------------------------------------------- against
# NumPy, float64, loops


def np_vgg(params, state, images, stages, train):
    p, stats = jax.tree.map(
        lambda a: np.asarray(a, np.float64), (params, state.get("batch_stats", {}))
    )
    x = images.astype(np.float64)
    number = 0
    for convolutions in stages:
        for _ in range(convolutions):
            number += 1
            layer = p[f"conv_{number}"]
            x = np_conv(x, layer["kernel"], 1, 1) + layer["bias"]
            if stats:
                norm, s = p[f"norm_{number}"], stats[f"norm_{number}"]
                mean, var = (
                    (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else (s["mean"], s["var"])
                )
                s["mean"], s["var"] = (0.9 * s["mean"] + 0.1 * mean, 0.9 * s["var"] + 0.1 * var)
                x = (x - mean) / np.sqrt(var + 1e-5) * norm["scale"] + norm["bias"]
            x = np.maximum(x, 0)
        rows = x.shape[1] // 2
        x = x[:, : 2 * rows, : 2 * rows].reshape(len(x), rows, 2, rows, 2, -1).max((2, 4))
    x = x.reshape(len(x), -1)
    for name in ("hidden_1", "hidden_2"):
        x = np.maximum(x @ p[name]["kernel"] + p[name]["bias"], 0)
    return x @ p["head"]["kernel"] + p["head"]["bias"], {"batch_stats": stats} if stats else {}


@pytest.mark.parametrize(("batch_norm", "train"), [(False, True), (True, True), (True, False)])
def test_vgg_equals_numpy(batch_norm, train):
    shape = (66, 66, 1) if batch_norm else SHAPE
    model = small(batch_norm)
    params, state = randomised(shapes_of(model, shape))
    x = 5 * images_of(shape, batch=3)
    logits, moved = compiled(model)(params, state, x, train=train, key=None)
    wanted, wanted_state = np_vgg(params, state, x, (1, 1, 2, 1, 1), train)
    assert wanted.std(axis=0).max() > 0.1  # between the images
    np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), moved, wanted_state
    )


# --- train, eval


def test_dropout_keeps_the_expectation():
    """With a positive second hidden layer the network is linear in all that dropout touches; then
    means agree.
    """
    rate, copies = 0.4, 4096
    model = small(dropout=rate)
    params, state = randomised(shapes_of(model, SHAPE))
    params["hidden_2"] = jax.tree.map(np.abs, params["hidden_2"])
    apply = compiled(model)
    x = images_of(SHAPE, batch=1)
    wanted = np.asarray(apply(params, state, x, train=False, key=None)[0])[0]
    images = np.broadcast_to(x, (copies, *SHAPE))
    logits = np.asarray(
        apply(params, state, images, train=True, key=jax.random.key(2))[0], np.float64
    )
    error = logits.std(axis=0) / math.sqrt(copies)
    assert (error > 0).all()
    assert (np.abs(logits.mean(axis=0) - wanted) < 4.5 * error).all()
    # A layer without its scale would be off by the rate: many times what the comparison allows.
    head = params["head"]["bias"]
    assert np.abs(wanted - head).max() * rate > 20 * error.max()


def test_dropout_follows_the_key_in_train_mode_only():
    model = small(dropout=0.5)
    params, state = randomised(shapes_of(model, SHAPE))
    apply, x = compiled(model), images_of(SHAPE)
    keys = jax.random.split(jax.random.key(3), 2)
    first, again, other = (
        apply(params, state, x, train=True, key=key)[0] for key in (keys[0], keys[0], keys[1])
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    evaluations = [apply(params, state, x, train=False, key=key)[0] for key in (keys[0], None)]
    np.testing.assert_array_equal(*evaluations)
    without = small(dropout=0.0)
    np.testing.assert_array_equal(
        compiled(without)(params, state, x, train=True, key=None)[0], evaluations[0]
    )


def test_bfloat16_is_close_and_keeps_parameters_and_logits_float32():
    full, half = (small(batch_norm=True, dtype=dtype) for dtype in ("float32", "bfloat16"))
    params, state = randomised(shapes_of(half, SHAPE))
    x = images_of(
        SHAPE, batch=32
    )  # at the last pooling there is one pixel of each image to normalise over
    wanted, _ = compiled(full)(params, state, x, train=True, key=None)
    logits, moved = compiled(half)(params, state, x, train=True, key=None)
    assert 0 < np.abs(logits - wanted).max() < 0.05 * np.abs(wanted).max()
    grads = jax.eval_shape(jax.grad(lambda p: half.apply(p, state, x, True, None)[0].sum()), params)
    assert {leaf.dtype for leaf in jax.tree.leaves((logits, moved, grads))} == {
        jnp.dtype(jnp.float32)
    }


def test_has_forward_over_reverse_derivatives():
    """`gr.gradient: exact` differentiates the gradient forward."""
    model = small(batch_norm=True, dropout=0.5)
    params, state = randomised(shapes_of(model, SHAPE))

    def loss(params):
        return jnp.square(
            model.apply(params, state, images_of(SHAPE), True, jax.random.key(0))[0]
        ).mean()

    _, product = jax.eval_shape(lambda p: jax.jvp(jax.grad(loss), (p,), (p,)), params)
    assert same_structure(product, params)


# --- import


def torch_names(depth, batch_norm, timm):
    """Names and shapes of the state dict of torchvision or timm, from the architecture."""
    shapes: dict[str, tuple[int, ...]] = {}
    number, before = 0, 3
    for convolutions, channels in zip(STAGES[depth], (64, 128, 256, 512, 512), strict=True):
        for _ in range(convolutions):
            shapes[f"features.{number}.weight"] = (channels, before, 3, 3)
            shapes[f"features.{number}.bias"] = (channels,)
            if batch_norm:
                kinds = ("weight", "bias", "running_mean", "running_var")
                shapes.update({f"features.{number + 1}.{kind}": (channels,) for kind in kinds})
                shapes[f"features.{number + 1}.num_batches_tracked"] = ()
            number += 3 if batch_norm else 2
            before = channels
        number += 1  # the pooling
    names = (
        ("pre_logits.fc1", "pre_logits.fc2", "head.fc")
        if timm
        else ("classifier.0", "classifier.3", "classifier.6")
    )
    weights = [(4096, 512, 7, 7), (4096, 4096, 1, 1)] if timm else [(4096, 25088), (4096, 4096)]
    for name, weight in zip(names, [*weights, (1000, 4096)], strict=True):
        shapes |= {f"{name}.weight": weight, f"{name}.bias": weight[:1]}
    return shapes


@pytest.mark.parametrize("timm", [False, True])
@pytest.mark.parametrize(
    ("name", "depth", "batch_norm"), [("vgg16", 16, False), ("vgg19-bn", 19, True)]
)
def test_torch_names_fill_the_whole_tree(name, depth, batch_norm, timm):
    shape = (224, 224, 3)
    arrays = {
        name: np.broadcast_to(np.float32(1), s)
        for name, s in torch_names(depth, batch_norm, timm).items()
    }
    ours = FAMILY.from_torch(arrays)
    wanted = shapes_of(build(name, shape, 1000), shape)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), ours) == jax.tree.map(
        lambda a: (a.shape, a.dtype), wanted
    )


@pytest.mark.parametrize(
    "missing", ["features.28.weight", "features.28.bias", "classifier.3.weight"]
)
def test_import_misses_what_is_not_there(missing):
    arrays = {
        name: np.zeros((1,) * len(shape)) for name, shape in torch_names(16, False, False).items()
    }
    del arrays[missing]
    with pytest.raises(
        CheckpointError, match=r"no tensor|no place for the tensors features.28.bias"
    ):
        FAMILY.from_torch(arrays)
