"""Train steps are lowered for accelerators on a machine that has none.

A step that asked for the default backend while it is traced would be this machine's on every other.
"""

from __future__ import annotations

from typing import Any, cast

import jax
import pytest
from jax.export import export

from gnpcli.recipes.presets import preset_names, resolve
from tests.tracing import abstract_task

ACCELERATORS = ("cuda", "tpu")


QUICK = ("vit-nano-digits", "wrn-16-4-cifar10")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in preset_names()
    ],
)
def test_the_steps_of_a_preset_are_lowered_for_accelerators(name):
    task, state, source = abstract_task(resolve(name, ["mesh.devices=1"]))
    for kind in ("plain", "gnp"):
        with jax.numpy_dtype_promotion("standard"):  # optax mixes types
            program = export(cast(Any, task.steps[kind]), platforms=ACCELERATORS)(state, source)
        assert program.platforms == ACCELERATORS
        # What is tuned for a CPU has loops, and no other part of these steps has.
        assert name not in QUICK or "stablehlo.while" not in program.mlir_module()
