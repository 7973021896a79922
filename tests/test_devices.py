"""Several devices: results do not depend on how many share a batch, and a checkpoint moves between counts.

Each case runs in a subprocess with eight forced host devices.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from gnpcli.runlog import read_metrics
from tests.conftest import Gnp

EIGHT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
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


def python(code: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **EIGHT},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("model", "assignments"),
    [
        ("vit-nano", ["model.dropout=0.1", "data.augment=basic"]),
        pytest.param("wrn-16-4", [], marks=pytest.mark.slow),
    ],
)
def test_steps_do_not_depend_on_the_number_of_devices(model, assignments):
    """GNP steps on 1, 2 and 8 devices: BatchNorm over the global batch and one perturbation for all of it.

    With SGD: the first steps of an adaptive optimizer divide a gradient that is zero up to rounding by itself.
    """
    result = python(
        f"""
        import json, jax, numpy as np
        from gnpcli.presets import resolve
        from gnpcli.data import load_dataset
        from gnpcli.engine import build_task
        from gnpcli.sharding import make_mesh
        found = []
        for devices in (1, 2, 8):
            config = resolve(None, [
                "model.name={model}", "optimizer.name=sgd", "optimizer.lr=0.1", "optimizer.weight_decay=0",
                "data.batch_size=32", "gr.strategy=constant", "schedule.warmup_epochs=0", f"mesh.devices={{devices}}",
                *{assignments!r},
            ])
            data = load_dataset(config.data)
            task = build_task(config, data.train, data.spec, make_mesh(config))
            state = task.init()
            start = jax.tree.map(np.asarray, (state.params, state.model_state))
            for step in range(2):
                state, metrics = task.gnp_step(state, task.feed.source(step))
            assert len(state.params["head"]["kernel"].sharding.device_set) == devices
            end = jax.tree.map(np.asarray, (state.params, state.model_state))
            found.append((start, end, {{name: float(value) for name, value in metrics.items()}}))

        def norm(a, b):
            return float(np.sqrt(sum(((x - y) ** 2).sum() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))))

        moved = norm(found[0][0], found[0][1])
        print(json.dumps({{"moved": moved, "apart": [norm(found[0][1], other[1]) for other in found[1:]],
                          "metrics": [run[2] for run in found]}}))
        """
    )
    assert result["moved"] > 0.01
    assert max(result["apart"]) < 1e-4 * result["moved"], result
    first, *others = result["metrics"]
    for other in others:
        assert other == pytest.approx(first, rel=1e-4)


@pytest.mark.slow
def test_a_run_moves_from_eight_devices_to_one(gnp: Gnp, tmp_path: Path):
    done = gnp("train", *QUICK, "--run-dir", "eight", env=EIGHT)
    assert done.returncode == 0, done.stderr
    assert "on 8 cpu device(s)" in done.stderr
    assert gnp("train", *QUICK, "--run-dir", "moved", "--max-steps", "7", env=EIGHT).returncode == 0
    done = gnp("resume", "moved")
    assert done.returncode == 0, done.stderr
    assert "on 1 cpu device(s), from step 7" in done.stderr
    eight, moved = (
        [record for record in read_metrics(tmp_path / name / "metrics.jsonl") if record["split"] == "train"]
        for name in ("eight", "moved")
    )
    assert [record["step"] for record in moved] == [record["step"] for record in eight]
    for ours, other in zip(moved, eight, strict=True):
        assert ours["loss"] == pytest.approx(other["loss"], rel=2e-2)
    one, many = (json.loads(gnp("eval", "eight", "--json", env=env).stdout) for env in ({}, EIGHT))
    assert one["num_examples"] == many["num_examples"] == 360
    assert one["error_rate"] == many["error_rate"]
    assert one["loss"] == pytest.approx(many["loss"], rel=1e-5)
