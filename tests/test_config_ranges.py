"""Bounds of the numbers of a configuration, keys of other kinds, and empty sections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gnpcli.config.loader import Layer, merge, parse_overrides, read_yaml, validate
from gnpcli.errors import ConfigError
from gnpcli.models.registry import model_section
from gnpcli.step.schedules import Horizon
from gnpcli.tables.spec import load_table
from tests.schema import LEAST, Key, every_key

NUMBERS = [key for key in every_key() if key.types & {int, float}]
HUGE = [10**39, 10**99, -(10**39), 10**5000, -(10**5000)]


def refused(values: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(Layer(values), model_section)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 300
    return message


@pytest.mark.parametrize("key", NUMBERS, ids=str)
@pytest.mark.parametrize("value", HUGE, ids=["1e39", "1e99", "-1e39", "1e5000", "-1e5000"])
def test_a_number_beyond_its_bound_is_refused_with_the_bound(key: Key, value: int):
    message = refused(key.values([value] if key.is_list else value))
    assert f"{key.section}.{key.name}" in message
    is_bound = any(word in message for word in ("must be <", "must be >", "from 1 to"))
    assert is_bound or "expected a number, got one of over 300 digits" in message


@pytest.mark.parametrize("key", [key for key in NUMBERS if float in key.types], ids=str)
@pytest.mark.parametrize("value", [1e300, float("inf"), float("nan"), -1e300])
def test_a_float_beyond_its_bound_is_refused(key: Key, value: float):
    message = refused(key.values([value] if key.is_list else value))
    assert any(word in message for word in ("must be <", "must be >", "is not a finite number"))


@pytest.mark.parametrize("key", [key for key in NUMBERS if key.is_list], ids=str)
def test_a_long_list_is_refused(key: Key):
    assert "expected at most" in refused(key.values([0.5] * 1000))


@pytest.mark.parametrize(
    ("assignment", "part"),
    [
        ("train.epochs=100000000000000000000", "100000000000000000000 is out of range (must be <="),
        ('optimizer.name="\\ud800"', r"unknown optimizer '\ud800' (one of "),
        ("train.epochs=0", "0 is out of range (must be >= 1)"),
        ("train.seed=4294967296", "must be < 4294967296"),
        ("data.image_size=100000", "100000 is out of range (must be <= 8192)"),
        ("data.batch_size=1000000000000", "must be <= 1048576"),
        ("gr.groups=10000000", "a whole number from 1 to 1048576, or per-device"),
        ("optimizer.eps=1e-50", "optimizer.eps: 1e-50 is 0 in float32"),
        ("optimizer.lr=1e-45", "optimizer.lr: 1e-45 is 0 in float32"),
        ("gr.alpha=1.5", "must be <= 1)"),
        ("schedule.warmup_epochs=1e18", "1e+18 is out of range (must be <= 1000000)"),
        ("data.crop_min_area=1.5", "must be <= 1)"),
        ("optimizer.lr=1e39", "optimizer.lr: 1e+39 is out of range (must be <= 1e+38)"),
        ("optimizer.lr=1e400", "inf is not a finite number"),
    ],
)
def test_a_bound_is_written_as_one_would_type_it(assignment: str, part: str):
    layer = merge([Layer(LEAST), *parse_overrides([assignment])], model_section)
    with pytest.raises(ConfigError) as caught:
        validate(layer, model_section)
    assert part in str(caught.value)


def test_a_run_has_as_many_steps_as_float32_counts():
    assert Horizon(2**24, 1).total_steps == 2**24
    with pytest.raises(ConfigError, match="at most 16,777,216 steps are possible") as caught:
        Horizon(2**12 + 1, 2**12)
    assert caught.value.key == "train.epochs"


def test_a_run_of_too_many_steps_is_refused_before_it_starts(gnp):
    done = gnp("train", "--dry-run", "--epochs", "1000000")
    assert done.returncode == 1
    assert "error: train.epochs = 1000000" in done.stderr


@pytest.mark.parametrize(
    ("assignments", "part"),
    [
        (["schedule.boundaries=[0.5]"], "boundaries is a key of schedule.name=stepped"),
        (["optimizer.momentum=0.9"], "momentum is a key of optimizer.name=sgd or rmsprop"),
        (["optimizer.name=sgd", "optimizer.b1=0.9"], "b1 is a key of optimizer.name=adamw"),
        (["schedule.name=constant", "schedule.final_factor=0.1"], "name=cosine or exponential"),
        (["model.stem=cifar"], "'stem' is an option of ResNet"),
        (["model.window_size=4"], "'window_size' is an option of Swin Transformer"),
        (["model.name=vgg16", "model.scan=true"], "'scan' is an option of CaiT"),
    ],
)
def test_a_key_of_another_kind_says_which_kind_has_it(assignments: list[str], part: str):
    layer = merge([Layer(LEAST), *parse_overrides(assignments)], model_section)
    with pytest.raises(ConfigError) as caught:
        validate(layer, model_section)
    assert part in str(caught.value)


WITH_ALL = "model: {name: vit-nano}\ndata: {name: digits}\noptimizer: {name: sgd}\n"


@pytest.mark.parametrize("section", ["schedule", "gr", "checkpoint", "mesh"])
def test_an_empty_section_has_its_defaults(tmp_path: Path, section: str):
    path = tmp_path / "mine.yaml"
    path.write_text(f"{WITH_ALL}train: {{epochs: 3}}\n")
    without = validate(read_yaml(path), model_section)
    path.write_text(f"{path.read_text()}{section}:\n")
    assert validate(read_yaml(path), model_section) == without


@pytest.mark.parametrize("section", ["model", "data", "optimizer", "train"])
def test_an_empty_section_lacks_its_required_keys(section: str):
    needed = "epochs" if section == "train" else "name"
    assert f"missing key '{section}.{needed}'" in refused({**LEAST, section: None})


@pytest.mark.parametrize("section", list(LEAST))
def test_an_empty_section_changes_nothing_below_it(section: str):
    layer = merge([Layer(LEAST), Layer({section: None})], model_section)
    assert layer.values == LEAST


def test_an_empty_section_takes_later_keys():
    assert merge([Layer({"gr": None}), Layer({"gr": {"r": 1}})]).values == {"gr": {"r": 1}}


TABLE = """\
title: t
purpose: p
preset: vit-nano-digits
set:
rows: {a: {set: }, b: }
columns: {c: , d: }
baseline: c
variants:
"""


def test_the_empty_sections_of_a_table_are_empty(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text(TABLE)
    spec = load_table(str(path)).spec
    assert list(spec.rows) == ["a", "b"]
    assert spec.rows["b"].set == spec.set == {}
    assert spec.variants == {}
