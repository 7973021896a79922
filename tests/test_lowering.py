"""Train steps are lowered for accelerators on a machine that has none.

A step that asked for the default backend while it is traced would be this machine's on every other.
Each preset is lowered with the smallest network of its family: what a deep network has more of is
the same again. Most of these tests are slow.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import jax
import pytest

from gnpcli.config.resolved import Resolved
from gnpcli.recipes.presets import preset_names, resolve
from tests.shallow import family, make_shallow
from tests.tracing import abstract_task, check_step

ACCELERATORS = ("cuda", "tpu")


def lowered(config: Resolved, kinds: tuple[str, ...] = ("plain", "gnp")) -> Iterator[str]:
    """Yield the step of each kind for all of `ACCELERATORS`, of one trace, which is checked."""
    task, state, source = abstract_task(config)
    steps = cast(Any, task.steps)
    for kind in kinds:
        with jax.numpy_dtype_promotion("standard"):  # optax mixes types
            traced = steps[kind].trace(state, source)
            program = traced.lower(lowering_platforms=ACCELERATORS)
        check_step(state, *traced.out_info)
        yield program.as_text()


def is_cut(config: Resolved) -> bool:
    """Return whether a loop goes over the slices of a batch."""
    return config.gr.groups > 1 or config.train.accumulate > 1


QUICK = {"vit-nano-digits", "vit-nano-digits-exact", "wrn-16-4-cifar10"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in preset_names()
    ],
)
def test_the_steps_of_a_preset_are_traced_and_lowered_for_accelerators(name, monkeypatch):
    config = resolve(name, ["mesh.devices=1"])
    make_shallow(config.model.name, monkeypatch)
    # The gradient of a plain step differs by the network alone, and by how a batch is cut.
    is_first = name == "vit-nano-digits" or family(config.model.name) != "vit"
    kinds = ("plain", "gnp") if is_first or is_cut(config) else ("gnp",)
    for text in lowered(config, kinds):
        assert "func.func public @main" in text
        # What is tuned for a CPU has loops, and no other part of these steps has.
        assert is_cut(config) == ("stablehlo.while" in text)
