"""Every shipped preset resolves, builds, traces and stands for itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from functools import partial

import jax
import pytest

from gnpcli.config.loader import differences, flatten
from gnpcli.config.optimizers import SgdConfig
from gnpcli.config.resolved import Resolved
from gnpcli.data.registry import describe_data
from gnpcli.errors import ConfigError
from gnpcli.models.registry import MODELS, model_options
from gnpcli.recipes.presets import DEFAULT_PRESET, load_preset, preset_dir, preset_names, resolve
from gnpcli.recipes.wording import objective_in_words
from tests.tracing import abstract_task, kinds, trace

NAMES = preset_names()


def test_the_default_preset_and_all_files_are_listed():
    assert DEFAULT_PRESET in NAMES
    assert len(NAMES) == sum(path.is_file() for path in preset_dir().glob("*"))


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_opens_with_a_comment_and_says_its_purpose(name):
    text = (preset_dir() / f"{name}.yaml").read_text()
    assert text.startswith("# ")
    purpose = load_preset(name).purpose
    assert 10 < len(purpose) <= 76
    assert resolve(name).model.name in MODELS


def first_of(of: Callable[[Resolved], Hashable]) -> list[str]:
    """Return the first preset of each kind."""
    first: dict[Hashable, str] = {}
    for name in NAMES:
        first.setdefault(of(resolve(name)), name)
    return [*first.values()]


def network(config: Resolved) -> Hashable:
    """Return what the layers of a preset's network are, up to the number of classes."""
    info = describe_data(config.data)
    assert info is not None
    return config.model.model_dump_json(), info.image_size, info.channels


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("wrn-16-4-cifar10", "float32"),
        ("vgg16-bn-imagenet", "float32"),
        (DEFAULT_PRESET, "bfloat16"),
        ("wrn-16-4-cifar10", "bfloat16"),
    ],
)
def test_a_preset_traces_through_both_train_steps(name, dtype):
    """With its own network. The steps of all are in `tests.test_lowering`, with small ones."""
    trace(resolve(name, [f"train.dtype={dtype}", "mesh.devices=1"]))


@pytest.mark.slow
@pytest.mark.parametrize("name", first_of(network))
def test_the_network_of_a_preset_takes_its_images(name):
    config = resolve(name, ["mesh.devices=1"])
    task, state, _ = abstract_task(config)
    info = describe_data(config.data)
    images = jax.ShapeDtypeStruct((2, info.image_size, info.image_size, info.channels), "float32")
    key = jax.eval_shape(lambda: jax.random.key(0))
    apply = partial(task.parts.model.apply, train=True)
    logits, new_state = jax.eval_shape(apply, state.params, state.model_state, images, key=key)
    assert logits.shape == (2, info.num_classes)
    assert kinds(new_state) == kinds(state.model_state)


def test_no_two_presets_are_the_same():
    resolved = [(name, flatten(resolve(name))) for name in NAMES]
    for index, (name, values) in enumerate(resolved):
        for other, other_values in resolved[:index]:
            assert values != other_values, f"{name} and {other}"


