"""The registry: every architecture's parameters counted against the reference table, traced, and
named right.
"""

from __future__ import annotations

import csv
import functools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

from gnpcli.errors import ConfigError
from gnpcli.models.base import count_parameters
from gnpcli.models.options import every_option
from gnpcli.models.registry import MODELS, model_options
from gnpcli.models.summary import summarize
from gnpcli.recipes.presets import resolve
from tests.conftest import SHARED_DATA, fails
from tests.networks import build

TABLE = Path(__file__).parent / "zoo.txt"
"""The parameter counts of every architecture in its forms; its head says what the columns are."""


class Row(NamedTuple):
    name: str
    model: str
    default: int | None
    upstream_10: int | None
    upstream_100: int | None
    upstream_1000: int | None
    upstream_state: int | None
    reference: int | None


def read_row(line: str) -> Row:
    """Read a line of the table; ``-`` is nothing."""
    name, model, *cells = line.split()
    return Row(name, model, *(None if cell == "-" else int(cell) for cell in cells))


ROWS = [read_row(line) for line in TABLE.read_text().splitlines() if not line.startswith("#")]

# Options of the forms that are counted, by family: at 224 pixels, of the papers' code and of the
# reference.
FORMS_224: dict[str, tuple[Any, Any]] = {
    "vgg": ({}, {}),
    "resnet": ({"stem": "imagenet"}, {"stem": "imagenet"}),
    "wide_resnet": ({}, None),
    "shake_shake": ({}, None),
    "pyramidnet": (None, None),
    "vit": ({"patch_size": 16}, {"patch_size": 16}),
    "swin": ({"patch_size": 4, "window_size": 7}, {"patch_size": 4, "window_size": 7}),
    "cait": ({}, {"patch_size": 16}),
}

# One of each family, small enough to be traced in all its forms by the quick tests.
QUICK = {"vgg16-bn", "resnet18", "wrn-16-4", "vit-nano", "vit-ti", "swin-t", "cait-xxs12"}


def slow_unless(is_quick, value, name):
    return pytest.param(value, id=name, marks=() if is_quick else pytest.mark.slow)


def family(model):
    return MODELS[model].module.rpartition(".")[2]


@functools.cache
def shapes(model, size=32, **options):
    built = build(model, image_size=size, **options)
    return built, *jax.eval_shape(lambda: built.init(jax.random.key(0), (size, size, 3)))


