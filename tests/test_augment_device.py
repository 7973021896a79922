"""Policies on the device against Pillow, operation by operation and as a whole, and their draws."""

from __future__ import annotations

import io
import tarfile
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageOps

from gnpcli.config.schema import DataConfig
from gnpcli.data.augment import host
from gnpcli.data.augment.device import apply_policy, draw
from gnpcli.data.augment.passes import apply_layer, apply_operation
from gnpcli.data.augment.policies import (
    CIFAR_SCALE,
    IMAGENET_SCALE,
    OPERATIONS,
    SIGNED,
    UPSTREAM_SCALE,
    Policy,
    Step,
    auto_augment,
    rand_augment,
)
from gnpcli.data.augment.rows import make_layer
from gnpcli.data.base import Split
from gnpcli.data.sources.digits import load as load_digits
from tests.conftest import SHARED_DATA

KEY = jax.random.key(3)


def square(image: Image.Image, size: int) -> np.ndarray:
    return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))


@cache
def real_images(size: int) -> np.ndarray:
    """Five photographs of CIFAR-10 and five of ImageNet."""
    found: list[np.ndarray] = []
    for archive in ("cifar10-jpeg.tar.xz", "imagenet-samples-120.tar"):
        path = SHARED_DATA / archive
        if not path.is_file():
            pytest.skip(f"{path} is not there")
        wanted = len(found) + 5
        with tarfile.open(path) as members:
            for member in members:
                if member.isfile():
                    data = members.extractfile(member).read()
                    found.append(square(Image.open(io.BytesIO(data)), size))
                if len(found) == wanted:
                    break
    return np.stack(found)