def test_the_papers_recipes_are_what_their_code_ran():
    vit, warm, wide = (
        resolve(name)
        for name in ("vit-s-cifar10", "vit-s-cifar10-zero-warmup", "wrn-28-10-cifar10")
    )
    assert (vit.train.epochs, vit.data.batch_size, vit.optimizer.name, vit.optimizer.lr) == (
        300,
        256,
        "adamw",
        1e-3,
    )
    assert (vit.optimizer.weight_decay, vit.train.l2, vit.train.clip_norm) == (0.3, 0.0, 5.0)
    options = vit.model.model_dump()
    assert (options["patch_size"], options["dropout"]) == (4, 0.1)
    assert options["attention_dropout"] == 0.1
    assert (vit.gr.strategy, vit.gr.r, vit.gr.alpha, vit.schedule.warmup_epochs) == (
        "constant",
        0.1,
        0.8,
        0,
    )
    assert differences(vit, warm) == [
        "gr.alpha: 0.8 -> 1.0",
        "gr.strategy: constant -> zero-warmup",
        "schedule.warmup_epochs: 0.0 -> 40.0",
    ]
    for size in ("ti", "b"):
        assert differences(vit, resolve(f"vit-{size}-cifar10")) == [
            f"model.name: vit-s -> vit-{size}"
        ]
    assert (wide.train.epochs, wide.data.batch_size, wide.optimizer.lr, wide.train.l2) == (
        200,
        256,
        0.1,
        1e-3,
    )
    assert wide.optimizer.name == "sgd"
    assert isinstance(wide.optimizer, SgdConfig)
    assert (wide.optimizer.momentum, wide.optimizer.nesterov) == (0.9, True)
    assert (wide.gr.strategy, wide.gr.r, wide.gr.alpha, wide.gr.mix) == (
        "constant",
        0.1,
        0.8,
        "raw",
    )
    for name, changes in {
        "resnet50-cifar10": {
            "model.name": "resnet50",
            "model.stem": "cifar",
            "model.dropout": None,
        },
        "shake-shake-cifar10": {
            "model.name": "shake-shake-26-2x96d",
            "model.dropout": None,
            "model.clean_gradient": "shaken",
            "train.epochs": 1800,
        },
        "pyramidnet-shakedrop-cifar10": {
            "model.name": "pyramidnet-272-200-shakedrop",
            "model.dropout": None,
            "model.drop_path": 0.5,
            "model.clean_gradient": "shaken",
            "data.batch_size": 128,
            "data.augment": "autoaugment",
            "data.mix": "mixcut",
            "optimizer.lr": 0.05,
            "train.epochs": 1800,
            "train.l2": 5e-4,
        },
        "resnet50-imagenet": {
            "model.name": "resnet50",
            "model.stem": "imagenet",
            "model.dropout": None,
            "data.name": "imagenet",
            "data.image_size": 224,
            "data.batch_size": 512,
            "optimizer.lr": 0.2,
            "gr.r": 0.05,
            "train.epochs": 100,
            "train.l2": 1e-4,
        },
        "vgg16-bn-imagenet": {
            "model.name": "vgg16-bn",
            "model.dropout": 0.5,
            "data.name": "imagenet",
            "data.image_size": 224,
            "gr.r": 0.05,
            "train.epochs": 100,
            "train.l2": 1e-4,
        },
    }.items():
        own, base = flatten(resolve(name)), flatten(wide)
        keys = own.keys() | base.keys()
        found = {key: own.get(key) for key in keys if own.get(key) != base.get(key)}
        found.pop("checkpoint.every_epochs", None)
        assert found == changes, name
    for config in (vit, warm, wide):
        assert config.schedule.name == "cosine"
        assert config.data.augment == "basic"


