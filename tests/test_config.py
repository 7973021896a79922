"""Layers, types, ranges and messages of the configuration."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from gnpcli.config.checks import advice
from gnpcli.config.loader import (
    Layer,
    differences,
    dump,
    flatten,
    known_keys,
    merge,
    parse_overrides,
    read_yaml,
    validate,
)
from gnpcli.config.resolved import resolve, settle
from gnpcli.config.schema import NAMED, RunConfig
from gnpcli.config.strategies import STRATEGIES
from gnpcli.errors import ConfigError, suggest
from gnpcli.models.registry import MODELS, model_section
from gnpcli.recipes.reference import page

MINIMAL = """\
model: {name: vit-nano}
data: {name: digits}
optimizer: {name: adamw}
train: {epochs: 3}
"""


def config(*assignments: str, text: str = MINIMAL, tmp_path: Path | None = None) -> RunConfig:
    import yaml

    layer = Layer(yaml.safe_load(text))
    return validate(merge([layer, *parse_overrides(assignments)]), model_section)


def error(*assignments: str, text: str = MINIMAL) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        config(*assignments, text=text)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("assignment", "parts"),
    [
        (
            "optimizer.lrr=1",
            ["--set: ", "unknown key 'optimizer.lrr'", "did you mean 'optimizer.lr'?"],
        ),
        ("optimzer.lr=1", ["unknown key 'optimzer'", "did you mean 'optimizer.lr'?"]),
        ("lr=1", ["unknown key 'lr'", "did you mean 'optimizer.lr'?"]),
        (
            "train.wibble_wobble_wubble=1",
            ["unknown key 'train.wibble_wobble_wubble'", "train has epochs, seed,"],
        ),
        ("optimizer.momentum=0.9", ["unknown key 'optimizer.momentum'; optimizer has", "b1"]),
        ("train.epochs=many", ["train.epochs: expected a whole number, got 'many'"]),
        ("train.epochs=1.5", ["train.epochs: expected a whole number, got 1.5"]),
        ("train.epochs=true", ["train.epochs: expected a whole number, got True"]),
        ("train.epochs=0", ["train.epochs: 0 is out of range (must be >= 1)"]),
        ("optimizer.lr=1e-3x", ["optimizer.lr: expected a number, got '1e-3x'"]),
        ("optimizer.lr=0", ["optimizer.lr: 0 is out of range (must be > 0)"]),
        ("optimizer.lr=.nan", ["optimizer.lr: nan is not a finite number"]),
        ("optimizer.lr=[1]", ["optimizer.lr: expected a number, got [1]"]),
        ("optimizer.lr.x=1", ["optimizer.lr: expected a number"]),
        ("model.name=3", ["unknown model '3'"]),
        ("train.dtype=[3]", ["train.dtype: '[3]' is not one of float32, bfloat16"]),
        ("train=3", ["train: expected a section of keys, got 3"]),
        (
            "gr.groups=0",
            ["gr.groups: expected a whole number from 1 to 1048576, or per-device, got 0"],
        ),
        ("gr.groups=per-node", ["or per-device, got 'per-node'"]),
        ("gr.r=-0.1", ["gr.r: -0.1 is out of range (must be >= 0)"]),
        ("gr.alpha=1.5", ["gr.alpha: 1.5 is out of range (must be <= 1)"]),
        (
            "gr.strategy=zero",
            [
                "gr.strategy: 'zero' is not one of none, constant, sam,",
                "did you mean 'zero-warmup'?",
            ],
        ),
        (
            "optimizer.name=adam",
            ["unknown optimizer 'adam'", "did you mean 'adamw'?", "sgd, adamw, rmsprop"],
        ),
        ("schedule.name=cosin", ["unknown schedule 'cosin'", "did you mean 'cosine'?"]),
        ("data.validation_fraction=1", ["must be < 1"]),
        ("train.seed=-1", ["train.seed: -1 is out of range"]),
    ],
)
def test_a_bad_value_names_key_value_and_what_is_allowed(assignment, parts):
    message = str(error(assignment))
    for part in parts:
        assert part in message, message
    assert message.startswith("--set: ")


@pytest.mark.parametrize(
    ("assignments", "key", "parts"),
    [
        (["gr.alpha=0.5"], "gr.alpha", ["gr.alpha = 0.5 needs a radius"]),
        (["gr.alpha=0.5", "gr.r=0"], "gr.alpha", ["needs a radius"]),
        (["gr.r=0.1"], "gr.r", ["gr.r = 0.1 needs a mixing weight"]),
        (["gr.strategy=constant"], "gr.strategy", ["constant needs gr.r and gr.alpha"]),
        (["gr.strategy=sam"], "gr.strategy", ["needs gr.r"]),
        (["gr.strategy=sam", "gr.r=0"], "gr.strategy", ["gr.r > 0"]),
        (
            ["gr.strategy=zero-warmup", "gr.r=0.1", "gr.alpha=1"],
            "gr.strategy",
            ["nothing to warm up over: gr.warmup_epochs is 0 (taken from schedule.warmup_epochs)"],
        ),
        (
            ["train.l2=1e-3", "optimizer.weight_decay=0.3"],
            "train.l2",
            ["train.l2 = 0.001", "= 0.3", "decay twice"],
        ),
        (
            ["schedule.name=stepped", "schedule.boundaries=[0.6, 0.3]"],
            "schedule.boundaries",
            ["must rise"],
        ),
        (["checkpoint.every_epochs=null"], "checkpoint", ["set one"]),
        (
            ["gr.every=4", "gr.probability=0.5"],
            "gr.every",
            ["gr.every = 4 and gr.probability = 0.5 both say which steps", "gr.every=1"],
        ),
        (["gr.every=4", "gr.probability_end=0"], "gr.every", ["gr.every = 4"]),
        (["gr.between=reuse"], "gr.between", ["gr.every = 1", "gr.every=5"]),
        (
            ["data.batch_size=100", "gr.groups=8"],
            "gr.groups",
            ["data.batch_size = 100 is not divisible by gr.groups = 8", "data.batch_size=96"],
        ),
        (
            ["data.batch_size=100", "train.accumulate=3"],
            "train.accumulate",
            ["train.accumulate = 3", "=99"],
        ),
        (
            ["gr.groups=8", "train.accumulate=12"],
            "train.accumulate",
            ["train.accumulate = 12 neither divides gr.groups = 8 nor", "train.accumulate=8"],
        ),
        (
            ["gr.groups=2", "gr.batch_norm=synchronised", "train.accumulate=4"],
            "train.accumulate",
            ["the whole batch at once", "train.accumulate = 4", "per-group"],
        ),
    ],
)
def test_contradictions_between_keys_are_refused_with_the_numbers(assignments, key, parts):
    caught = error(*assignments)
    assert caught.key == key
    for part in parts:
        assert part in str(caught), caught


def test_missing_keys_are_named_and_counted():
    message = str(
        error(text="data: {name: digits}\nmodel: {name: vit-nano}\noptimizer: {lr: 1.0}\n")
    )
    assert "missing key 'optimizer.name' (one of sgd, adamw, rmsprop)" in message
    assert "(and 1 more)" in message


def test_messages_carry_file_and_line(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(MINIMAL + "schedule:\n  name: cosine\n  warmup_epoch: 3\n")
    with pytest.raises(
        ConfigError, match=r"mine\.yaml:7: unknown key 'schedule.warmup_epoch' - did you mean"
    ):
        validate(read_yaml(path), model_section)
    path.write_text(MINIMAL + "gr:\n  alpha: 0.8\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml:6: gr.alpha = 0.8 needs a radius"):
        validate(read_yaml(path), model_section)
    # a later layer takes the blame for what it wrote, and only for that
    with pytest.raises(ConfigError, match=r"^--set: train\.epochs"):
        validate(merge([read_yaml(path), *parse_overrides(["train.epochs=0"])]), model_section)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a:\n  [1", "bad.yaml:2: not valid YAML"),
        ("- a\n- b\n", "bad.yaml: expected 'key: value' lines"),
        ("data:\n  name: a\n  name: b\n", "bad.yaml:3: 'data.name' is given twice (first at"),
        ("a: !!python/object:os.system x\n", "bad.yaml:1: not valid YAML"),
        ("a: \x00\n", "not valid YAML"),
        (
            "a: !!bool x\n",
            "bad.yaml:1: not valid YAML: 'x' is not of the type that its tag says, bool",
        ),
    ],
)
def test_bad_yaml_is_one_line_with_its_place(tmp_path, text, part):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*none\.yaml: No such file"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"purpose: \xff\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml:1: byte 0xff is not UTF-8: save it in"):
        read_yaml(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        (".5", 0.5),
        ("5.", 5.0),
        ("-2", -2),
        ("on", "on"),
        ("yes", "yes"),
        ("null", None),
        ("true", True),
        ("[0.3, 1e-1]", [0.3, 0.1]),
        ("2020-01-01", "2020-01-01"),
        ("1e-3x", "1e-3x"),
        (".", "."),
        (".inf", math.inf),
    ],
)
def test_scalars_mean_what_yaml_1_2_says(text, value):
    (layer,) = parse_overrides([f"a={text}"])
    assert layer.values == {"a": value}
    assert type(layer.values["a"]) is type(value)


@pytest.mark.parametrize("text", ["optimizer.lr", "=3", "a=[1"])
def test_overrides_that_are_no_assignment_are_refused(text):
    with pytest.raises(ConfigError, match="--set"):
        parse_overrides([text])


def test_later_layers_win_and_sections_merge():
    merged = merge(
        [Layer({"a": {"x": 1, "y": 2}, "b": 1}), Layer({"a": {"y": 3}}), Layer({"b": {"z": 1}})]
    )
    assert merged.values == {"a": {"x": 1, "y": 3}, "b": {"z": 1}}


def test_merging_changes_no_layer():
    first = Layer({"a": {"x": 1}})
    merge([first, Layer({"a": {"x": 2}})])
    assert first.values == {"a": {"x": 1}}


def test_changing_the_optimizer_keeps_what_both_have_and_drops_the_rest():
    changed = config(
        "optimizer.b1=0.5", "optimizer.lr=0.3", "optimizer.name=sgd", "optimizer.momentum=0.5"
    ).optimizer
    assert changed.model_dump() == {
        "name": "sgd",
        "lr": 0.3,
        "weight_decay": 0.0,
        "momentum": 0.5,
        "nesterov": False,
    }
    assert "unknown key 'optimizer.b1'" in str(error("optimizer.name=sgd", "optimizer.b1=0.5"))


def test_sam_and_warmup_defaults_are_filled_in():
    resolved = config("gr.strategy=sam", "gr.r=0.05", "gr.alpha=0.8", "schedule.warmup_epochs=2")
    assert resolved.gr.alpha == 1.0
    assert resolved.gr.warmup_epochs == 2.0
    assert config("gr.warmup_epochs=1", "schedule.warmup_epochs=2").gr.warmup_epochs == 1.0


@pytest.mark.parametrize(
    "assignments",
    [
        [],
        ["optimizer.name=rmsprop", "schedule.name=stepped"],
        ["gr.strategy=sam", "gr.r=1e-7", "schedule.name=exponential"],
    ],
)
def test_dump_reads_back_as_the_same_configuration(tmp_path, assignments):
    original = config(*assignments)
    path = tmp_path / "config.yaml"
    path.write_text(dump(original))
    again = validate(read_yaml(path), model_section)
    assert again == original
    assert dump(again) == dump(original)
    assert differences(original, again) == []


def test_differences_name_each_key_with_both_values():
    assert differences(config(), config("optimizer.lr=0.5", "train.seed=3")) == [
        "optimizer.lr: 0.001 -> 0.5",
        "train.seed: 0 -> 3",
    ]


def test_known_keys_are_those_of_a_dump():
    chosen = {"model": "vit-nano", "optimizer": "adamw", "schedule": "cosine"}
    named = {section: {"name": name} for section, name in chosen.items()}
    assert set(known_keys(named, model_section)) == set(flatten(config()))


@pytest.mark.parametrize("strategy", ["constant", "sam"])
@pytest.mark.parametrize("optimizer", ["adamw", "rmsprop"])
def test_gr_at_full_strength_in_the_warmup_of_an_adaptive_optimizer_is_advised_against(
    strategy, optimizer
):
    harmful = [
        f"optimizer.name={optimizer}",
        f"gr.strategy={strategy}",
        "gr.r=0.1",
        "gr.alpha=0.8",
        "schedule.warmup_epochs=1",
    ]
    (warning,) = advice(config(*harmful))
    assert "--gr zero-warmup" in warning
    assert "1 epochs" in warning
    for remedy in (
        "optimizer.name=sgd",
        "gr.strategy=zero-warmup",
        "gr.strategy=r-warmup",
        "gr.strategy=none",
        "schedule.warmup_epochs=0",
    ):
        assert advice(config(*harmful, remedy)) == [], remedy


def test_a_learning_rate_warmup_longer_than_training_is_pointed_out():
    (warning,) = advice(config("schedule.warmup_epochs=9"))
    assert "learning-rate warmup (9 epochs)" in warning
    assert "3 epochs" in warning


@pytest.mark.parametrize("strategy", [name for name, how in STRATEGIES.items() if how.warms_up])
@pytest.mark.parametrize("key", ["gr.warmup_epochs", "schedule.warmup_epochs"])
@pytest.mark.parametrize("warmup", [3, 4.5])
def test_a_gr_warmup_that_training_does_not_outlast_is_refused(strategy, key, warmup):
    regularized = [f"gr.strategy={strategy}", "gr.r=0.1", "gr.alpha=0.8"]
    message = str(error(*regularized, f"{key}={warmup}"))
    for part in (
        f"{warmup:g} epochs",
        key,
        "3 epochs",
        "train.epochs",
        "set gr.warmup_epochs below 3",
    ):
        assert part in message
    assert config(*regularized, f"{key}={warmup}", "train.epochs=5").gr.warmup_epochs == warmup
    assert (
        config(*regularized, f"{key}={warmup}", "gr.alpha=0").gr.alpha == 0
    )  # plain training warms nothing up
    assert (
        config(*regularized, f"{key}={warmup}", "gr.strategy=constant").gr.warmup_epochs == warmup
    )


@pytest.mark.parametrize(
    ("idle", "chooser", "acts_with"),
    [
        ("data.autoaugment_policy=svhn", "augment", ["autoaugment"]),
        ("data.randaugment_layers=3", "augment", ["randaugment"]),
        ("data.randaugment_magnitude=5", "augment", ["randaugment"]),
        ("data.mix_alpha=0.2", "mix", ["mixup", "cutmix", "mixcut"]),
        ("data.cutout_size=8", "mix", ["cutout", "mixcut"]),
        ("gr.adaptive_eta=0.1", "ascent", ["adaptive"]),
        ("gr.adapt_biases_and_norms=true", "ascent", ["adaptive"]),
    ],
)
def test_keys_that_do_nothing_are_pointed_out(idle, chooser, acts_with):
    (warning,) = advice(config(idle))
    section = idle.partition(".")[0]
    assert warning.startswith(f"{idle.partition('=')[0]} has no effect with {section}.{chooser}=")
    for name in acts_with:
        assert f"{section}.{chooser}={name}" in warning
        assert advice(config(idle, f"{section}.{chooser}={name}")) == []


def test_suggestions_are_close_or_absent():
    assert suggest("cifar01", ["cifar10", "digits"]) == " - did you mean 'cifar10'?"
    assert suggest("zebra", ["cifar10", "digits"]) == ""


def test_every_field_of_the_configuration_is_documented():
    for section, info in RunConfig.model_fields.items():
        for kind in NAMED[section].values() if section in NAMED else [info.annotation]:
            assert kind is not None
            for key, field in kind.model_fields.items():
                assert field.description, f"{section}.{key}"


def test_the_reference_of_the_configuration_is_current():
    written = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
    assert written.read_text(encoding="utf-8") == page(), (
        "run: python -m gnpcli.recipes.reference > docs/configuration.md"
    )


def test_the_reference_has_the_options_of_every_model():
    lines = page().splitlines()
    for name, entry in MODELS.items():
        assert any(line.startswith("Models: ") and f"`{name}`" in line for line in lines)
        for option in entry.options.option_names():
            assert any(line.startswith(f"| `{option}` |") for line in lines)


def test_other_values_are_validated_like_the_first():
    resolved = settle(config("gr.groups=per-device"), lambda: 4)
    assert resolved.gr.groups == 4
    assert resolved.replaced({"data.batch_size": 64}).data.batch_size == 64
    with pytest.raises(ConfigError, match=r"data\.batch_size: expected a whole number, got 'many'"):
        resolved.replaced({"data.batch_size": "many"})
    with pytest.raises(ConfigError, match=r"not divisible by gr\.groups = 4"):
        resolved.replaced({"data.batch_size": 62})
    with pytest.raises(ConfigError, match=r"constant needs gr\.r and gr\.alpha"):
        resolved.replaced({"gr.strategy": "constant"})
    with pytest.raises(ConfigError, match="batch_size"):
        resolved.data.replaced({"batch_size": "many"})


@pytest.mark.parametrize(
    "assignments",
    [[], ["gr.groups=per-device"], ["gr.r=0.1", "gr.alpha=0"], ["gr.strategy=sam", "gr.r=0.1"]],
)
def test_a_resolved_configuration_reads_back_as_the_same_on_any_devices(tmp_path, assignments):
    resolved = settle(config(*assignments), lambda: 4)
    (tmp_path / "config.yaml").write_text(dump(resolved))
    layer = read_yaml(tmp_path / "config.yaml")
    assert resolve([layer], lambda: 8, model_section) == resolved
    is_given = resolved.gr.r > 0
    assert (layer.values["gr"]["r"], layer.values["gr"]["alpha"]) == (
        (resolved.gr.r, resolved.gr.alpha) if is_given else (None, None)
    )
