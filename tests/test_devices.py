"""Several devices: results do not depend on how many share a batch, and a checkpoint moves between
counts.

Each case runs in a process with eight forced host devices.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from gnpcli.runs.log import read_metrics
from tests.conftest import Gnp
from tests.forced import EIGHT, on_eight_devices

QUICK = [
    "--set",
    "data.batch_size=256",
    "--epochs",
    "4",
    "--set",
    "schedule.warmup_epochs=1",
    "--set",
    "train.log_every_steps=1",
]


@pytest.mark.parametrize(
    ("model", "assignments"),
    [
        ("tests.small:small", ["data.augment=basic"]),
        pytest.param(
            "vit-nano", ["model.dropout=0.1", "data.augment=basic"], marks=pytest.mark.slow
        ),
        pytest.param("wrn-16-4", [], marks=pytest.mark.slow),
    ],
)
def test_steps_do_not_depend_on_the_number_of_devices(model, assignments):
    """GNP steps on 1, 2 and 8 devices: BatchNorm over the global batch and one perturbation for all
    of it.

    With SGD: the first steps of an adaptive optimizer divide a gradient that is zero up to rounding
    by itself. And with a smooth function in the place of ReLU, whose derivative of 0 or 1 a
    rounding error decides near zero.
    """
    result = on_eight_devices(
        f"""
        import json, jax, numpy as np
        from gnpcli.recipes.presets import resolve
        from gnpcli.data.registry import load_dataset
        from gnpcli.engine.train import build_task
        from gnpcli.devices.mesh import make_mesh
        jax.nn.relu = jax.nn.softplus
        found = []
        for devices in (1, 2, 8):
            config = resolve(None, [
                "model.name={model}", "data.batch_size=32", f"mesh.devices={{devices}}",
                "optimizer.name=sgd", "optimizer.lr=0.1", "optimizer.weight_decay=0",
                "schedule.warmup_epochs=0", "gr.strategy=constant",
                *{assignments!r},
            ])
            data = load_dataset(config.data)
            task = build_task(config, data.train, data.spec, make_mesh(config))
            state = task.init()
            start = jax.tree.map(np.asarray, (state.params, state.model_state))
            for step in range(2):
                state, metrics = task.steps["gnp"](state, task.parts.feed.source(step))
            assert len(state.params["head"]["kernel"].sharding.device_set) == devices
            end = jax.tree.map(np.asarray, (state.params, state.model_state))
            found.append((start, end, {{name: float(value) for name, value in metrics.items()}}))

        def norm(a, b):
            both = zip(jax.tree.leaves(a), jax.tree.leaves(b))
            return float(np.sqrt(sum(((x - y) ** 2).sum() for x, y in both)))

        moved = norm(found[0][0], found[0][1])
        apart = [norm(found[0][1], other[1]) for other in found[1:]]
        metrics = [run[2] for run in found]
        print(json.dumps({{"moved": moved, "apart": apart, "metrics": metrics}}))
        """
    )
    assert result["moved"] > 0.01
    assert max(result["apart"]) < 1e-5 * result["moved"], result
    first, *others = result["metrics"]
    for other in others:
        assert other == pytest.approx(first, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cases", "counts"),
    [
        ([{"groups": 4, "pieces": 8}], (1, 8)),
        pytest.param(
            [
                *(
                    {"pieces": 4},
                    {"groups": 3},
                    {"groups": 4},
                    {"groups": 8},
                    {"groups": 2, "pieces": 4},
                ),
                {"groups": 4, "shared": True},
            ],
            (1, 2, 4, 8),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["some", "all"],
)
def test_groups_and_pieces_do_not_depend_on_the_number_of_devices(cases, counts):
    """Value, model state, gradient and metrics of a network with BatchNorm and dropout.

    Groups fewer and more than the devices, a divisor of them and not; clusters of one device and of
    several. With one BatchNorm for all groups and r = 0 the result is the plain gradient of the
    whole batch.
    """
    result = on_eight_devices(
        f"        cases, counts = {cases!r}, {counts!r}\n"
        """
        import json, jax, jax.numpy as jnp, numpy as np
        from flax import linen as nn
        from gnpcli.models.base import from_linen
        from gnpcli.models.layers.dropout import Dropout
        from gnpcli.models.layers.norm import BatchNorm
        from gnpcli.step.gradient import make_value_and_grad
        from gnpcli.step.parts import build_parts
        from gnpcli.recipes.presets import resolve
        from gnpcli.devices.mesh import make_mesh

        class Network(nn.Module):
            dropout: float

            @nn.compact
            def __call__(self, images, train):
                x = nn.Dense(8, use_bias=False)(images.reshape(images.shape[0], -1))
                x = Dropout(self.dropout)(jnp.tanh(BatchNorm()(x, train)), train)
                return nn.Dense(4)(x)

        class NoFeed:
            steps_per_epoch = 1

        size = 96
        scale = jnp.linspace(0.5, 2, size)[:, None, None, None]
        images = jax.random.normal(jax.random.key(1), (size, 2, 2, 3)) * scale
        labels = jnp.arange(size, dtype=jnp.int32) % 4

        def run(devices, groups=1, pieces=1, shared=False, kind="gnp", r=0.3, dropout=0.3):
            statistics = "synchronised" if shared else "per-group"
            config = resolve(None, [
                f"mesh.devices={devices}", f"data.batch_size={size}", f"gr.groups={groups}",
                f"train.accumulate={pieces}", f"gr.batch_norm={statistics}",
            ])
            mesh, model = make_mesh(config), from_linen(Network(dropout))
            params, state = model.init(jax.random.key(0), (2, 2, 3))
            parts = build_parts(config, model, NoFeed(), mesh)

            def gradient(r, *a):
                return make_value_and_grad(parts, kind, r=r, alpha=0.8)(*a)

            step = jax.jit(gradient)
            found = step(jnp.float32(r), params, state, {}, images, labels, jax.random.key(5))
            return dict(mesh.shape), jax.tree.map(np.asarray, found)

        def norm(tree):
            squares = [(np.asarray(leaf) ** 2).sum() for leaf in jax.tree.leaves(tree)]
            return float(np.sqrt(sum(squares)))

        def apart(a, b):
            return norm(jax.tree.map(np.subtract, a, b)) / norm(a)

        report = []
        for case in cases:
            runs = [run(devices, **case) for devices in counts]
            first = runs[0][1]
            distances = [max(apart(a, b) for a, b in zip(first, other)) for _, other in runs[1:]]
            report.append([case, [shape for shape, _ in runs], distances])
        whole = run(1, kind="plain", dropout=0.0)[1]
        shared = run(8, groups=4, shared=True, r=0.0, dropout=0.0)[1]
        own = run(1, groups=4, dropout=0.0)[1]
        distances = [apart(whole[0], shared[0]), apart(whole[1], shared[1])]
        own = apart(whole[1], own[1])
        print(json.dumps({"cases": report, "shared": distances, "own": own}))
        """
    )
    for case, _, distances in result["cases"]:
        assert max(distances) < 1e-5, (case, distances)
    for case, shapes, _ in result["cases"]:
        groups = case.get("groups", 1)
        clusters = [math.gcd(groups, count) for count in counts]
        expected = [
            {"group": q, "data": count // q} for q, count in zip(clusters, counts, strict=True)
        ]
        assert shapes == expected
    assert max(result["shared"]) < 1e-5
    assert result["own"] > 1e-2  # statistics of its own make another gradient


@pytest.mark.slow
def test_a_run_moves_from_eight_devices_to_one_and_back(gnp: Gnp, tmp_path: Path):
    done = gnp("train", *QUICK, "--run-dir", "eight", env=EIGHT)
    assert done.returncode == 0, done.stderr
    assert "on 8 cpu device(s)" in done.stderr
    assert gnp("train", *QUICK, "--run-dir", "moved", "--max-steps", "7", env=EIGHT).returncode == 0
    done = gnp("resume", "moved")
    assert done.returncode == 0, done.stderr
    assert "on 1 cpu device(s), from step 7" in done.stderr
    eight, moved = (
        [
            record
            for record in read_metrics(tmp_path / name / "metrics.jsonl")
            if record["split"] == "train"
        ]
        for name in ("eight", "moved")
    )
    assert [record["step"] for record in moved] == [record["step"] for record in eight]
    for ours, other in zip(moved, eight, strict=True):
        assert ours["loss"] == pytest.approx(other["loss"], rel=2e-2)
    for run in ("eight", "moved"):  # their last saves are of eight devices and of one
        one, many = (json.loads(gnp("eval", run, "--json", env=env).stdout) for env in ({}, EIGHT))
        assert one["num_examples"] == many["num_examples"] == 360
        assert one["error_rate"] == many["error_rate"]
        assert one["loss"] == pytest.approx(many["loss"], rel=1e-5)
