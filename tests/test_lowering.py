"""Train steps are lowered for accelerators on a machine that has none.

A step that asked for the default backend while it is traced would be this machine's on every other.
Tests lower the smallest network of each family, and each kind of gradient, under the options of a
preset. Most of them are slow, as are those that lower every preset as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import jax
import pytest

from gnpcli.config.resolved import Resolved
from gnpcli.recipes.presets import preset_names, resolve
from tests.shallow import family, make_shallow
from tests.tracing import abstract_task

ACCELERATORS = ("cuda", "tpu")


def lowered(config: Resolved, kinds: tuple[str, ...] = ("plain", "gnp")) -> Iterator[str]:
    """Yield the step of each kind for all of `ACCELERATORS`, of one trace."""
    task, state, source = abstract_task(config)
    steps = cast(Any, task.steps)
    for kind in kinds:
        with jax.numpy_dtype_promotion("standard"):  # optax mixes types
            program = steps[kind].trace(state, source).lower(lowering_platforms=ACCELERATORS)
        yield program.as_text()


def is_cut(config: Resolved) -> bool:
    """Return whether a loop goes over the slices of a batch."""
    return config.gr.groups > 1 or config.train.accumulate > 1


def features(config: Resolved) -> dict[str, Any]:
    """Return what makes a step another program: the family, and the kind of gradient."""
    gr = config.gr
    return {
        "family": family(config.model.name),
        "gradient": gr.gradient,
        "ascent": gr.ascent,
        "perturb": gr.perturb,
        "between": gr.between,
        "gap": gr.surrogate_gap > 0,
        "groups": gr.groups > 1,
        "accumulate": config.train.accumulate > 1,
    }


def one_of_each() -> list[str]:
    """Return presets that have every value of `features` between them, the small ones first."""
    names = sorted(preset_names(), key=lambda name: (not name.startswith("vit-nano"), name))
    chosen, seen = [], set[tuple[str, Any]]()
    for name in names:
        found = set(features(resolve(name)).items())
        if found - seen:
            chosen.append(name)
            seen |= found
    return chosen


QUICK = {"vit-nano-digits", "vit-nano-digits-exact", "wrn-16-4-cifar10"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in one_of_each()],
)
def test_each_kind_of_step_is_lowered_for_accelerators(name, monkeypatch):
    config = resolve(name, ["mesh.devices=1", "data.batch_size=16"])
    make_shallow(config.model.name, monkeypatch)
    # The gradient of a plain step differs by the network alone, and by how a batch is cut.
    is_first = name == "vit-nano-digits" or family(config.model.name) != "vit"
    kinds = ("plain", "gnp") if is_first or is_cut(config) else ("gnp",)
    for text in lowered(config, kinds):
        # What is tuned for a CPU has loops, and no other part of these steps has.
        assert is_cut(config) == ("stablehlo.while" in text)


def test_the_quick_ones_are_among_them():
    assert set(one_of_each()) >= QUICK


@pytest.mark.slow
@pytest.mark.parametrize("name", preset_names())
def test_the_steps_of_a_preset_are_lowered_for_accelerators(name):
    for text in lowered(resolve(name, ["mesh.devices=1"])):
        assert "func.func public @main" in text