@cache
def made_images(size: int) -> np.ndarray:
    """Noise, dark and pale noise, ramps, one colour, two colours, and enlarged digits."""
    rng = np.random.default_rng(size)
    noise = rng.integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    noise[1] //= 5
    noise[2] = 200 + noise[2] // 5
    y, x = np.mgrid[:size, :size]
    ramp = np.stack(
        [255 * x // (size - 1), 255 * y // (size - 1), (3 * x + 5 * y) % 256], -1
    ).astype(np.uint8)
    one = np.full((size, size, 3), (7, 128, 250), np.uint8)
    two = np.where((x > y)[..., None], one, np.uint8(60))
    digits = load_digits(DataConfig(name="digits", image_size=size)).test
    assert isinstance(digits, Split)
    return np.stack([*noise, ramp, one, two, *np.repeat(digits.images[:2], 3, axis=-1)])


IMAGES = {"made": made_images, "real": real_images}


def to_pillow(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def from_pillow(image: Image.Image) -> np.ndarray:
    return np.asarray(image).reshape(image.height, image.width, -1)


def arguments(name: str, size: int) -> list[float]:
    """Every argument that an operation takes at a whole level of any scale, with both signs."""
    scales = (CIFAR_SCALE, IMAGENET_SCALE, UPSTREAM_SCALE)
    found = {scale.argument(name, level, size) for scale in scales for level in range(11)}
    return sorted(found | {-value for value in found}) if name in SIGNED else sorted(found)


@cache
def both(kind: str, size: int, channels: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Apply every operation with every argument to every image: its name, the device's result and
    Pillow's.
    """
    images = IMAGES[kind](size)[..., :channels]
    operations = [(name, argument) for name in OPERATIONS for argument in arguments(name, size)]
    rows = np.repeat(np.arange(1, len(operations) + 1, dtype=np.int32), len(images))
    centres = np.random.default_rng(0).integers(0, size, (2, len(rows)), dtype=np.int32)
    batch = np.tile(images, (len(operations), 1, 1, 1))
    layer = make_layer(operations, size)
    device = np.asarray(
        jax.jit(partial(apply_layer, layer=layer))(batch, rows=rows, centres=centres)
    )
    drawn = [layer.operations[row] for row in rows]
    pillow = [
        from_pillow(host.apply_operation(to_pillow(image), name, argument, (int(x), int(y))))
        for image, (name, argument), y, x in zip(batch, drawn, *centres, strict=True)
    ]
    return [layer.operations[row][0] for row in rows], device, np.stack(pillow)


CASES = [("made", 32, 3), ("made", 57, 1), ("real", 32, 3), ("real", 57, 3), ("real", 32, 1)]


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize(("kind", "size", "channels"), CASES)
def test_operation_is_pillows_at_every_level(kind, size, channels, name):
    names, device, pillow = both(kind, size, channels)
    assert device.dtype == np.uint8
    chosen = np.array(names) == name
    difference = np.abs(device[chosen].astype(int) - pillow[chosen])
    if name == "AutoContrast":
        # Pillow's floating point falls just short of some whole numbers; see the module.
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.02
    else:
        assert difference.max() == 0


def test_operations_that_pillow_lacks_are_their_definitions():
    image = made_images(32)[0]
    apply = lambda *arguments: from_pillow(host.apply_operation(to_pillow(image), *arguments))  # noqa: E731
    added = np.where(image < 128, np.minimum(image.astype(int) + 110, 255), image)
    np.testing.assert_array_equal(apply("SolarizeAdd", 110.0), added)
    for bits in range(1, 9):
        np.testing.assert_array_equal(
            apply("Posterize", float(bits)), ImageOps.posterize(to_pillow(image), bits)
        )
    assert (apply("Posterize", 0.0) == 0).all()
    # 1,024 pixels: blended with 4.
    np.testing.assert_array_equal(apply("CountContrast", 0.0), np.full_like(image, 4))
    np.testing.assert_array_equal(
        apply("CountContrast", 0.5), (4 + (image.astype(int) - 4) / 2).astype(int)
    )
    painted = image.copy()
    painted[2:12, 0:6] = 128
    np.testing.assert_array_equal(apply("Cutout", 5.0, (1, 7)), painted)
    np.testing.assert_array_equal(apply("Cutout", 0.0, (1, 7)), image)
    np.testing.assert_array_equal(apply("Identity", 0.0), image)
    with pytest.raises(ValueError, match="unknown operation 'Sheer'"):
        apply("Sheer", 0.0)


def test_positive_arguments_move_towards_the_origin_and_turn_counter_clockwise():
    dot = np.zeros((1, 9, 9, 1), np.uint8)
    dot[0, 4, 6] = 255

    def place(name: str, argument: float) -> tuple[int, int]:
        out = np.asarray(apply_operation(jnp.asarray(dot), name, argument))[0, :, :, 0]
        (y,), (x,) = np.nonzero(out == 255)
        return int(y), int(x)

    assert place("TranslateX", 3.0) == (4, 3)
    assert place("TranslateY", -2.0) == (6, 6)
    assert place("Rotate", 90.0) == (2, 4)
    assert place("ShearX", 0.25) == (4, 5)
    assert place("ShearY", 0.25) == (2, 6)


def test_uncovered_pixels_are_grey():
    out = apply_operation(jnp.zeros((2, 6, 6, 3), jnp.uint8), "TranslateX", 4.0)
    assert (np.asarray(out)[:, :, :2] == 0).all()
    assert (np.asarray(out)[:, :, 2:] == 128).all()


# --- whole policies

POLICIES = {
    "cifar": auto_augment("cifar"),
    "rand-upstream": rand_augment("cifar", "upstream-compat", layers=3, level=4.0),
}


@pytest.mark.parametrize("name", POLICIES)
def test_policy_is_its_draws_done_by_pillow(name):
    policy = POLICIES[name]
    images = np.tile(made_images(32), (25, 1, 1, 1))
    out = np.asarray(jax.jit(partial(apply_policy, policy=policy))(KEY, images))
    assert out.dtype == np.uint8
    draws = draw(KEY, policy, len(images), 32)
    rows = np.stack([drawn.rows for drawn in draws])
    centres = np.stack([drawn.centres for drawn in draws])
    compared = 0
    for index, image in enumerate(images):
        steps = [
            drawn.layer.operations[row] for drawn, row in zip(draws, rows[:, index], strict=True)
        ]
        if any(operation == "AutoContrast" for operation, _ in steps):
            continue  # one level off, which a later Equalize may enlarge
        expected = to_pillow(image)
        for (name, argument), (y, x) in zip(steps, centres[:, :, index], strict=True):
            expected = host.apply_operation(expected, name, argument, (int(x), int(y)))
        np.testing.assert_array_equal(out[index], from_pillow(expected))
        compared += 1
    assert compared > 100


def test_policy_depends_on_the_key_only():
    images = jnp.asarray(made_images(32))
    policy = Policy(tuple((Step(name, 0.9, 8.0),) for name in ("ShearX", "Equalize")), CIFAR_SCALE)
    eager = apply_policy(KEY, images, policy)
    jitted = jax.jit(partial(apply_policy, policy=policy))
    np.testing.assert_array_equal(jitted(KEY, images), eager)
    np.testing.assert_array_equal(jitted(KEY, images), eager)
    assert (np.asarray(jitted(jax.random.key(4), images)) != np.asarray(eager)).any()


def within(count: np.ndarray | float, size: int, probability: np.ndarray | float) -> None:
    """Assert that counts lie within five deviations of a binomial distribution's mean."""
    probability = np.asarray(probability)
    deviation = np.sqrt(size * probability * (1 - probability))
    assert (np.abs(np.asarray(count) - size * probability) <= 5 * deviation + 1e-9).all()


@pytest.mark.parametrize("name", ["cifar", "svhn", "imagenet"])
def test_each_image_draws_a_sub_policy_and_a_coin_and_a_sign_for_each_step(name):
    policy, size = auto_augment(name), 20_000
    draws = draw(KEY, policy, size, 32)
    assert len(draws) == 2
    expected: dict[tuple[tuple[str, float], ...], float] = {}
    nothing = ("Identity", 0.0)

    def outcomes(step: Step) -> list[tuple[tuple[str, float], float]]:
        argument = policy.scale.argument(step.operation, step.level, 32)
        signs = (-1, 1) if step.operation in SIGNED else (1,)
        done = [
            ((step.operation, sign * argument), step.probability / len(signs)) for sign in signs
        ]
        return [*done, (nothing, 1 - step.probability)]

    for first, second in policy.choices:
        for one, p in outcomes(first):
            for other, q in outcomes(second):
                expected[one, other] = expected.get((one, other), 0) + p * q / len(policy.choices)
    rows = [np.asarray(drawn.rows) for drawn in draws]
    found: dict[tuple[tuple[str, float], ...], int] = dict.fromkeys(expected, 0)
    for pair in zip(*rows, strict=True):
        found[
            tuple(drawn.layer.operations[row] for drawn, row in zip(draws, pair, strict=True))
        ] += 1
    assert found.keys() == expected.keys()
    within(np.array(list(found.values())), size, np.array(list(expected.values())))


def test_randaugment_draws_anew_in_each_round():
    size = 20_000
    draws = draw(KEY, rand_augment("cifar", layers=2, level=9.0), size, 32)
    names = [
        np.array([drawn.layer.operations[row][0] for row in np.asarray(drawn.rows).tolist()])
        for drawn in draws
    ]
    pairs, counts = np.unique(np.stack(names), axis=1, return_counts=True)
    assert pairs.shape[1] == 14**2
    within(counts, size, 1 / 14**2)


def test_cutout_squares_lie_anywhere():
    draws = draw(KEY, Policy(((Step("Cutout", 1.0, 5.0),),), CIFAR_SCALE), 20_000, 8)
    places = np.asarray(draws[0].centres)
    table = np.zeros((8, 8))
    np.add.at(table, tuple(places), 1)
    within(table, 20_000, 1 / 64)


def constant_share(policy: Policy) -> float:
    images = np.random.default_rng(0).integers(0, 256, (4000, 32, 32, 3), dtype=np.uint8)
    out = np.asarray(jax.jit(partial(apply_policy, policy=policy))(KEY, images))
    return float((out == out[:, :1, :1]).all(axis=(1, 2, 3)).mean())


def test_upstream_magnitudes_empty_small_images_and_the_papers_do_not():
    # 12.2 % follow from the list: translations from level 2 on empty an image, and squares at level
    # 4, or at level 3 where their middle is not at the edge.
    upstream = auto_augment("cifar", "upstream-compat")
    within(4000 * constant_share(upstream), 4000, 0.122)
    assert constant_share(Policy(upstream.choices, CIFAR_SCALE)) == 0