def scalars(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def counts(model, size, options, classes):
    """Count for each number of classes from one trace: in the head, every class has its own weights
    and bias.
    """
    _, params, _ = shapes(model, size, **options)
    head = scalars(params["head"])
    return [scalars(params) - head + head * number // 10 for number in classes]


# --- counts


def test_the_table_is_that_of_the_registry_and_of_the_reference():
    assert {row.model for row in ROWS} <= set(MODELS)
    assert len(ROWS) == 42
    path = SHARED_DATA.parent / "reference" / "models.csv"
    if not path.exists():
        pytest.skip("the reference table is not here")
    with path.open() as file:
        reference = list(csv.DictReader(file))
    columns = (
        "name",
        "upstream_params_cifar10",
        "upstream_params_cifar100",
        "upstream_params_224_1000",
        "upstream_bn_state_cifar10",
        "reference_params",
    )
    ours = [[row.name, *row[3:]] for row in ROWS]
    assert ours == [
        [line["name"], *(int(line[c]) if line[c] else None for c in columns[1:])]
        for line in reference
    ]


@pytest.mark.parametrize("row", [slow_unless(r.model in QUICK, r, r.name) for r in ROWS])
def test_parameter_counts_of_all_forms(row):
    at_224, reference = FORMS_224[family(row.model)]
    upstream = (
        {"variant": "upstream"} if "variant" in MODELS[row.model].options.option_names() else {}
    )
    patch = {"patch_size": 4} if row.name.endswith("_Patch4") else {}
    if row.upstream_10:
        assert counts(row.model, 32, upstream | patch, [10, 100]) == [
            row.upstream_10,
            row.upstream_100,
        ]
        assert scalars(shapes(row.model, **upstream, **patch)[2]) == (row.upstream_state or 0)
    if row.upstream_1000:
        # Only the first dense layer of VGG and the positions of a ViT or CaiT depend on the size of
        # the images.
        size = 32 if family(row.model) in ("wide_resnet", "shake_shake", "resnet") else 224
        assert counts(row.model, size, upstream | at_224, [1000]) == [row.upstream_1000]
    if reference is None:
        assert row.reference == row.default
    else:
        size = 32 if family(row.model) == "resnet" else 224
        assert counts(row.model, size, reference, [1000]) == [row.reference]


@pytest.mark.parametrize("model", ["vgg16-bn", "resnet18", "wrn-16-4", "vit-nano"])
def test_counts_of_other_images_and_classes(model):
    """The head alone grows with the classes, the stem alone with the channels; no number of either
    is special.
    """
    _, params, _ = shapes(model)
    head = scalars(params["head"]) // 10
    for classes, channels in ((7, 3), (200, 1)):
        built = build(model, num_classes=classes, channels=channels)
        stem = params.get("stem", params.get("conv_1", params.get("patch_embedding")))
        bias = 0 if "stem" in params else scalars(jax.tree.leaves(stem)[0])
        fewer = (scalars(stem) - bias) * (3 - channels) // 3
        assert count_parameters(built, (32, 32, channels)) == scalars(params) - fewer + head * (
            classes - 10
        )


# --- contract


@pytest.mark.parametrize("name", [slow_unless(name in QUICK, name, name) for name in MODELS])
def test_every_model_traces_keeps_the_contract_and_has_its_counts(name):
    entry = MODELS[name]
    size = entry.image_size
    model, params, state = shapes(name, size)
    assert scalars(params) == entry.parameters
    assert {row.default for row in ROWS if row.model == name} <= {entry.parameters, None}
    # The decay mask of the optimizer rests on it.
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        assert (leaf.ndim == 1) == (path[-1].key in ("bias", "qkv_bias", "scale")), path
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((params, state)))
    assert type(params) is dict
    assert type(state) is dict
    assert set(state) <= {"batch_stats"}
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    # Of evaluation the operations are counted below, which traces it, too.
    for train in (True, False) if name in QUICK else (True,):
        apply = functools.partial(model.apply, train=train)
        run = jax.eval_shape(apply, params, state, images, key=key)
        assert run == (jax.ShapeDtypeStruct((2, 10), jnp.float32), state)
    summary = summarize(model, (size, size, 3))
    assert summary.gflop == pytest.approx(entry.gflop, rel=5e-3)
    assert summary.parameters == entry.parameters


@pytest.mark.parametrize("name", MODELS)
def test_entries_are_consistent(name):
    entry = MODELS[name]
    assert entry.paper
    assert entry.load().tiny is not None
    assert entry.options.shaping <= set(entry.options.option_names())
    options = model_options(name)
    assert options.model_dump() == {"name": name, **entry.options.defaults()}
    assert model_options(**options.model_dump()) == options
    nulls = dict.fromkeys(every_option() - {"name"})
    assert model_options(name, **nulls) == options
    fields = entry.options.model_fields
    assert all(fields[option].description for option in entry.options.option_names())


# --- names, options


def test_resolve_keeps_what_was_chosen():
    assert model_options("vit-ti", dropout=0.1).model_dump() == {
        "name": "vit-ti",
        "patch_size": 4,
        "dropout": 0.1,
        "attention_dropout": 0.0,
        "gelu": "tanh",
    }


def test_unknown_model_names_the_closest():
    with pytest.raises(
        ConfigError, match=r"unknown model 'vit-tiny' - did you mean 'vit-ti'\?.*wrn-28-10"
    ) as caught:
        model_options("vit-tiny")
    assert caught.value.key == "model.name"


@pytest.mark.parametrize(
    ("name", "option", "value", "has"),
    [
        ("wrn-16-4", "patch_size", 4, "dropout, variant"),
        ("vit-s", "variant", "paper", "patch_size, dropout, attention"),
    ],
)
def test_option_that_the_model_does_not_have(name, option, value, has):
    with pytest.raises(
        ConfigError, match=f"{name} has no option '{option}'; its options are {has}"
    ) as caught:
        model_options(name, **{option: value})
    assert caught.value.key == f"model.{option}"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("nowhere:small", ["'nowhere' cannot be imported: No module named 'nowhere'"]),
        (":small", ["is not of the form module:entry or ./file.py:entry"]),
        (".own:small", ["'.own' is not the full name of a module"]),
        ("own:large", ["'own' has no gnpcli.models.registry.Entry named large"]),
        ("own:build", ["'own' has no gnpcli.models.registry.Entry named build"]),
        (
            "broken:small",
            ["'broken' cannot be imported", "broken.py:1: cannot import name 'nothing'"],
        ),
    ],
)
def test_models_of_ones_own_that_cannot_be_found(tmp_path, monkeypatch, name, parts):
    (tmp_path / "own.py").write_text("from gnpcli.models.registry import Entry\ndef build(): ...\n")
    (tmp_path / "broken.py").write_text("from gnpcli.models.registry import nothing\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, name.partition(":")[0], raising=False)
    with pytest.raises(ConfigError) as caught:
        model_options(name)
    assert all(part in str(caught.value) for part in (f"model {name!r}", *parts)), caught.value
    assert caught.value.key == "model.name"


def test_a_model_of_ones_own_takes_its_own_options_and_drops_those_of_the_preset(
    tmp_path, monkeypatch
):
    (tmp_path / "mine.py").write_text(
        "from gnpcli.models.options import Options\n"
        "from gnpcli.models.registry import Entry\n"
        "class Own(Options):\n"
        "    dropout: float = 0.1\n"
        "    variant: str | None = None\n"
        "small = Entry(__name__, {}, Own)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    config = resolve("vit-s-cifar10", ["model.name=mine:small", "model.variant=upstream"]).model
    assert config.model_dump(exclude_none=True) == {
        "name": "mine:small",
        "dropout": 0.1,
        "variant": "upstream",
    }
    with pytest.raises(
        ConfigError,
        match="--set: mine:small has no option 'stem'; its options are dropout, variant",
    ):
        resolve("vit-s-cifar10", ["model.name=mine:small", "model.stem=cifar"])


# --- the two commands


def test_models_list_as_a_table_and_as_json(gnp):
    rows = json.loads(gnp("models", "list", "--json").stdout)
    assert [row["name"] for row in rows] == list(MODELS)
    lines = gnp("models", "list").stdout.splitlines()
    assert len(lines) == len(rows) + 1
    for row, line in zip(rows, lines[1:], strict=True):
        assert row["parameters"] == MODELS[row["name"]].parameters
        assert line.split()[:4] == [
            row["name"],
            row["family"],
            str(row["image_size"]),
            f"{row['parameters']:,}",
        ]
        assert row["paper"].rpartition("/")[2] in line


def test_models_show_counts_every_layer(gnp):
    options = ("--image-size", "64", "--classes", "7", "--set", "model.variant=upstream")
    shown = json.loads(gnp("models", "show", "resnet18", *options, "--json").stdout)
    layers = shown.pop("layers")
    assert layers[0] == {
        "name": "stem",
        "shapes": {"kernel": [3, 3, 3, 16]},
        "parameters": 432,
        "statistics": 0,
    }
    assert layers[-1]["name"] == "head"
    assert sum(layer["parameters"] for layer in layers) == shown["parameters"] == 11150874 - 3 * 513
    assert sum(layer["statistics"] for layer in layers) == shown["statistics"] == 9632
    assert shown["options"] == {"stem": "cifar", "variant": "upstream"}
    lines = gnp("models", "show", "resnet18", "--depth", "1", *options).stdout.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["stem", "stem_norm", "stage_0_block_0"]
    assert f"7 classes: {shown['parameters']:,} parameters" in lines[-2]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("resnet", "--image-size", "64"), ["unknown model 'resnet'", "did you mean 'resnet"]),
        (
            ("swin-t", "--image-size", "224"),
            ["do not tile", "image sizes that fit: 128, 192, 256, 320"],
        ),
        (
            ("vit-s", "--image-size", "30"),
            ["image sizes that fit: 28, 32", "patch sizes that fit these images: 1, 2"],
        ),
        (("vgg16", "--image-size", "28"), ["sizes that do: 32 and larger"]),
        (
            ("vit-s", "--set", "model.stem=cifar"),
            ["--set: vit-s has no option 'stem'", "patch_size"],
        ),
        (
            ("resnet18", "--set", "model.stem=small"),
            ["model.stem: 'small' is not one of cifar, imagenet"],
        ),
    ],
)
def test_sizes_and_options_that_do_not_fit(gnp, arguments, parts):
    fails(gnp("models", "show", *arguments), *parts)


def test_registry_imports_no_jax():
    code = (
        "import sys, gnpcli.models.registry as m; m.model_options('vit-s');"
        "print([x for x in ('jax', 'flax', 'numpy') if x in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
