"""Which run a configuration is of, and what of a run may change when it goes on."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from gnpcli.config.loader import flatten
from gnpcli.config.recipe import recipe
from gnpcli.config.same_run import COMPUTED_BY, another_run, as_begun, computed_otherwise
from gnpcli.errors import ConfigError
from gnpcli.recipes.presets import compose, resolve
from gnpcli.runs.folder import RunFolder
from tests.conftest import Gnp, fails

PRESET = "vit-nano-digits"
OTHER_VALUES = {
    "data.dir": "'/elsewhere'",
    "data.placement": "sharded",
    "data.workers": "3",
    "mesh.devices": "1",
    "mesh.shard": "fsdp",
    "train.time_limit": "auto",
}


def test_what_may_change_are_keys_that_decide_no_result():
    config = resolve(PRESET)
    assert set(COMPUTED_BY) <= flatten(config).keys()
    assert recipe(config).keys() & set(COMPUTED_BY) == set()


@pytest.mark.parametrize("key", COMPUTED_BY)
def test_a_run_that_is_computed_in_another_way_is_the_same_run(key: str):
    begun, wanted = (
        resolve("vit-s-cifar10", assignments)
        for assignments in ([], [f"{key}={OTHER_VALUES[key]}"])
    )
    assert flatten(begun) != flatten(wanted)
    assert another_run(begun, wanted) == []
    changed = computed_otherwise(begun, {key: flatten(wanted)[key]})
    assert changed == wanted


def test_what_a_run_is_cannot_change():
    begun = resolve(PRESET)
    assert another_run(begun, resolve(PRESET, ["train.seed=3"])) == ["train.seed: 0 -> 3"]
    with pytest.raises(ConfigError, match=r"optimizer\.lr cannot change .* data\.dir, .* can: "):
        computed_otherwise(begun, {"mesh.devices": 1, "optimizer.lr": 0.5})
    with pytest.raises(ConfigError, match=r"mesh\.devices: 0 is out of range"):
        computed_otherwise(begun, {"mesh.devices": 0})


def test_groups_per_device_are_of_the_devices_that_the_run_began_on():
    per_device = ["gr.groups=per-device"]
    for groups in (1, 4):
        begun = resolve(PRESET, [f"gr.groups={groups}"])
        assert as_begun(begun, compose(PRESET, per_device)) == begun
        # As many devices as a command asks for now change nothing either.
        for asked in ([*per_device, "mesh.devices=2"], per_device):
            assert another_run(begun, compose(PRESET, asked)) == []
            wanted = resolve(PRESET, asked, at_start=partial(int, groups))
            assert wanted.gr.groups == groups
            assert another_run(begun, wanted) == []
    assert another_run(begun, resolve(PRESET, ["gr.groups=2"])) == ["gr.groups: 4 -> 2"]


def test_what_weights_decided_at_the_start_is_not_asked_for_again(tmp_path: Path):
    weights = tmp_path / "weights.safetensors"
    digest = "0" * 64
    decided = {
        "train.init_from": str(weights.resolve()),
        "train.init_sha256": digest,
        "data.mean": [0.5],
        "data.std": [0.25],
    }
    begun = resolve(PRESET).replaced(decided)
    wanted = resolve(PRESET, [f"train.init_from={weights}"])
    assert as_begun(begun, wanted) == begun
    moved = resolve(PRESET, ["train.init_from=/moved", f"train.init_sha256='{digest}'"])
    assert another_run(begun, moved) == []
    for assignment in ("train.init_from=/other", "data.mean=[0]", "train.init_from=null"):
        others = [assignment] if assignment[0] == "t" else [assignment, "data.std=[1]"]
        other = resolve(PRESET, [f"train.init_from={weights}", *others])
        assert another_run(begun, other)[-1].startswith(("train.init_", "data.std"))


@pytest.mark.slow
def test_a_run_goes_on_with_other_devices_and_says_so(gnp: Gnp, tmp_path: Path):
    small = ("--set", "model.name=tests.small:small", "--gr", "none", "--epochs", 2)
    assert gnp("train", *small, "--run-dir", "run", "--max-steps", 3).returncode == 0
    before = (tmp_path / "run" / "config.yaml").read_text()
    fails(gnp("resume", "run", "--set", "optimizer.lr=1"), "optimizer.lr cannot change")
    fails(gnp("resume", "run", "--set", "mesh.devices=64"), "mesh.devices = 64, but this machine")
    done = gnp("resume", "run", "--set", "mesh.devices=1", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "finished"
    assert (tmp_path / "run" / "config.yaml").read_text() == before
    first, second = RunFolder(tmp_path / "run").sessions()
    assert "computed_otherwise" not in first
    assert second["computed_otherwise"] == ["mesh.devices: None -> 1"]
    again = gnp("train", *small, "--run-dir", "run", "--set", "mesh.devices=1")
    fails(again, "holds this very run already")
