"""Which parameters of real models are perturbed, by name and by pattern."""

from __future__ import annotations

import math

import jax
import pytest

from gnpcli.config.schema import GrConfig
from gnpcli.data.registry import describe_data
from gnpcli.errors import ConfigError
from gnpcli.models.base import parameter_shapes
from gnpcli.models.registry import build_for
from gnpcli.recipes.presets import resolve
from gnpcli.step.perturbation import build_scales, count_perturbed, perturbed_mask


def shapes(model: str):
    config = resolve(None, [f"model.name={model}"])
    info = describe_data(config.data)
    assert info is not None
    return parameter_shapes(build_for(config, info), (8, 8, 1))


def paths(params, perturb):
    mask = perturbed_mask(params, perturb)
    return {
        "/".join(entry.key for entry in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(mask)
    }


@pytest.mark.parametrize("model", ["vit-nano", "wrn-16-4"])
def test_norms_and_weights_split_the_parameters(model):
    params = shapes(model)
    norms, weights = paths(params, "norms"), paths(params, "weights")
    assert all(norms[path] != weights[path] for path in norms)
    assert {path for path, moves in norms.items() if moves} == {
        path for path in norms if path.rpartition("/")[0].split("/")[-1].startswith(("norm", "ln"))
    }
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    counts = [
        count_perturbed(params, GrConfig(perturb=perturb))
        for perturb in ("norms", "weights", "all")
    ]
    assert sum(counts[:2]) == counts[2] == total
    assert 0 < counts[0] < 0.1 * total


def test_a_layer_scale_is_no_normalisation_layer():
    params = {
        "norm": {"scale": 0, "bias": 0},
        "scale_1": {"scale": 0},
        "head": {"kernel": 0, "bias": 0},
    }
    assert [path for path, moves in paths(params, "norms").items() if moves] == [
        "norm/bias",
        "norm/scale",
    ]


def test_a_pattern_is_over_whole_paths():
    params = shapes("vit-nano")
    assert [path for path, moves in paths(params, "head/*").items() if moves] == [
        "head/bias",
        "head/kernel",
    ]
    kernels = {path for path, moves in paths(params, "*kernel").items() if moves}
    assert kernels == {path for path in paths(params, "all") if path.endswith("kernel")}


@pytest.mark.parametrize(
    ("perturb", "part"),
    [
        ("haed/*", "'haed/*' matches no parameter"),
        ("*", "'*' matches every parameter: set gr.perturb=all"),
    ],
)
def test_a_pattern_for_nothing_or_everything_is_refused_with_some_paths(perturb, part):
    with pytest.raises(ConfigError) as caught:
        perturbed_mask(shapes("vit-nano"), perturb)
    assert part in str(caught.value)
    assert "such as block_0/" in str(caught.value)
    assert caught.value.key == "gr.perturb"


def test_the_default_ball_costs_nothing():
    assert build_scales(GrConfig()) is None