@pytest.mark.parametrize(
    ("assignments", "formula"),
    [
        (["gr.strategy=none"], "L"),
        (
            ["gr.strategy=constant", "gr.r=0.1", "gr.alpha=0.8"],
            "L + 0.08 ||grad L||  (alpha 0.8, r 0.1, finite-difference)",
        ),
        (["gr.strategy=constant", "gr.r=0.1", "gr.alpha=0"], "L"),
        (
            ["gr.strategy=sam", "gr.r=0.05", "gr.gradient=exact"],
            "L + 0.05 ||grad L||  (alpha 1, r 0.05, exact)",
        ),
        (
            [
                "gr.strategy=r-warmup",
                "gr.r=0.1",
                "gr.alpha=0.5",
                "gr.warmup_epochs=3",
                "gr.mix=unit",
            ],
            "L + 0.05 ||grad L||  (alpha 0.5, r 0.1, finite-difference, unit clean gradient), "
            "r rising from 0 for the first 3 epochs",
        ),
        (
            [
                "optimizer.weight_decay=0",
                "train.l2=0.001",
                "gr.strategy=constant",
                "gr.r=0.1",
                "gr.alpha=1",
            ],
            "L + 0.0005 ||w||^2 + 0.1 ||grad (L + L2)||  (alpha 1, r 0.1, finite-difference)",
        ),
        (
            [
                *(
                    "optimizer.weight_decay=0",
                    "train.l2=0.001",
                    "gr.penalize_l2=false",
                    "gr.strategy=sam",
                    "gr.r=0.5",
                ),
                *("gr.ascent=adaptive", "gr.perturb=weights", "gr.surrogate_gap=0.4"),
            ],
            "L + 0.0005 ||w||^2 + 0.5 ||T grad L||  (alpha 1, r 0.5, finite-difference, "
            "T = |w| + 0.01 and 1 for biases and norms, perturbing weights, surrogate gap 0.4)",
        ),
        (
            [
                *(
                    "gr.strategy=sam",
                    "gr.r=0.1",
                    "data.batch_size=64",
                    "gr.groups=8",
                    "gr.batch_norm=synchronised",
                ),
                *("gr.every=5", "gr.between=reuse"),
            ],
            "L + 0.1 ||grad L||  (alpha 1, r 0.1, finite-difference, mean over 8 groups of 8 with "
            "one BatchNorm), "
            "one step in 5, between them reuse with weight 0.7",
        ),
        (
            [
                *(
                    "gr.strategy=zero-warmup",
                    "gr.warmup_epochs=3",
                    "gr.r=0.1",
                    "gr.alpha=1",
                    "gr.groups=per-device",
                    "data.batch_size=64",
                    "mesh.devices=4",
                ),
                *("gr.probability=0.2", "gr.probability_end=1"),
            ],
            "L + 0.1 ||grad L||  (alpha 1, r 0.1, finite-difference, mean over 4 groups of 16), "
            "plain for the first "
            "3 epochs, with a probability going from 0.2 to 1",
        ),
        (
            ["gr.strategy=sam", "gr.r=0.1", "gr.probability=0.5"],
            "L + 0.1 ||grad L||  (alpha 1, r 0.1, finite-difference), with probability 0.5",
        ),
    ],
)
def test_the_objective_is_a_formula_with_numbers(assignments, formula):
    assert objective_in_words(resolve(None, assignments)) == formula


def test_unknown_names_are_refused_with_the_close_match():
    for name, assignments, parts in (
        (
            "vit-s-cifar01",
            [],
            ["unknown preset 'vit-s-cifar01'", "'vit-s-cifar10'", "gnp presets list"],
        ),
        (None, ["model.name=vit-nanno"], ["--set: ", "'vit-nanno'", "'vit-nano'"]),
        (None, ["data.name=digit"], ["--set: ", "'digit'", "'digits'"]),
    ):
        with pytest.raises(ConfigError) as caught:
            resolve(name, assignments)
        for part in parts:
            assert part in str(caught.value)


def test_a_file_is_a_preset_and_may_build_on_a_shipped_one(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: vit-s-cifar10\npurpose: mine\noptimizer: {lr: 0.5}\n")
    assert differences(resolve("vit-s-cifar10"), resolve(str(path))) == [
        "optimizer.lr: 0.001 -> 0.5"
    ]


def test_another_model_drops_the_options_it_does_not_have():
    model = resolve("vit-s-cifar10", ["model.name=wrn-16-4"]).model
    assert model == model_options("wrn-16-4", dropout=0.1)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("base: vit-ti-cifar10\n", r"mine\.yaml:1: base 'vit-ti-cifar10' has a base itself"),
        ("purpose: x\nbase: vit-zz\n", r"mine\.yaml:2: unknown preset 'vit-zz'"),
        ("base: [a]\n", r"mine\.yaml:1: base must be the name"),
        ("purpose: [a]\n", r"mine\.yaml:1: purpose must be one line"),
        (
            "base: vit-s-cifar10\nmodel:\n  patch: 4\n",
            r"mine\.yaml:3: unknown key 'model.patch' - did you mean 'model.patch_size'",
        ),
        (
            "base: vit-s-cifar10\nmodel:\n  name: wrn-16-4\n  patch_size: 4\n",
            r"mine\.yaml:4: wrn-16-4 has no option 'patch_size'",
        ),
    ],
)
def test_bad_preset_files_are_refused_with_the_line(tmp_path, text, pattern):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        resolve(str(path))
    assert re.search(pattern, str(caught.value)), caught.value


def test_flags_lose_to_set_and_win_over_the_preset():
    config = resolve(
        None,
        ["train.seed=5"],
        {
            "train.seed": ("--seed", 3),
            "train.epochs": ("--epochs", 7),
            "data.dir": ("--data-dir", None),
        },
    )
    assert (config.train.seed, config.train.epochs, config.data.dir) == (5, 7, None)
