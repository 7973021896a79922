"""Policies on Pillow images: the operations are compared in test_augment_device."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from gnpcli.config.schema import DataConfig
from gnpcli.data.augment.host import HostPolicy, apply_operation, make_host_policy
from gnpcli.data.augment.policies import CIFAR_SCALE, Policy, Step, auto_augment, rand_augment


def config(**values: object) -> DataConfig:
    return DataConfig(name="folder:photographs", **values)  # type: ignore[arg-type]


def photograph(size: int = 24, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def test_streamed_images_take_imagenets_policy_or_the_one_named():
    made = make_host_policy(config(augment="autoaugment"))
    assert made == HostPolicy(auto_augment("imagenet"))
    named = make_host_policy(config(augment="autoaugment", autoaugment_policy="svhn"))
    assert named == HostPolicy(auto_augment("svhn"))
    rand = make_host_policy(
        config(augment="randaugment", randaugment_layers=1, randaugment_magnitude=3.0)
    )
    assert rand == HostPolicy(rand_augment("imagenet", layers=1, level=3.0))
    for augment in ("none", "crop", "basic"):
        assert make_host_policy(config(augment=augment)) is None


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("variant", ["paper", "upstream-compat"])
def test_image_is_a_function_of_the_generator_and_keeps_size_and_mode(mode, variant):
    policy = make_host_policy(config(augment="randaugment", augment_variant=variant))
    copy = pickle.loads(pickle.dumps(policy))
    image = photograph(mode=mode)
    assert policy is not None
    before = image.tobytes()
    outputs = [policy(image, np.random.default_rng(seed)) for seed in range(40)]
    again = [copy(image, np.random.default_rng(seed)) for seed in range(40)]
    assert {(output.size, output.mode) for output in outputs} == {(image.size, mode)}
    assert [output.tobytes() for output in outputs] == [output.tobytes() for output in again]
    assert len({output.tobytes() for output in outputs}) > 10
    assert image.tobytes() == before


def test_coins_signs_and_places_are_drawn():
    size, draws = 8, 4000
    rng = np.random.default_rng(0)
    image = Image.new("L", (size, size), 255)
    shift = HostPolicy(Policy(((Step("TranslateX", 0.3, 10.0),),), CIFAR_SCALE))  # two pixels
    found = [shift(image, rng).tobytes() for _ in range(draws)]
    left, right = (
        apply_operation(image, "TranslateX", argument).tobytes() for argument in (2.0, -2.0)
    )
    for outcome, probability in ((left, 0.15), (right, 0.15), (image.tobytes(), 0.7)):
        deviation = np.sqrt(draws * probability * (1 - probability))
        assert abs(found.count(outcome) - draws * probability) < 5 * deviation
    # Half a side of one pixel: the square's last pixel is its middle.
    paint = HostPolicy(Policy(((Step("Cutout", 1.0, 4.0),),), CIFAR_SCALE))
    table = np.zeros((size, size))
    for _ in range(draws):
        rows, columns = np.nonzero(np.asarray(paint(image, rng)) == 128)
        table[rows.max(), columns.max()] += 1
    deviation = np.sqrt(draws / size**2)
    assert np.abs(table - draws / size**2).max() < 5 * deviation


def test_choices_are_equally_likely_and_rounds_independent():
    rng, draws = np.random.default_rng(1), 4000
    choices = ((Step("Invert", 1.0, 0.0),), (Step("Posterize", 1.0, 10.0),))
    policy = HostPolicy(Policy(choices, CIFAR_SCALE, rounds=2))
    image = Image.new("L", (1, 1), 0b01010101)
    found = np.array([policy(image, rng).getpixel((0, 0)) for _ in range(draws)])
    inverted, kept = 0b10101010, 0b01010000
    expected = {0b01010101: 0.25, inverted & 0xF0: 0.25, 255 - kept: 0.25, kept: 0.25}
    for value, probability in expected.items():
        assert abs((found == value).sum() - draws * probability) < 5 * np.sqrt(
            draws * probability * (1 - probability)
        )


def test_workers_do_not_import_jax():
    code = "import sys, gnpcli.data.augment.host; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
