"""The cost of every form of GR: the table of forms, and a real command."""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import pytest

from gnpcli.bench.gr import PLAIN, VARIANTS, WHOLE
from gnpcli.bench.steps import has_loop, regularized
from gnpcli.bench.timing import Timed
from gnpcli.config.loader import differences
from gnpcli.devices.convolution import convolve
from gnpcli.recipes.presets import override, resolve
from tests.conftest import Gnp, fails


@pytest.mark.parametrize("preset", ["vit-nano-digits", "vit-ti-cifar10", "wrn-16-4-cifar10"])
def test_every_form_is_a_valid_configuration_that_differs_from_the_others(preset):
    base = override(regularized(resolve(preset)), WHOLE)
    found = {name: override(base, assignments) for name, assignments in VARIANTS.items()}
    assert found["gnp"] == base
    for name, config in found.items():
        for other, other_config in found.items():
            assert name == other or differences(config, other_config), f"{name} and {other}"


def test_the_configured_gr_is_kept_and_made_constant():
    own = regularized(resolve(None, ["gr.r=0.3", "gr.alpha=0.4", "gr.mix=unit"])).gr
    assert (own.strategy, own.r, own.alpha, own.mix) == ("constant", 0.3, 0.4, "unit")
    none = regularized(resolve(None, ["gr.strategy=none", "gr.r=0", "gr.alpha=0"])).gr
    assert (none.strategy, none.r, none.alpha) == ("constant", 0.1, 0.8)


class FakeStep:
    """A step of so many products of the state, which notes its calls, with the interface of a
    jitted one.
    """

    def __init__(self, name, calls, products):
        self.name, self.calls, self._products = name, calls, products

    def __wrapped__(self, state, source):
        return functools.reduce(jnp.matmul, [state] * (1 + self._products))

    def lower(self, state, source):
        return self

    def compile(self):
        return self

    def __call__(self, state, source):
        self.calls.append(self.name)
        return state, {}


def test_steps_that_differ_take_turns_in_whole_cycles_and_count_as_their_mean():
    calls: list[str] = []
    full, plain = FakeStep("full", calls, 2), FakeStep("plain", calls, 1)
    timed = Timed([full, plain, plain, plain], jnp.ones((3, 3)), None)
    timed.run(5, counts=True)
    assert calls == ["full", "plain", "plain", "plain"] * 2
    assert timed.flops == 1.25 * 2 * 3**3
    assert len(timed.times_s) == 1
    assert Timed([full], 0, None, has_loop=True).flops is None


def test_convolutions_count_as_the_compilers_own_whatever_they_are_computed_by():
    """On a CPU the gradient of this one loops over pieces of the batch, and a loop's body counts
    once.
    """
    size, batch, channels = 20, 16, 64
    x, kernel = jnp.ones((batch, size, size, channels)), jnp.ones((3, 3, channels, channels))

    def step(kernel, x):
        return jax.grad(lambda kernel: convolve(x, kernel, 1, False).sum())(kernel), {}

    counted = Timed([jax.jit(step)], kernel, x).flops
    windows = (
        3 * size - 2
    ) ** 2  # pairs of a pixel and of a place in the kernel, but for those outside of the image
    assert counted == pytest.approx(2 * batch * channels**2 * windows, rel=1e-2)


@pytest.mark.parametrize("name", VARIANTS)
def test_forms_that_slice_the_batch_have_loops(name):
    form = override(override(regularized(resolve(None)), WHOLE), VARIANTS[name])
    assert has_loop(form) == (name in ("groups-4", "groups-8", "accumulate-4"))


def test_an_unknown_form_is_refused_with_the_close_match(gnp: Gnp):
    fails(gnp("bench", "gr", "--variants", "gnp,exakt"), "'exakt'", "'exact'")


@pytest.mark.slow
def test_bench_gr_measures_every_form_beside_plain_training(gnp: Gnp):
    done = gnp(
        "bench",
        "gr",
        "--rounds",
        "1",
        "--steps",
        "1",
        "--json",
        "--set",
        "data.batch_size=8",
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    rows = {row["name"]: row for row in result["measurements"]}
    assert list(rows) == [PLAIN, *VARIANTS]
    assert (
        rows[PLAIN]["over_plain"]
        == rows[PLAIN]["flops_over_plain"]
        == rows[PLAIN]["memory_over_plain"]
        == 1
    )
    for name, row in rows.items():
        assert row["settings"] == (["gr.strategy=none"] if name == PLAIN else list(VARIANTS[name]))
        assert row["over_plain_min"] <= row["over_plain"] <= row["over_plain_max"]
    # What the compiler counts does not depend on the machine's mood.
    assert rows["zero-warmup"]["flops_over_plain"] == 1
    assert 1.9 < rows["gnp"]["flops_over_plain"] < 2.1
    assert 2.5 < rows["exact"]["flops_over_plain"] < 3.5
    assert 1.2 < rows["every-4"]["flops_over_plain"] < 1.3
    assert rows["groups-4"]["flops_over_plain"] is None  # a loop's body is counted once
