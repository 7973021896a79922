"""Initial parameters that are drawn together are those that are drawn one by one, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from gnpcli.bench.steps import random_images
from gnpcli.devices import cpu
from gnpcli.devices.mesh import make_mesh
from gnpcli.engine.task import build_task
from gnpcli.models.drawing import BLOCK, ROWS, drawn_together
from gnpcli.models.registry import MODELS
from gnpcli.recipes.presets import resolve
from tests.networks import ONE_OF_EACH, build, build_tiny, tiny

ROUND = ROWS * BLOCK
QUICK = {"vit"}
SMALL = {"vit-nano", "wrn-16-4"}
VARIED = [
    family
    for family, name in ONE_OF_EACH.items()
    if "variant" in MODELS[name].options.option_names()
]
INITIALIZERS = {
    "lecun_normal": nn.initializers.lecun_normal(),
    "he_normal": nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
    "xavier_uniform": nn.initializers.xavier_uniform(),
    "uniform": nn.initializers.uniform(0.3),
    "normal": nn.initializers.normal(0.02),
    "orthogonal": nn.initializers.orthogonal(),  # of normal numbers, and not a product of them
    "half": lambda key, shape: nn.initializers.normal(0.02)(key, shape, jnp.bfloat16),
    "zeros": nn.initializers.zeros,
    "product": lambda key, shape: jax.random.normal(key, shape) * jax.random.uniform(key),
}
SHAPES = [(1, BLOCK), (7, BLOCK + 1), (3, ROUND), (2, 1)]


def draw_each(key, image_shape):
    """Draw an array of each initializer and shape, from a key of its own."""
    del image_shape
    params: dict[str, jax.Array] = {}
    for name, initializer in INITIALIZERS.items():
        for shape in SHAPES[:2] if name == "orthogonal" else SHAPES:
            params[f"{name} {shape}"] = initializer(jax.random.fold_in(key, len(params)), shape)
    return params, {}


def bits(tree):
    return {
        jax.tree_util.keystr(path): np.asarray(leaf).view(f"u{leaf.dtype.itemsize}")
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def check_same(init, shape=(8, 8, 3)):
    key = jax.random.key(3)
    alone = bits(jax.jit(init, static_argnums=1)(key, shape))
    together = bits(jax.jit(drawn_together(init), static_argnums=1)(key, shape))
    assert alone.keys() == together.keys()
    for path, expected in alone.items():
        np.testing.assert_array_equal(together[path], expected, err_msg=path)


def draws(init, shape):
    """Return the draws and new keys that a compiler is given one by one, and the loops."""
    closed = jax.make_jaxpr(init, static_argnums=1)(jax.random.key(0), shape)
    alone = [e for e in closed.eqns if "_normal" in named(e) or "_uniform" in named(e)]
    keys = [e for e in closed.eqns if named(e) == "random_fold_in"]
    loops = [e for e in closed.eqns if named(e) == "scan"]
    return len(alone), len(keys), len(loops)


def named(equation):
    return str(equation.params.get("name", equation.primitive.name))


@pytest.mark.parametrize("has_float64", [False, True])
def test_every_distribution_and_shape_is_the_same_bit_for_bit(has_float64):
    with jax.enable_x64(has_float64):
        check_same(draw_each)


@pytest.mark.parametrize("has_float64", [False, True])
def test_float32_is_drawn_together_where_jax_has_float64(has_float64):
    def init(key, image_shape):
        return {name: jax.random.normal(key, (3,), jnp.float32) for name in "ab"}, {}

    with jax.enable_x64(has_float64):
        check_same(init)
        assert draws(drawn_together(init), (8, 8, 3))[0] == 0


@pytest.mark.parametrize(
    "name", [pytest.param(f, marks=() if f in QUICK else pytest.mark.slow) for f in ONE_OF_EACH]
)
def test_a_network_begins_with_the_same_bits(name):
    size = tiny(name).image_size
    check_same(build_tiny(name).init, (size, size, 3))


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["paper", "upstream"])
@pytest.mark.parametrize("name", VARIED)
def test_a_variant_of_a_network_begins_with_the_same_bits(name, variant):
    """With channels enough that each variant has some in its stem."""
    own = tiny(name)
    sizes = {key: 8 * size if key == "width" else size for key, size in own.sizes.items()}
    options = {**own.options, "variant": variant}
    model = build(ONE_OF_EACH[name], sizes, image_size=own.image_size, **options)
    check_same(model.init, (own.image_size, own.image_size, 3))


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in SMALL else pytest.mark.slow) for name in MODELS],
)
def test_the_draws_of_a_model_are_a_few(name):
    size = MODELS[name].image_size
    init = build(name, image_size=size).init
    alone, keys, loops = draws(drawn_together(init), (size, size, 3))
    assert alone == 0
    assert keys <= 2  # one after another: of modules, and of their parameters
    assert loops <= 3  # a distribution each
    assert draws(init, (size, size, 3))[0] > loops


def test_a_run_on_a_cpu_draws_together_and_the_switch_turns_it_off():
    config = resolve("vit-nano-digits", ["mesh.devices=1"])
    images, spec = random_images(config)

    def has_loop():
        task = build_task(config, images, spec, make_mesh(config))
        return " scan[" in str(jax.make_jaxpr(task.init)())

    assert has_loop()
    with cpu.tuning(False):
        assert not has_loop()
