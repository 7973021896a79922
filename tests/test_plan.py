"""The dry run: the memory of a step, the weights, and warnings about the numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from gnpcli.bench.steps import compile_steps, random_images
from gnpcli.config.checks import advice
from gnpcli.config.resolved import Resolved
from gnpcli.data.registry import describe_data
from gnpcli.models.base import parameter_shapes
from gnpcli.recipes import wording
from gnpcli.recipes.memory import StepMemory, step_memory
from gnpcli.recipes.plan import fit
from gnpcli.recipes.presets import preset_names, resolve
from gnpcli.recipes.rounding import UNIT, lost_radius, starting_norm
from gnpcli.runs.folder import RunFolder
from tests.conftest import Gnp, fails
from tests.networks import ONE_OF_EACH, build_tiny, tiny
from tests.state_dicts import vit_tensors

SMALL = ("model.name=tests.small:small", "data.batch_size=64")
GNP = ("gr.strategy=constant", "gr.r=0.1", "gr.alpha=0.8")


def estimated(config: Resolved, num_train: int | None = None, devices: int = 1) -> StepMemory:
    data = describe_data(config.data)
    assert data is not None
    model, _ = fit(config, data)
    return step_memory(config, model, replace(data, num_train=num_train or 1437), devices)


def ratios(config: Resolved) -> dict[str, float]:
    """Return estimated over compiled memory, of the plain and of the GNP step."""
    images, spec = random_images(config)
    with jax.numpy_dtype_promotion("standard"):  # Optax counts in int32
        kinds = compile_steps(config, images, spec, lambda text: None)
    strategies = {"plain": "none", "gnp": "constant"}
    found = {}
    for kind, strategy in strategies.items():
        planned = config.replaced({"gr.strategy": strategy})
        peak = kinds[kind].peak_bytes
        assert peak is not None
        found[kind] = estimated(planned, len(images.labels)).total / peak
    return found


@pytest.mark.slow
def test_the_estimate_is_near_what_the_compiler_says():
    for kind, ratio in ratios(resolve(None, [*SMALL, *GNP])).items():
        assert 0.6 < ratio < 2, (kind, ratio)


@pytest.mark.slow
@pytest.mark.parametrize(
    "assignments",
    [
        ("model.name=vit-nano", "data.batch_size=64"),
        ("model.name=vit-nano", "data.batch_size=64", "optimizer.name=sgd", "train.accumulate=4"),
        ("model.name=vit-nano", "data.batch_size=64", "gr.groups=4"),
        ("model.name=vit-ti", "data.batch_size=16", "model.patch_size=2"),
        ("model.name=resnet18", "data.batch_size=16"),
        ("model.name=wrn-16-4", "data.batch_size=16"),
        ("model.name=swin-t", "data.batch_size=8", "data.image_size=32"),
    ],
    ids=" ".join,
)
def test_the_estimate_is_within_a_factor_of_two(assignments: tuple[str, ...]):
    for kind, ratio in ratios(resolve(None, [*assignments, *GNP])).items():
        assert 0.5 < ratio < 2, (kind, ratio)


def test_what_a_step_holds_follows_from_the_configuration():
    plain = estimated(resolve(None, [*SMALL, "gr.strategy=none"]))
    params = plain.gradients
    assert plain.state == pytest.approx(3 * params, rel=0.05)  # AdamW has two moments
    assert plain.images == 1437 * 8 * 8
    of = {
        "gnp": (*SMALL, *GNP),
        "sgd": (*SMALL, "gr.strategy=none", "optimizer.name=sgd", "optimizer.momentum=0"),
        "ema": (*SMALL, "gr.strategy=none", "train.ema_decay=0.9"),
        "half": (*SMALL, "gr.strategy=none", "data.batch_size=32"),
        "cut": (*SMALL, "gr.strategy=none", "train.accumulate=2"),
        "groups": (*SMALL, *GNP, "gr.groups=2"),
    }
    found = {name: estimated(resolve(None, assignments)) for name, assignments in of.items()}
    assert found["gnp"].gradients == 3 * params
    assert found["sgd"].state == pytest.approx(params, rel=0.05)
    assert found["ema"].state == plain.state + params
    assert found["half"].activations == pytest.approx(plain.activations / 2, rel=0.1)
    assert found["cut"].activations == found["groups"].activations == found["half"].activations
    shared = estimated(resolve(None, [*SMALL, "gr.strategy=none"]), devices=2)
    assert shared.activations == found["half"].activations


def test_a_split_state_takes_a_share_of_each_device():
    wide = ("model.name=tests.wide:wide", "data.batch_size=64", *GNP)
    whole = estimated(resolve(None, wide), devices=8)
    split = estimated(resolve(None, [*wide, "mesh.shard=fsdp"]), devices=8)
    assert split.state == pytest.approx(whole.state / 8, rel=0.15)  # biases and the head are whole
    assert split.gradients == pytest.approx(whole.gradients / 8, rel=0.15)
    assert (split.activations, split.images) == (whole.activations, whole.images)
    shared = estimated(resolve(None, [*wide, "data.placement=sharded"]), devices=8)
    assert shared.images == pytest.approx(whole.images / 8, rel=0.01)
    # Four clusters of two devices hold the parameters and three trees like them each.
    grouped = estimated(resolve(None, [*wide, "mesh.shard=fsdp", "gr.groups=4"]), devices=8)
    assert grouped.state == split.state
    assert grouped.gradients == pytest.approx(whole.gradients * 4 / 3 / 2, rel=0.15)


def told(*assignments: str) -> tuple[list[str], list[str]]:
    """Return the lines and the warnings of a plan."""
    warnings: list[str] = []
    return wording.plan_lines(resolve(None, assignments), "run", warnings.append), warnings


def test_the_plan_says_the_memory_and_warns_where_it_is_too_much(monkeypatch: pytest.MonkeyPatch):
    lines, warnings = told(*SMALL)
    (line,) = [line for line in lines if line.startswith("memory ")]
    assert "on each device in a step (an estimate): " in line
    assert warnings == []
    monkeypatch.setattr("gnpcli.devices.memory.device_memory", lambda used=None: 200_000)
    _, (warning,) = told(*SMALL)
    assert "on each device (an estimate), which has 200 kB: lower data.batch_size" in warning
    monkeypatch.setattr("gnpcli.devices.memory.device_memory", lambda used=None: None)
    assert told(*SMALL)[1] == []


def test_the_dry_run_of_a_size_beyond_the_machine_warns(gnp: Gnp):
    options = ("model.name=vit-l", "data.image_size=512", "data.batch_size=1024")
    done = gnp("train", "--dry-run", *(f"--set={option}" for option in options))
    assert done.returncode == 0, done.stderr
    assert "warning: a step needs about" in done.stderr


def shapes(params: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in params.items()}


def moved(params: dict[str, Any], r: float, least: float = 0) -> float:
    """Return the share of parameters that a step of length r along a random gradient changes.

    Those of more than `least` times the root mean square count.
    """
    rng = np.random.default_rng(0)
    weights = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
    gradient = rng.standard_normal(weights.shape)
    step = (r * gradient / np.linalg.norm(gradient)).astype(np.float32)
    counts = np.abs(weights) > least * np.sqrt(np.mean(weights**2))
    return float(np.mean((weights + step != weights)[counts]))


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(ONE_OF_EACH))
def test_the_starting_norm_is_near_the_real_one(family: str):
    size = tiny(family).image_size
    params, _ = jax.jit(lambda key: build_tiny(family).init(key, (size, size, 3)))(
        jax.random.key(0)
    )
    real = float(np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(params))))
    assert 0.5 < starting_norm(params) / real < 3
    assert moved(params, 0.1 * UNIT * real, least=1) < 0.001
    assert moved(params, 100 * UNIT * real) > 0.9


def test_a_radius_that_rounding_undoes_is_warned_of():
    params = shapes({"kernel": (16, 16), "scale": (20,), "bias": (1000,)})
    assert starting_norm(params) == 6
    assert lost_radius(resolve(None, [*GNP, "gr.r=1e-7"]), params) is not None
    assert "below about r = 4e-07" in str(lost_radius(resolve(None, [*GNP, "gr.r=1e-7"]), params))
    assert lost_radius(resolve(None, [*GNP, "gr.r=1e-6"]), params) is None
    for harmless in ("gr.strategy=none", "gr.alpha=0", "gr.gradient=exact"):
        assert lost_radius(resolve(None, [*GNP, "gr.r=1e-7", harmless]), params) is None
    adaptive = [*GNP, "gr.ascent=adaptive", "gr.r=1e-7"]
    assert "below about r = 2e-06" in str(lost_radius(resolve(None, adaptive), params))


@pytest.mark.slow
@pytest.mark.parametrize("name", preset_names())
def test_no_preset_is_warned_of(name: str):
    config = resolve(name)
    data = describe_data(config.data)
    assert data is not None
    model, _ = fit(config, data)
    params = parameter_shapes(model, (data.image_size, data.image_size, data.channels))
    assert lost_radius(config, params) is None
    assert not [text for text in advice(config) if "takes away" in text]


def test_training_warns_of_a_radius_that_rounding_undoes(gnp: Gnp):
    options = ("--set", "model.name=tests.small:small", "--set", "gr.r=1e-8", "--quiet")
    warning = "warning: gr.r = 1e-08 moves no parameter of a typical size"
    assert warning in gnp("train", *options, "--dry-run").stderr
    assert warning in gnp("train", *options, "--max-steps", 0).stderr


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "rmsprop"])
def test_a_decay_of_all_of_a_weight_is_warned_of(optimizer: str):
    strong = [f"optimizer.name={optimizer}", "optimizer.lr=0.5", "optimizer.weight_decay=2"]
    (warning,) = advice(resolve(None, strong))
    assert warning.startswith("optimizer.lr * optimizer.weight_decay = 0.5 * 2 = 1: a step takes")
    assert advice(resolve(None, [*strong, "optimizer.weight_decay=1.9"])) == []
    decay = [f"optimizer.name={optimizer}", "optimizer.lr=1", "optimizer.weight_decay=0"]
    warned = any("train.l2" in text for text in advice(resolve(None, [*decay, "train.l2=1"])))
    assert warned == (optimizer == "sgd")  # the others rescale its gradient


NANO = (
    "--preset",
    "vit-s-cifar10",
    "--set",
    "model.name=vit-nano",
    "--set",
    "model.patch_size=2",
    "--dry-run",
)


def test_a_dry_run_opens_the_weights_it_would_start_from(gnp: Gnp, tmp_path: Path):
    tensors = vit_tensors()
    save_file(tensors, tmp_path / "w.safetensors")
    done = gnp("train", *NANO, "--init-from", "w.safetensors")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    (first,) = [index for index, line in enumerate(lines) if line.startswith("# weights ")]
    assert f"a state dict of vit-nano in {tmp_path / 'w.safetensors'}, SHA-256 " in lines[first]
    assert "resized bicubically: positions" in done.stdout
    (tmp_path / "config.yaml").write_text(done.stdout)
    assert RunFolder(tmp_path).config().train.init_sha256 is not None
    plan = json.loads(gnp("train", *NANO, "--init-from", "w.safetensors", "--json").stdout)
    assert any(line.startswith("weights ") for line in plan["plan"])


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--init-from", "nowhere"), "cannot read"),
        (("--init-from", "broken.safetensors"), "broken.safetensors"),
        (("--init-from", "w.safetensors", "--set", "train.init_sha256=0"), "holds other weights"),
        (("--init-from", "w.safetensors", "--set", "model.patch_size=4"), "do not fit vit-nano"),
        (("--init-from", "w.safetensors", "--set", "model.name=wrn-16-4"), "wrn-16-4"),
        (("--init-from", "w.safetensors", "--dataset", "digits"), "do not fit vit-nano"),
    ],
)
def test_a_dry_run_refuses_the_weights_that_training_would(
    gnp: Gnp, tmp_path: Path, options: tuple[str, ...], part: str
):
    save_file(vit_tensors(), tmp_path / "w.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    fails(gnp("train", *NANO, *options), part)
