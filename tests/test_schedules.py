"""Boundary values and closed forms of every schedule, in the steps of a small horizon."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gnpcli.config.resolved import ResolvedGr
from gnpcli.config.schedules import (
    ConstantConfig,
    CosineConfig,
    ExponentialConfig,
    ScheduleConfig,
    SteppedConfig,
)
from gnpcli.config.strategies import STRATEGIES
from gnpcli.step.schedules import Horizon, gr_schedule, lr_schedule

HORIZON = Horizon(steps_per_epoch=10, epochs=20)
PEAK = 0.4
SCHEDULES: dict[str, Callable[[float], ScheduleConfig]] = {
    "constant": lambda warmup: ConstantConfig(name="constant", warmup_epochs=warmup),
    "cosine": lambda warmup: CosineConfig(name="cosine", warmup_epochs=warmup, final_factor=0.1),
    "stepped": lambda warmup: SteppedConfig(
        name="stepped", warmup_epochs=warmup, boundaries=[0.5, 0.8], factor=0.1
    ),
    "exponential": lambda warmup: ExponentialConfig(
        name="exponential", warmup_epochs=warmup, final_factor=0.012
    ),
}
WARMUPS = [name for name, how in STRATEGIES.items() if how.warms_up]


def values(schedule, steps=range(HORIZON.total_steps + 1)):
    return np.array([float(schedule(step)) for step in steps])


def closed_form(name, warmup_steps):
    steps = np.arange(HORIZON.total_steps + 1)
    progress = np.clip((steps - warmup_steps) / max(HORIZON.total_steps - warmup_steps, 1), 0, 1)
    decay = {
        "constant": np.ones_like(progress),
        "cosine": 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * progress)),
        "stepped": np.where(steps >= 160, 0.01, np.where(steps >= 100, 0.1, 1.0)),
        "exponential": 0.012**progress,
    }[name]
    return PEAK * np.where(steps < warmup_steps, steps / max(warmup_steps, 1), decay)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup_epochs", [0, 0.1, 3, 20])
def test_learning_rate_follows_its_formula_at_every_step(name, warmup_epochs):
    schedule = lr_schedule(SCHEDULES[name](warmup_epochs), PEAK, HORIZON)
    np.testing.assert_allclose(
        values(schedule), closed_form(name, round(warmup_epochs * 10)), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_learning_rate_boundaries(name):
    schedule = lr_schedule(SCHEDULES[name](3), PEAK, HORIZON)
    assert float(schedule(0)) == 0
    np.testing.assert_allclose(schedule(29), PEAK * 29 / 30, rtol=1e-6)
    np.testing.assert_allclose(schedule(30), PEAK, rtol=1e-6)
    end = {"constant": 1, "cosine": 0.1, "stepped": 0.01, "exponential": 0.012}[name]
    np.testing.assert_allclose(schedule(200), PEAK * end, rtol=1e-5)
    np.testing.assert_allclose(schedule(10_000), PEAK * end, rtol=1e-5)


def gr(strategy, *, seed=0, **changes):
    section = ResolvedGr(
        **{"strategy": strategy, "r": 0.1, "alpha": 0.8, "warmup_epochs": 4.0} | changes
    )
    return gr_schedule(section, HORIZON, seed)


RAMP = np.minimum(np.arange(HORIZON.total_steps) / 40, 1)
ONE = np.ones_like(RAMP)
BY_HAND = {
    "none": (200, ONE, ONE),
    "constant": (0, 0.1 * ONE, 0.8 * ONE),
    "sam": (0, 0.1 * ONE, ONE),
    "lambda-warmup": (0, 0.1 * ONE, 0.8 * RAMP),
    "r-warmup": (0, 0.1 * RAMP, 0.8 * ONE),
    "zero-warmup": (40, 0.1 * ONE, 0.8 * ONE),
}
"""Of the papers' strategies: how many plain steps come first, and r and alpha at every step."""


@pytest.mark.parametrize("strategy", BY_HAND)
def test_gr_follows_its_strategy_at_every_step(strategy):
    schedule = gr(strategy, alpha=1.0 if strategy == "sam" else 0.8)
    plain, r, alpha = BY_HAND[strategy]
    steps = range(schedule.plain_steps, HORIZON.total_steps)
    assert schedule.plain_steps == plain
    np.testing.assert_allclose(values(schedule.r, steps), r[plain:], rtol=1e-6)
    np.testing.assert_allclose(values(schedule.alpha, steps), alpha[plain:], rtol=1e-6)


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if STRATEGIES[name].penalises])
def test_every_strategy_is_at_full_strength_after_its_warmup(strategy):
    schedule = gr(strategy)
    steps = range(40, HORIZON.total_steps)
    assert set(schedule.kinds[40:]) == {"gnp"}
    np.testing.assert_allclose(values(schedule.r, steps), 0.1, rtol=1e-6)
    np.testing.assert_allclose(values(schedule.alpha, steps), 0.8, rtol=1e-6)
    assert schedule.r(0).dtype == schedule.alpha(0).dtype == np.float32


