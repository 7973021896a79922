"""The whole augmentation of a batch: what acts, in which order, on what, and what comes out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnpcli.config.schema import DataConfig
from gnpcli.data.augment.basic import normalize, random_flip, random_reflect_crop
from gnpcli.data.augment.device import apply_policy
from gnpcli.data.augment.mixing import cutmix, cutout, mixup, random_erasing
from gnpcli.data.augment.pipeline import Pipeline, make_pipeline
from gnpcli.data.augment.policies import make_policy
from gnpcli.data.base import DataSpec
from gnpcli.errors import ConfigError

KEY = jax.random.key(5)
CROP, FLIP, POLICY, ERASE, MIX, CUTOUT = jax.random.split(KEY, 6)
SIZE, BATCH = 12, 9


def spec(channels: int = 3, name: str = "photographs") -> DataSpec:
    return DataSpec(
        name=name,
        class_names=("a", "b", "c"),
        image_size=SIZE,
        channels=channels,
        mean=(0.4, 0.5, 0.6)[:channels],
        std=(0.2, 0.25, 0.3)[:channels],
    )


def batch(channels: int = 3) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH, SIZE, SIZE, channels), dtype=np.uint8)
    return jnp.asarray(images), jnp.asarray(rng.integers(0, 3, BATCH, dtype=np.int32))


def build(*, is_streamed: bool = False, dtype: str = "float32", **values: object) -> Pipeline:
    config = DataConfig(name="photographs", **values)  # type: ignore[arg-type]
    return jax.jit(make_pipeline(config, spec(), is_streamed=is_streamed, dtype=jnp.dtype(dtype)))


def normal(images: jax.Array) -> jax.Array:
    return normalize(images, spec().mean, spec().std)


def close(found: jax.Array, expected: jax.Array) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_in_memory_crop_flip_policy_normalise_erase_mix_in_this_order():
    images, labels = batch()
    config = DataConfig(
        name="photographs", augment="autoaugment", random_erasing=0.6, mix="mixcut", mix_alpha=0.4
    )
    policy = make_policy(config, "photographs", is_streamed=False)
    assert policy is not None

    @jax.jit
    def expected(images: jax.Array, labels: jax.Array) -> tuple[jax.Array, ...]:
        moved = random_flip(FLIP, random_reflect_crop(CROP, images, 1))
        changed = apply_policy(POLICY, moved, policy)
        erased = random_erasing(ERASE, normal(changed), 0.6)
        mixed, classes = mixup(MIX, erased, jax.nn.one_hot(labels, 3, dtype=jnp.float32), 0.4)
        return moved, changed, cutout(CUTOUT, mixed, SIZE // 2), classes

    found, classes = jax.jit(make_pipeline(config, spec(), is_streamed=False, dtype=jnp.float32))(
        KEY, images, labels
    )
    moved, changed, *both = expected(images, labels)
    assert (changed != moved).any()
    close(found, both[0])
    close(classes, both[1])


def test_upstream_does_the_policy_first_and_draws_once_for_the_batch():
    images, labels = batch()
    values: dict[str, Any] = {
        "augment": "randaugment",
        "randaugment_layers": 1,
        "augment_variant": "upstream-compat",
    }
    values |= {"mix": "mixcut", "cutout_size": 3}
    policy = make_policy(DataConfig(name="photographs", **values), "photographs", is_streamed=False)
    assert policy is not None

    @jax.jit
    def expected(images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        moved = random_flip(
            FLIP, random_reflect_crop(CROP, apply_policy(POLICY, images, policy), 1)
        )
        one_hot = jax.nn.one_hot(labels, 3, dtype=jnp.float32)
        mixed, classes = mixup(MIX, normal(moved), one_hot, 1.0, shared=True)
        return cutout(CUTOUT, mixed, 3, shared=True), classes

    for found, wanted in zip(
        build(**values)(KEY, images, labels), expected(images, labels), strict=True
    ):
        close(found, wanted)


@pytest.mark.parametrize("augment", ["crop", "basic", "autoaugment", "randaugment"])
def test_streamed_images_have_been_augmented_already(augment):
    images, labels = batch()
    found, classes = build(is_streamed=True, augment=augment, crop_padding=40)(KEY, images, labels)
    close(found, normal(images))
    np.testing.assert_array_equal(classes, labels)


def test_streamed_images_are_erased_and_mixed():
    images, labels = batch()

    @jax.jit
    def expected(images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        erased = random_erasing(ERASE, normal(images), 1.0)
        return cutmix(MIX, erased, jax.nn.one_hot(labels, 3, dtype=jnp.float32), 1.0)

    found = build(is_streamed=True, random_erasing=1.0, mix="cutmix")(KEY, images, labels)
    for one, wanted in zip(found, expected(images, labels), strict=True):
        close(one, wanted)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mix", ["none", "cutout", "mixup", "cutmix", "mixcut"])
def test_types_and_label_weights(mix, dtype):
    images, labels = batch()
    found, classes = build(mix=mix, dtype=dtype)(KEY, images, labels)
    assert found.dtype == jnp.dtype(dtype)
    assert found.shape == images.shape
    if mix in ("none", "cutout"):
        assert classes.dtype == jnp.int32
        np.testing.assert_array_equal(classes, labels)
    else:
        assert classes.dtype == jnp.float32
        np.testing.assert_allclose(classes.sum(1), 1, atol=1e-6)
    # Arithmetic is float32 whatever the type of the result: one rounding, not several.
    exact, _ = build(mix=mix)(KEY, images, labels)
    np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=2**-8, atol=1e-6)


def test_grey_images_and_purity():
    images, labels = batch(channels=1)
    config = DataConfig(name="photographs", augment="autoaugment", mix="mixcut", random_erasing=0.5)
    pipeline = jax.jit(make_pipeline(config, spec(1), is_streamed=False, dtype=jnp.float32))
    found, _ = pipeline(KEY, images, labels)
    assert found.shape == images.shape
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found, pipeline(KEY, images, labels)[0])
    assert (found != pipeline(jax.random.key(6), images, labels)[0]).any()


def test_digits_are_cropped_but_not_mirrored_beside_a_policy():
    # Every image is lit left of its middle; crops move it by a pixel, and a policy that does
    # nothing leaves it there.
    images = jnp.zeros((64, SIZE, SIZE, 1), jnp.uint8).at[:, :, : SIZE // 2 - 2].set(255)
    labels = jnp.zeros(64, jnp.int32)

    def lit(name: Any, augment: Any) -> np.ndarray:
        config = DataConfig(
            name=name, augment=augment, randaugment_layers=1, randaugment_magnitude=0.0
        )
        pipeline = make_pipeline(config, spec(1, name), is_streamed=False, dtype=jnp.float32)
        found = np.asarray(jax.jit(pipeline)(KEY, images, labels)[0])[..., 0].mean(1)
        return found[:, 1] > found[:, -2]

    # Solarize at threshold 256, Posterize to 8 bits, no shift: of all operations at level 0 none
    # swaps dark and light.
    assert lit("svhn_cropped", "randaugment").all()
    assert 10 < lit("svhn_cropped", "basic").sum() < 54


@pytest.mark.parametrize(
    ("values", "key", "message"),
    [
        (
            {"augment": "crop", "crop_padding": 12},
            "data.crop_padding",
            "crop_padding 12 must be below the image size 12",
        ),
        (
            {"mix": "cutout", "cutout_size": 13},
            "data.cutout_size",
            "cutout_size 13 is larger than the image size 12",
        ),
        (
            {"mix": "mixcut", "cutout_size": 13},
            "data.cutout_size",
            "cutout_size 13 is larger than the image size 12",
        ),
    ],
)
def test_sizes_that_do_not_fit_the_image_are_refused(values, key, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build(**values)
    assert caught.value.key == key


def test_sizes_that_nothing_uses_are_not_refused():
    images, labels = batch()
    build(crop_padding=12, cutout_size=13)(KEY, images, labels)


SPLIT_BATCH = """
import json, re, jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from gnpcli.config.schema import DataConfig
from gnpcli.data.augment.pipeline import make_pipeline
from gnpcli.data.base import DataSpec

mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
spec = DataSpec(
    name="x", class_names=("a", "b"), image_size=8, channels=3, mean=(0.5,) * 3, std=(0.2,) * 3
)
rng = np.random.default_rng(0)
images = rng.integers(0, 256, (32, 8, 8, 3), dtype=np.uint8)
labels = rng.integers(0, 2, 32, dtype=np.int32)
key = jax.random.key(0)
config = DataConfig(name="x", augment="autoaugment", random_erasing=0.5, mix="mixup")
pipeline = make_pipeline(config, spec, is_streamed=False, dtype=jnp.float32)
one = jax.jit(pipeline)(key, images, labels)
jitted = jax.jit(pipeline, in_shardings=(whole, split, split), out_shardings=split)
four = jitted.lower(key, images, labels).compile()
out = four(jax.device_put(key, whole), jax.device_put(images, split), jax.device_put(labels, split))
report = {
    "images": float(np.abs(np.asarray(one[0]) - np.asarray(out[0])).max()),
    "labels": float(np.abs(np.asarray(one[1]) - np.asarray(out[1])).max()),
    "collectives": re.findall(
        r"= \\w+(\\S+) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)\\(",
        four.as_text(),
    ),
}
print(json.dumps(report))
"""


def test_devices_share_a_batch_without_talking_until_images_mix():
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run(
        [sys.executable, "-c", SPLIT_BATCH], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["images"] < 1e-5
    assert report["labels"] < 1e-6
    # One image and its label go to a neighbour; no batch is ever gathered.
    assert report["collectives"]
    for shape, kind in report["collectives"]:
        assert kind == "collective-permute"
        assert shape.startswith(("[1,8,8,3]", "[1,2]")), shape
