"""Augmentation and batches against NumPy, and the invariants of the feeds."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnpcli.config.schema import DataConfig
from gnpcli.data.augment.basic import normalize, random_flip, random_reflect_crop, reflect_crop
from gnpcli.data.base import DataSpec, Split
from gnpcli.data.feeds.base import steps_per_epoch
from gnpcli.data.feeds.memory import InMemoryEvalFeed, InMemoryFeed
from gnpcli.devices.rows import RowsInOrder, WholeRows
from gnpcli.errors import ConfigError, DataError

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

SPEC = DataSpec(
    name="toy",
    class_names=("a", "b"),
    image_size=8,
    channels=3,
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.25, 0.3),
)
KEY = jax.random.key(7)


def toy_split(size: int) -> Split:
    """Return images whose label says which they are: the label is their index."""
    rng = np.random.default_rng(size)
    images = rng.integers(0, 256, (size, 8, 8, 3), dtype=np.uint8)
    return Split(images, np.arange(size, dtype=np.int32))


def config(**values: object) -> DataConfig:
    return DataConfig(name="digits", **values)  # type: ignore[arg-type]


def feed(size: int, seed: int = 0, **values: object) -> InMemoryFeed:
    return InMemoryFeed(
        toy_split(size),
        SPEC,
        config(**values),
        key=jax.random.key(seed),
        rows=WholeRows(jax.device_put),
    )


def expected(images: np.ndarray) -> np.ndarray:
    return ((images / 255 - np.array(SPEC.mean)) / np.array(SPEC.std)).astype(np.float32)


# --- augmentation


@pytest.mark.parametrize(("size", "padding"), [(8, 1), (8, 3), (5, 4), (2, 1), (6, 0)])
def test_crop_is_numpys_reflection_at_every_offset(size: int, padding: int) -> None:
    rng = np.random.default_rng(0)
    places = np.indices((2 * padding + 1, 2 * padding + 1)).reshape(2, -1).astype(np.int32)
    images = rng.integers(0, 256, (places.shape[1], size, size + 1, 3), dtype=np.uint8)
    padded = np.pad(
        images, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode="reflect"
    )
    want = np.stack(
        [image[r : r + size, c : c + size + 1] for image, r, c in zip(padded, *places, strict=True)]
    )
    got = jax.jit(reflect_crop, static_argnames="padding")(
        jnp.asarray(images), jnp.asarray(places), padding
    )
    assert got.dtype == jnp.uint8
    np.testing.assert_array_equal(got, want)


def test_crop_offsets_are_uniform_and_drawn_per_image_and_axis() -> None:
    # The pixel at the window's corner tells the offset: padding 2 on a 9x9 ramp of distinct values.
    batch, padding = 5000, 2
    ramp = jnp.broadcast_to(jnp.arange(81, dtype=jnp.uint8).reshape(1, 9, 9, 1), (batch, 9, 9, 1))
    out = np.asarray(random_reflect_crop(KEY, ramp, padding))
    centre = out[:, 4, 4, 0].astype(int)
    rows, columns = centre // 9 - 2, centre % 9 - 2
    table = np.zeros((5, 5))
    np.add.at(table, (rows, columns), 1)
    # 25 cells of 200 +- 14 each: five deviations.
    assert table.min() > 130
    assert table.max() < 270


def test_crop_of_padding_as_large_as_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match="padding 4 is not below the image size 4x4"):
        random_reflect_crop(KEY, jnp.zeros((1, 4, 4, 1), jnp.uint8), 4)


def test_flip_mirrors_half_of_the_images() -> None:
    images = toy_split(2000).images
    out = np.asarray(jax.jit(random_flip)(KEY, jnp.asarray(images)))
    same = (out == images).all(axis=(1, 2, 3))
    mirrored = (out == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same ^ mirrored).all()
    assert abs(mirrored.mean() - 0.5) < 5 * 0.5 / np.sqrt(2000)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_normalize_is_its_formula(dtype: str) -> None:
    every = np.arange(256, dtype=np.uint8)
    images = np.stack([every, every[::-1], np.roll(every, 7)], axis=-1).reshape(1, 16, 16, 3)
    out = normalize(jnp.asarray(images), SPEC.mean, SPEC.std, dtype=jnp.dtype(dtype))
    assert out.dtype == jnp.dtype(dtype)
    tolerance = 1e-6 if dtype == "float32" else 2**-8
    np.testing.assert_allclose(
        np.asarray(out, np.float32), expected(images), rtol=tolerance, atol=tolerance
    )


# --- training feed


def test_order_is_a_permutation_given_by_seed_and_epoch() -> None:
    def order(feed: InMemoryFeed, epoch: int) -> np.ndarray:
        return np.asarray(feed.source(epoch * feed.steps_per_epoch + 3)["order"])

    feeds = [feed(50, seed, batch_size=7) for seed in (0, 1)]
    orders = {(seed, epoch): order(feeds[seed], epoch) for seed in (0, 1) for epoch in (0, 1, 2)}
    for found in orders.values():
        assert found.dtype == np.int32
        np.testing.assert_array_equal(np.sort(found), np.arange(50))
    for one, other in pairwise(orders.values()):
        assert (one != other).any()
    # Backwards, and in another feed: no state but a cache.
    for (seed, epoch), found in reversed(orders.items()):
        np.testing.assert_array_equal(order(feed(50, seed, batch_size=7), epoch), found)


def test_order_is_computed_once_an_epoch() -> None:
    a = feed(50, batch_size=7)
    first = a.source(0)["order"]
    assert a.source(6)["order"] is first
    assert a.source(7)["order"] is not first


@pytest.mark.parametrize("augment", ["none", "crop", "basic"])
def test_epoch_visits_each_example_at_most_once_with_its_own_label(augment: str) -> None:
    a = feed(23, batch_size=5, augment=augment)
    assert a.steps_per_epoch == 4
    source = a.source(3 * 4)
    batch = jax.jit(a.batch)
    steps = [batch(source, jnp.int32(step), jax.random.fold_in(KEY, step)) for step in range(4)]
    labels = np.concatenate([step[1] for step in steps])
    assert len(set(labels.tolist())) == 20
    np.testing.assert_array_equal(labels, np.asarray(source["order"])[:20])
    images = np.concatenate([step[0] for step in steps])
    assert images.dtype == np.float32
    assert images.shape == (20, 8, 8, 3)
    split = toy_split(23)
    if augment == "none":
        np.testing.assert_allclose(images, expected(split.images[labels]), rtol=1e-5, atol=1e-6)
    else:
        # The centre of a crop by 1 pixel, flipped or not, lies within two pixels of the image's
        # centre.
        for image, label in zip(images, labels, strict=True):
            near = expected(split.images[label])[2:6, 2:6].reshape(-1, 3)
            assert np.isclose(near, image[3, 3], atol=1e-5).all(axis=1).any()


def test_batch_is_the_crop_and_flip_of_its_key_and_differs_with_it() -> None:
    a = feed(23, batch_size=5, augment="basic", crop_padding=3)
    source = a.source(0)
    assert source["images"].shape == (23, 8 * 8 * 3)
    crop_key, flip_key = jax.random.split(KEY)
    chosen = np.asarray(source["order"])[10:15]
    want = random_flip(
        flip_key, random_reflect_crop(crop_key, jnp.asarray(toy_split(23).images[chosen]), 3)
    )
    images, _ = a.batch(source, 2, KEY)
    np.testing.assert_allclose(images, expected(np.asarray(want)), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(images, a.batch(source, 2, KEY)[0])
    assert (np.asarray(images) != np.asarray(a.batch(source, 2, jax.random.key(8))[0])).any()


def test_default_padding_is_an_eighth_of_the_image() -> None:
    for given, same in ((None, 1), (1, 1)):
        a, b = (
            feed(23, batch_size=5, augment="crop", crop_padding=padding)
            for padding in (given, same)
        )
        np.testing.assert_array_equal(
            a.batch(a.source(0), 0, KEY)[0], b.batch(b.source(0), 0, KEY)[0]
        )


def test_batch_larger_than_the_data_names_both_numbers() -> None:
    with pytest.raises(ConfigError, match=r"batch_size 24 .* 23 training") as caught:
        feed(23, batch_size=24)
    assert caught.value.key == "data.batch_size"
    assert feed(23, batch_size=23).steps_per_epoch == 1
    assert steps_per_epoch(50_000, 128) == 390


def test_padding_not_below_the_image_size_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="crop_padding 8 must be below the image size 8"
    ) as caught:
        feed(23, batch_size=5, augment="crop", crop_padding=8)
    assert caught.value.key == "data.crop_padding"
    feed(23, batch_size=5, augment="none", crop_padding=8)


SPLIT_BATCH = """
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from gnpcli.config.schema import DataConfig
from gnpcli.data.registry import load_dataset
from gnpcli.data.feeds.memory import InMemoryFeed
from gnpcli.devices.rows import WholeRows