@pytest.mark.parametrize("strategy", WARMUPS)
def test_every_warmup_starts_from_plain_training(strategy):
    schedule = gr(strategy)
    assert schedule.plain_steps > 0 or float(schedule.r(0)) * float(schedule.alpha(0)) == 0


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("changes", [{"alpha": 0.0}, {"r": 0.0, "alpha": 0.0}])
def test_without_strength_every_step_is_the_plain_one(strategy, changes):
    assert gr(strategy, **changes).plain_steps == HORIZON.total_steps


def test_a_gr_warmup_longer_than_training_is_plain_to_the_end():
    assert gr("zero-warmup", warmup_epochs=50.0).plain_steps == HORIZON.total_steps


def test_epochs_become_the_nearest_whole_steps():
    assert [HORIZON.steps(epochs) for epochs in (0, 0.04, 0.06, 0.5, 1, 2.51)] == [
        0,
        0,
        1,
        5,
        10,
        25,
    ]


def kinds(schedule, kind="gnp"):
    return [step for step, found in enumerate(schedule.kinds) if found == kind]


@pytest.mark.parametrize("between", ["plain", "reuse"])
@pytest.mark.parametrize(
    ("strategy", "first"), [("constant", 0), ("zero-warmup", 40), ("r-warmup", 0)]
)
def test_every_kth_step_is_penalised_from_the_first_that_may_be(strategy, first, between):
    schedule = gr(strategy, every=3, between=between)
    assert kinds(schedule) == list(range(first, 200, 3))
    assert set(schedule.kinds[:first]) <= {"plain"}
    assert {kind for step, kind in enumerate(schedule.kinds) if step >= first} == {"gnp", between}


def test_coins_fall_with_their_probability_and_depend_on_seed_and_step_alone():
    long = gr_schedule(
        ResolvedGr(strategy="sam", r=0.1, alpha=1.0, probability=0.3), Horizon(1000, 20), 5
    )
    assert abs(len(kinds(long)) / 20_000 - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 20_000)
    both = set(zip(long.kinds, long.kinds[1:], strict=False))
    assert len(both) == 4  # any kind follows any
    assert list(gr("sam", alpha=1.0, probability=0.3, seed=5).kinds) == list(long.kinds[:200])
    assert list(gr("sam", alpha=1.0, probability=0.3, seed=6).kinds) != list(long.kinds[:200])
    warm = gr("zero-warmup", probability=0.3, seed=5)
    assert kinds(warm) == [
        step for step in kinds(long) if 40 <= step < 200
    ]  # a step keeps its coin


def test_a_probability_moves_linearly_after_the_warmup():
    horizon = Horizon(1000, 20)

    def shares(strategy, **changes):
        config = ResolvedGr(
            **{"strategy": strategy, "r": 0.1, "alpha": 1.0, "warmup_epochs": 4.0} | changes
        )
        penalised = np.array([kind == "gnp" for kind in gr_schedule(config, horizon, 0).kinds])
        return penalised.reshape(10, 2000).mean(axis=1)

    noise = 5 * 0.5 / np.sqrt(2000)
    rising = shares("sam", probability=0.0, probability_end=1.0)
    np.testing.assert_allclose(rising, np.arange(0.05, 1, 0.1), atol=noise)
    falling = shares("zero-warmup", probability=1.0, probability_end=0.2)
    assert falling[:2].tolist() == [0, 0]
    np.testing.assert_allclose(falling[2:], np.linspace(0.95, 0.25, 8), atol=noise)
    held = shares("r-warmup", probability=0.5, probability_end=0.0)
    np.testing.assert_allclose(held[:2], 0.5, atol=noise)
    assert shares("sam", probability=0.0).sum() == 0


def test_by_default_no_coin_is_thrown():
    assert gr("sam", alpha=1.0, seed=1).kinds == gr("sam", alpha=1.0, seed=2).kinds
    assert set(gr("sam", alpha=1.0).kinds) == {"gnp"}
