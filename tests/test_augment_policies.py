"""The policies as data: the published lists, and what a level means."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest

from gnpcli.config.schema import DataConfig
from gnpcli.data.augment import policies
from gnpcli.data.augment.policies import (
    CIFAR_SCALE,
    IMAGENET_SCALE,
    OPERATIONS,
    UPSTREAM_RAND_SCALE,
    UPSTREAM_SCALE,
    Step,
    auto_augment,
    is_flipped,
    make_policy,
    policy_for,
    rand_augment,
)

NAMES = ("cifar", "svhn", "imagenet")
VARIANTS = ("paper", "upstream-compat")
UNLEVELLED = {"AutoContrast", "Equalize", "Invert", "Identity"}


def config(name: str = "cifar10", **values: object) -> DataConfig:
    return DataConfig(name=name, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "variant"), list(product(NAMES, VARIANTS)))
def test_lists_are_pairs_of_known_operations(name, variant):
    choices = auto_augment(name, variant).choices
    assert len(choices) == (95 if (name, variant) == ("cifar", "upstream-compat") else 25)
    for choice in choices:
        assert len(choice) == 2
        for operation, probability, level in choice:
            assert operation in OPERATIONS
            assert 0 <= probability <= 1
            assert round(10 * probability) == pytest.approx(10 * probability)
            assert level in range(11)


def test_lists_hold_what_their_papers_say():
    # From the tables of 1805.09501's appendix: the first and last sub-policy, and how often
    # Equalize occurs.
    cifar, svhn, imagenet = (auto_augment(name).choices for name in NAMES)
    assert cifar[0] == (Step("Invert", 0.1, 0), Step("Contrast", 0.2, 6))
    assert cifar[24] == (Step("TranslateY", 0.7, 9), Step("AutoContrast", 0.9, 0))
    assert svhn[0] == (Step("ShearX", 0.9, 4), Step("Invert", 0.2, 0))
    assert svhn[24] == (Step("ShearX", 0.7, 2), Step("Invert", 0.1, 0))
    assert imagenet[0] == (Step("Posterize", 0.4, 8), Step("Rotate", 0.6, 9))
    assert imagenet[24] == (Step("Equalize", 0.8, 0), Step("Equalize", 0.6, 0))
    counts = [
        Counter(step.operation for choice in choices for step in choice)
        for choices in (cifar, svhn, imagenet)
    ]
    assert [count["Equalize"] for count in counts] == [9, 6, 17]
    assert [count["Cutout"] + count["SolarizeAdd"] for count in counts] == [0, 0, 0]
    # The papers' code: SVHN's list is the same; the other two know operations that the paper's
    # lists lack.
    assert auto_augment("svhn", "upstream-compat").choices[0] == svhn[0]
    upstream = Counter(
        step.operation
        for choice in auto_augment("cifar", "upstream-compat").choices
        for step in choice
    )
    assert (upstream["Cutout"], upstream["CountContrast"], upstream["Contrast"]) == (3, 6, 0)


@pytest.mark.parametrize(
    ("name", "reference"), [("cifar", "cifar10"), ("svhn", "svhn"), ("imagenet", "imagenet")]
)
def test_lists_are_torchvisions(name, reference):
    transforms = pytest.importorskip("torchvision.transforms.autoaugment", exc_type=ImportError)
    theirs = transforms.AutoAugment(transforms.AutoAugmentPolicy(reference)).policies
    ours = auto_augment(name).choices
    assert [
        tuple((op, p, 0 if op in UNLEVELLED else level) for op, p, level in choice)
        for choice in theirs
    ] == [tuple(map(tuple, choice)) for choice in ours]


@pytest.mark.parametrize(
    ("scale", "size"), [(CIFAR_SCALE, 32), (IMAGENET_SCALE, 224), (IMAGENET_SCALE, 331)]
)
def test_ends_of_the_scales_are_torchvisions(scale, size):
    # Between the ends torchvision has ten steps from 0 to 9, the authors' code and this one level /
    # 10; and it gives blends a sign where the paper's table has the range 0.1 to 1.9.
    transforms = pytest.importorskip("torchvision.transforms.autoaugment", exc_type=ImportError)
    space = transforms.AutoAugment()._augmentation_space(11, (size, size))
    for name in ("ShearX", "ShearY", "Rotate", "Posterize"):
        ends = [float(space[name][0][level]) for level in (0, 10)]
        assert [scale.argument(name, level, size) for level in (0, 10)] == pytest.approx(ends)
        assert space[name][1] == (name in policies.SIGNED)
    if scale is IMAGENET_SCALE:
        for name in ("TranslateX", "TranslateY"):
            assert scale.argument(name, 10, size) == int(float(space[name][0][10]) + 1e-4)


@pytest.mark.parametrize(
    ("scale", "size", "operation", "arguments"),
    [
        (CIFAR_SCALE, 32, "ShearX", {0: 0, 5: 0.15, 10: 0.3}),
        (CIFAR_SCALE, 32, "Rotate", {0: 0, 3: 9, 10: 30}),
        (CIFAR_SCALE, 32, "TranslateX", {0: 0, 3: 3, 7: 7, 9: 9, 10: 10}),
        (CIFAR_SCALE, 8, "TranslateY", {9: 2, 10: 2}),
        (CIFAR_SCALE, 32, "Cutout", {0: 0, 3: 3, 10: 10}),
        (IMAGENET_SCALE, 224, "TranslateX", {1: 10, 10: 101}),
        (IMAGENET_SCALE, 331, "TranslateY", {10: 150}),
        (IMAGENET_SCALE, 331, "Cutout", {10: 30}),
        (CIFAR_SCALE, 32, "Solarize", {0: 256, 5: 128, 10: 0}),
        (CIFAR_SCALE, 32, "Posterize", {0: 8, 5: 6, 9: 4, 10: 4}),
        (CIFAR_SCALE, 32, "Contrast", {0: 0.1, 5: 1.0, 10: 1.9}),
        (CIFAR_SCALE, 32, "Sharpness", {0: 0.1, 10: 1.9}),
        (CIFAR_SCALE, 32, "SolarizeAdd", {0: 0, 10: 110}),
        (CIFAR_SCALE, 32, "Equalize", {0: 0, 10: 0}),
    ],
)
def test_paper_scale(scale, size, operation, arguments):
    found = {level: scale.argument(operation, level, size) for level in arguments}
    assert found == pytest.approx(arguments)


@pytest.mark.parametrize("size", [32, 224])
def test_upstream_scale_is_its_formulas_at_every_size(size):
    for level in range(11):
        share = level / 10
        expected = {
            "TranslateX": share * 250,
            "TranslateY": share * 250,
            "Cutout": int(share * 100),
            "Posterize": int(share * 4),
            "Solarize": int(share * 256),
            "SolarizeAdd": int(share * 110),
            "Color": share * 1.8 + 0.1,
            "CountContrast": share * 1.8 + 0.1,
            "ShearX": share * 0.3,
            "Rotate": share * 30,
        }
        found = {name: UPSTREAM_SCALE.argument(name, level, size) for name in expected}
        assert found == pytest.approx(expected)
        assert UPSTREAM_RAND_SCALE.argument("TranslateX", level, size) == pytest.approx(share * 100)
        assert UPSTREAM_RAND_SCALE.argument("Cutout", level, size) == int(share * 40)


def test_randaugment_draws_from_single_operations_at_one_level():
    policy = rand_augment("cifar", layers=3, level=7.5)
    assert policy.rounds == 3
    assert len(policy.choices) == len(set(policy.choices)) == 14
    assert {step for (step,) in policy.choices} == {
        Step(step.operation, 1.0, 7.5) for (step,) in policy.choices
    }
    upstream = rand_augment("cifar", "upstream-compat", layers=1, level=9.0)
    names = {step.operation for (step,) in upstream.choices}
    assert len(upstream.choices) == len(names) == 16
    assert {"Invert", "SolarizeAdd", "Cutout"} <= names
    assert "Identity" not in names
    assert upstream.scale is UPSTREAM_RAND_SCALE
    assert rand_augment("imagenet", layers=1, level=9.0).scale is IMAGENET_SCALE


@pytest.mark.parametrize(
    ("name", "is_streamed", "expected"),
    [
        ("cifar10", False, "cifar"),
        ("fashion_mnist", False, "cifar"),
        ("folder:/x", False, "cifar"),
        ("folder:/x", True, "imagenet"),
        ("svhn_cropped", False, "svhn"),
        ("tfds:svhn_cropped", False, "svhn"),
        ("digits", False, "svhn"),
    ],
)
def test_policy_follows_the_data_and_digits_are_not_mirrored(name, is_streamed, expected):
    chosen = config(name, augment="autoaugment")
    assert policy_for(chosen, name, is_streamed=is_streamed) == expected
    assert make_policy(chosen, name, is_streamed=is_streamed) == auto_augment(expected)
    assert is_flipped(chosen, name, is_streamed=is_streamed) == (expected != "svhn")
    # What a person asks for by name is what happens.
    assert is_flipped(config(name, augment="basic"), name, is_streamed=is_streamed)
    assert not is_flipped(config(name, augment="crop"), name, is_streamed=is_streamed)
    given = config(
        name,
        augment="autoaugment",
        autoaugment_policy="imagenet",
        augment_variant="upstream-compat",
    )
    assert make_policy(given, name, is_streamed=is_streamed) == auto_augment(
        "imagenet", "upstream-compat"
    )


@pytest.mark.parametrize("augment", ["none", "crop", "basic"])
def test_other_augmentation_has_no_policy(augment):
    assert make_policy(config(augment=augment), "cifar10", is_streamed=False) is None


def test_randaugment_takes_its_settings():
    chosen = config(augment="randaugment", randaugment_layers=3, randaugment_magnitude=4.0)
    assert make_policy(chosen, "cifar10", is_streamed=False) == rand_augment(
        "cifar", layers=3, level=4.0
    )
