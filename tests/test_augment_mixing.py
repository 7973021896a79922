"""Erasing, cutout, mixup and cutmix: shapes, places, weights, and who mixes with whom."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gnpcli.data.augment.mixing import cutmix, cutout, mixup, random_erasing

KEY = jax.random.key(11)


def ones(batch: int, height: int = 32, width: int = 32, channels: int = 1) -> jax.Array:
    return jnp.ones((batch, height, width, channels), jnp.float32)


def numbered(batch: int, size: int = 16) -> jax.Array:
    """Return image i filled with i."""
    return jnp.broadcast_to(
        jnp.arange(batch, dtype=jnp.float32)[:, None, None, None], (batch, size, size, 3)
    )


def rectangles(cut: np.ndarray) -> np.ndarray:
    """Return first and end row, first and end column of where bool ``[B, H, W]`` holds, int ``[B,
    4]``.

    Asserts that it holds in one rectangle, or nowhere (then all are 0).
    """
    found = np.zeros((len(cut), 4), int)
    for index, image in enumerate(cut):
        rows, columns = np.nonzero(image.any(1))[0], np.nonzero(image.any(0))[0]
        if len(rows):
            found[index] = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
            assert image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
            assert image.sum() == (rows[-1] + 1 - rows[0]) * (columns[-1] + 1 - columns[0])
    return found


def sides(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]


# --- random erasing


def test_erasing_clears_a_rectangle_of_the_papers_area_and_aspect():
    batch = 3000
    out = np.asarray(
        jax.jit(partial(random_erasing, probability=1.0))(KEY, ones(batch, channels=2))
    )
    assert ((out == 0) | (out == 1)).all()
    assert (out[..., 0] == out[..., 1]).all()
    boxes = rectangles(out[..., 0] == 0)
    height, width = sides(boxes)
    # Sides are rounded to whole pixels: by half a pixel each.
    assert ((height + 0.5) * (width + 0.5)).min() >= 0.02 * 32**2
    assert ((height - 0.5) * (width - 0.5)).max() <= 0.33 * 32**2
    assert ((height - 0.5) / (width + 0.5)).max() <= 1 / 0.3
    assert ((height + 0.5) / (width - 0.5)).min() >= 0.3
    share = height * width / 32**2
    assert abs(share.mean() - (0.02 + 0.33) / 2) < 5 * 0.09 / np.sqrt(batch)
    # Height and width are alike, and every place where the rectangle fits is as likely as any
    # other.
    assert abs(np.log(height / width).mean()) < 5 * 0.7 / np.sqrt(batch)
    narrow = height == 10
    places = np.bincount(boxes[narrow, 0], minlength=23)
    assert len(places) == 23
    assert np.abs(places - narrow.sum() / 23).max() < 5 * np.sqrt(narrow.sum() / 23)


def test_erasing_happens_with_its_probability_and_cuts_long_rectangles():
    batch, probability = 1000, 0.3
    out = np.asarray(
        jax.jit(partial(random_erasing, probability=probability))(KEY, ones(batch, 6, 40))
    )
    erased = (out == 0).any(axis=(1, 2, 3))
    assert abs(erased.mean() - probability) < 5 * np.sqrt(probability * (1 - probability) / batch)
    height, _ = sides(rectangles(out[..., 0] == 0))
    assert height.max() == 6


# --- cutout


@pytest.mark.parametrize("size", [1, 5, 8])
def test_cutout_squares_have_their_middle_anywhere_and_are_clipped(size):
    batch = 6400
    out = np.asarray(jax.jit(partial(cutout, size=size))(KEY, ones(batch, 8, 8)))
    boxes = rectangles(out[..., 0] == 0)
    middle = np.arange(8)
    intervals = [(max(m - size // 2, 0), min(m - size // 2 + size, 8)) for m in middle]
    expected = {(*rows, *columns) for rows in intervals for columns in intervals}
    found, counts = np.unique(boxes, axis=0, return_counts=True)
    assert set(map(tuple, found.tolist())) == expected
    assert len(expected) == 64
    assert np.abs(counts - 100).max() < 5 * np.sqrt(100)


def test_shared_cutout_is_one_square():
    cut = jax.jit(partial(cutout, size=4, shared=True))
    out = [np.asarray(cut(jax.random.key(seed), ones(7, 8, 8))) for seed in range(30)]
    assert all((batch == batch[:1]).all() for batch in out)
    assert len({batch.tobytes() for batch in out}) > 10


# --- mixup


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixup_weights_are_beta_and_images_and_labels_share_them(alpha):
    batch = 3000
    labels = jnp.eye(batch, dtype=jnp.float32)
    images, mixed = jax.jit(partial(mixup, alpha=alpha))(KEY, numbered(batch, 2), labels)
    mixed = np.asarray(mixed)
    here = np.arange(batch)
    weights = mixed[here, here]
    np.testing.assert_allclose(mixed[here, (here + 1) % batch], 1 - weights, atol=1e-6)
    np.testing.assert_allclose(mixed.sum(1), 1, atol=1e-6)
    expected = weights * here + (1 - weights) * ((here + 1) % batch)
    np.testing.assert_allclose(
        images, np.broadcast_to(expected[:, None, None, None], images.shape), rtol=1e-5
    )
    # 1.95 / sqrt(n): once in a thousand keys.
    assert stats.kstest(weights, stats.beta(alpha, alpha).cdf).statistic < 1.95 / np.sqrt(batch)


def test_shared_mixup_has_one_large_weight_and_mirrors_the_batch():
    labels = jnp.eye(5, dtype=jnp.float32)
    mix = jax.jit(partial(mixup, alpha=1.0, shared=True))
    seen = set()
    for seed in range(20):
        images, mixed = map(np.asarray, mix(jax.random.key(seed), numbered(5), labels))
        weight = mixed[0, 0]
        assert 0.5 <= weight <= 1
        seen.add(float(weight))
        np.testing.assert_allclose(
            mixed, weight * np.eye(5) + (1 - weight) * np.eye(5)[::-1], atol=1e-6
        )
        np.testing.assert_allclose(
            images[:, 0, 0, 0], weight * np.arange(5) + (1 - weight) * np.arange(5)[::-1]
        )
        # The middle image of an odd batch is its own partner.
        assert mixed[2, 2] == pytest.approx(1)
    assert len(seen) == 20


# --- cutmix


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_cutmix_labels_are_the_pixel_shares(alpha, shared):
    batch = 301
    images, mixed = jax.jit(partial(cutmix, alpha=alpha, shared=shared))(
        KEY, numbered(batch), jnp.eye(batch, dtype=jnp.float32)
    )
    images, mixed = np.asarray(images)[..., 0], np.asarray(mixed)
    here = np.arange(batch)
    partner = here[::-1] if shared else (here + 1) % batch
    own = images == here[:, None, None]
    assert (own | (images == partner[:, None, None])).all()
    np.testing.assert_allclose(mixed.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(mixed[here, here], own.mean(axis=(1, 2)), atol=1e-6)
    boxes = rectangles(~own)
    if shared:
        others = here != partner
        assert len(np.unique(boxes[others], axis=0)) == 1
    else:
        assert len(np.unique(boxes, axis=0)) > 100


def test_cutmix_boxes_have_the_papers_sides_and_a_uniform_middle():
    batch, size = 4000, 16
    mix = jax.jit(partial(cutmix, alpha=1.0))
    images, _ = mix(KEY, numbered(batch), jnp.zeros((batch, 2), jnp.float32))
    boxes = rectangles(np.asarray(images)[..., 0] != np.arange(batch)[:, None, None])
    inside = (boxes[:, ::2] > 0).all(1) & (boxes[:, 1::2] < size).all(1)
    height, width = sides(boxes[inside])
    assert (height == width).all()
    # 1 - w is uniform: the side is k with probability ((k + 1)^2 - k^2) / 16^2. Of 16 middles on
    # each axis, 15 - k keep the square off both edges.
    found = np.bincount(height, minlength=size)
    side = np.arange(1, size)
    probability = (2 * side + 1) / size**2 * ((size - 1 - side) / size) ** 2
    assert (
        np.abs(found[1:] - batch * probability)
        <= 5 * np.sqrt(batch * probability * (1 - probability))
    ).all()


def test_a_batch_of_one_mixes_with_itself():
    labels = jnp.asarray([[0.0, 1.0]], jnp.float32)
    for mix in (mixup, cutmix):
        images, mixed = jax.jit(partial(mix, alpha=1.0))(KEY, 3 * ones(1), labels)
        np.testing.assert_allclose(images, 3 * ones(1), rtol=1e-6)
        np.testing.assert_allclose(mixed, labels, rtol=1e-6)