config = DataConfig(name="digits", batch_size=64, augment="basic")
data, key = load_dataset(config), jax.random.key(0)
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
results = []
for place, constraint in ((jax.device_put, None), (lambda x: jax.device_put(x, whole), split)):
    feed = InMemoryFeed(data.train, data.spec, config, key=key, rows=WholeRows(place))
    jitted = jax.jit(feed.batch, out_shardings=constraint)
    step = jitted.lower(feed.source(0), np.int32(3), key).compile()
    results.append(step(feed.source(0), np.int32(3), key))
for one, other in zip(*results):
    np.testing.assert_array_equal(one, other)
words = ("all-reduce", "all-gather", "all-to-all", "collective-permute")
print([word for word in words if word in step.as_text()])
"""


def test_batch_split_over_devices_is_the_same_and_needs_no_communication() -> None:
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-c", SPLIT_BATCH],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env=environment,
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


# --- evaluation feed


def in_order() -> RowsInOrder:
    devices = np.array(jax.devices()[:1]).reshape(1, 1)
    return RowsInOrder(jax.sharding.Mesh(devices, ("group", "data")))


@pytest.mark.parametrize("size", [1, 23])
@pytest.mark.parametrize("batch_size", [1, 7, 23, 26])
def test_evaluation_covers_each_example_exactly_once(size: int, batch_size: int) -> None:
    split = toy_split(size)
    a = InMemoryEvalFeed(
        split,
        SPEC,
        config(batch_size=3, eval_batch_size=batch_size),
        rows=in_order(),
    )
    assert len(list(a.sources())) == -(-size // batch_size)
    batch = jax.jit(a.batch)
    labels, images = [], []
    for index, source in enumerate(a.sources()):
        image, label, mask = batch(source, jnp.int32(index))
        assert image.shape == (a.batches.size, 8, 8, 3)
        assert mask.dtype == jnp.bool_
        assert np.isfinite(image).all()
        labels.append(np.asarray(label)[np.asarray(mask)])
        images.append(np.asarray(image)[np.asarray(mask)])
    np.testing.assert_array_equal(np.concatenate(labels), split.labels)
    np.testing.assert_allclose(np.concatenate(images), expected(split.images), rtol=1e-5, atol=1e-6)


def test_evaluation_batch_defaults_to_the_training_batch() -> None:
    a = InMemoryEvalFeed(toy_split(23), SPEC, config(batch_size=5), rows=in_order())
    assert a.batches == (5, 5)


def test_images_of_another_shape_than_the_spec_are_refused() -> None:
    grey = Split(np.zeros((4, 8, 8, 1), np.uint8), np.zeros(4, np.int32))
    with pytest.raises(DataError, match=r"images are 8x8x1 .*, not 8x8x3"):
        InMemoryEvalFeed(grey, SPEC, config(), rows=in_order())
    with pytest.raises(DataError, match="not 8x8x3"):
        InMemoryFeed(grey, SPEC, config(batch_size=2), key=KEY, rows=WholeRows(jax.device_put))
