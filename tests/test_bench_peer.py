"""The same network in PyTorch: that it is the same, and that its GNP step is GNP; nothing asserted
on its speed.
"""

from __future__ import annotations

import importlib
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnpcli.bench.peer import TorchSteps, _difference, bench_peer
from gnpcli.bench.steps import random_images
from gnpcli.bench.torch_networks import PEERS
from gnpcli.errors import ConfigError
from gnpcli.gnp import penalize
from gnpcli.models.registry import MODELS, find_model
from gnpcli.recipes.presets import resolve
from tests.conftest import Gnp, fails

SMALLEST = {
    "vit": "vit-nano",
    "swin": "swin-t",
    "cait": "cait-xxs12",
    "resnet": "resnet18",
    "vgg": "vgg16-bn",
}
WITHOUT = {entry.family: name for name, entry in MODELS.items() if entry.family not in PEERS}


def recipe(model, *assignments):
    return resolve("vit-ti-cifar10", [f"model.name={model}", "data.batch_size=4", *assignments])


@pytest.mark.parametrize("family", PEERS)
def test_the_peer_is_the_same_network(family):
    torch = pytest.importorskip("torch")
    library = pytest.importorskip(PEERS[family].module)
    config = recipe(SMALLEST[family])
    _, spec = random_images(config)
    torch.manual_seed(0)
    sizes = find_model(config.model.name).sizes
    network = PEERS[family].build(library, sizes, config.model, spec)
    # As initialised: the parity tests are the ones with weights in which every mistake would show.
    assert _difference(torch, network, config, spec) < 1e-4


@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_a_step_in_pytorch_is_a_gnp_step(alpha):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(5, 3, 2, 2)).astype(np.float32), rng.integers(0, 4, 5)
    assignments = [
        "optimizer.name=sgd",
        "optimizer.momentum=0",
        "optimizer.nesterov=false",
        "optimizer.lr=0.5",
    ]
    config = recipe(
        "vit-nano", *assignments, "optimizer.weight_decay=0", "gr.r=0.3", "train.clip_norm=null"
    )
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))
    steps = TorchSteps(
        torch,
        network,
        config,
        torch.from_numpy(images),
        torch.from_numpy(labels.astype(np.int64)),
        alpha=alpha,
        is_compiled=False,
        nhwc=False,
    )
    before = {name: tensor.numpy().copy() for name, tensor in network.state_dict().items()}
    steps.run(1, counts=True)
    moved = [parameter.detach().numpy() for parameter in steps._parameters]

    def loss(params):
        logits = images.reshape(5, -1) @ params["1.weight"].T + params["1.bias"][None]
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1))

    grads = penalize(jax.value_and_grad(loss), r=0.3, alpha=alpha)(before)[1]
    for new, name in zip(moved, ("1.weight", "1.bias"), strict=True):
        np.testing.assert_allclose(new, before[name] - 0.5 * grads[name], rtol=1e-5, atol=1e-6)
    assert len(steps.times_s) == 1
    assert all(
        np.array_equal(network.state_dict()[name].numpy(), value) for name, value in before.items()
    )


@pytest.mark.parametrize(
    ("preset", "model"), [("vit-nano-digits", "vit-nano"), ("resnet50-cifar10", "resnet18")]
)
def test_bench_peer_measures_both(gnp: Gnp, preset, model):
    pytest.importorskip("torch")
    pytest.importorskip("timm")
    options = (
        "--rounds",
        "1",
        "--steps",
        "1",
        "--json",
        "--set",
        "data.batch_size=4",
        "--set",
        f"model.name={model}",
    )
    done = gnp("bench", "peer", "--preset", preset, *options, timeout=900)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["difference"] < 1e-4
    assert [row["name"] for row in result["measurements"]] == ["plain", "gnp"]
    for row in result["measurements"]:
        assert row["times_as_fast"] == pytest.approx(row["torch_step_ms"] / row["step_ms"])
        assert row["times_as_fast_min"] <= row["times_as_fast"] <= row["times_as_fast_max"]


@pytest.mark.parametrize(
    ("assignments", "part"),
    [
        *[
            ([f"model.name={name}"], f"neither timm nor torchvision has {name}")
            for name in WITHOUT.values()
        ],
        (
            ["model.name=resnet18", "model.variant=upstream"],
            "neither timm nor torchvision has resnet18",
        ),
        (["optimizer.name=rmsprop"], "the comparison knows adamw and sgd, not rmsprop"),
    ],
)
def test_what_has_no_peer_is_refused(assignments, part):
    config = resolve("vit-ti-cifar10", assignments)
    with pytest.raises(ConfigError, match=part):
        bench_peer(config, is_compiled=False, rounds=1, steps=1, notify=print)


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="PyTorch is installed")
def test_without_pytorch_it_says_how_to_get_it(gnp: Gnp):
    fails(gnp("bench", "peer"), "pip install 'gnpcli[parity]'")
