"""Steps that are not finite: what stays, what counts, what is named, in which pass."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnpcli.config.optimizers import AdamWConfig, OptimizerConfig, SgdConfig
from gnpcli.config.resolved import ResolvedGr
from gnpcli.config.schedules import ConstantConfig
from gnpcli.config.training import TrainConfig
from gnpcli.devices.mesh import make_mesh
from gnpcli.models.base import Model
from gnpcli.recipes.presets import resolve
from gnpcli.step import guard
from gnpcli.step.optimizer import build_optimizer
from gnpcli.step.parts import Parts
from gnpcli.step.probes import make_diagnosis
from gnpcli.step.schedules import Horizon, StepKind, gr_schedule, lr_schedule
from gnpcli.step.state import TrainState, init_state
from gnpcli.step.train import make_train_step
from tests.test_steps import SIDE, FixedFeed, assert_same, small_model, source

HORIZON = Horizon(steps_per_epoch=20, epochs=2)


class MarkedFeed(FixedFeed):
    """Batches of which the first pixel is the number of the step."""

    steps_per_epoch = 20

    def batch(
        self, source: Any, step_in_epoch: jax.Array | int, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        noise = jax.random.normal(key, source["images"].shape)
        marked = noise.at[:, 0, 0, 0].set(jnp.float32(step_in_epoch))
        return marked, source["labels"]


@jax.custom_vjp
def fails_backwards(x: jax.Array, is_on: jax.Array) -> jax.Array:
    """The identity; where `is_on`, the second element of its gradient is NaN."""
    return x


def _backwards(is_on: jax.Array, g: jax.Array) -> tuple[jax.Array, None]:
    return g.at[0, 1].set(jnp.where(is_on, jnp.nan, g[0, 1])), None


fails_backwards.defvjp(lambda x, is_on: (x, is_on), _backwards)


def faulty_model(fault: str, at: tuple[int, ...]) -> Model:
    """A small model that breaks in the steps `at`: in the loss, in one gradient of one pass, or in
    its own state.

    ``probe`` tells the passes apart in the first step: it starts at 0, and only the perturbation
    has moved it.
    """
    good = small_model()

    def init(key: jax.Array, image_shape: tuple[int, int, int]) -> tuple[Any, Any]:
        params, state = good.init(key, image_shape)
        return {**params, "probe": jnp.zeros(())}, state

    def apply(
        params: Any, state: Any, images: jax.Array, train: bool, key: Any
    ) -> tuple[jax.Array, Any]:
        step = images[0, 0, 0, 0]
        is_on = jnp.any(step == jnp.asarray(at, jnp.float32))
        is_perturbed = params["probe"] != 0
        w2 = params["w2"]
        if fault == "clean-gradient":
            w2 = fails_backwards(w2, is_on & ~is_perturbed)
        if fault == "perturbed-gradient":
            w2 = fails_backwards(w2, is_on & is_perturbed)
        images = images.at[:, 0, 0, 0].set(0.0)
        logits, new_state = good.apply({**params, "w2": w2}, state, images, train, key)
        logits = logits + params["probe"] * jnp.eye(4)[jnp.zeros(images.shape[0], jnp.int32)]
        if fault == "loss":  # finite logits whose softmax is 0 for every label but one
            logits = jnp.where(is_on, jnp.asarray([[3e38, -3e38, -3e38, -3e38]]), logits)
        if fault == "state":
            new_state = {"mean": jnp.where(is_on, jnp.inf, new_state["mean"])}
        return logits, new_state

    return Model(init, apply)


class Run:
    """A state and its compiled step, on one device."""

    def __init__(
        self,
        model: Model,
        *,
        optimizer: OptimizerConfig | None = None,
        is_plain: bool = False,
        gr: dict[str, Any] | None = None,
        **train: Any,
    ):
        self.train = TrainConfig(**{"epochs": 2, **train})
        gr_config = ResolvedGr(
            **{"strategy": "constant", "r": 0.1, "alpha": 0.8, "warmup_epochs": 0.0, **(gr or {})}
        )
        config = optimizer or SgdConfig(name="sgd", momentum=0.9)
        chain = build_optimizer(config, self.train)
        schedule, mesh = (
            gr_schedule(gr_config, HORIZON, 0),
            make_mesh(resolve(None, ["mesh.devices=1"])),
        )
        # A rate that moves: an update left out must not shift it.
        lr = lr_schedule(ConstantConfig(name="constant", warmup_epochs=1.0), config.lr, HORIZON)
        kind: StepKind = "plain" if is_plain else "gnp"
        parts = Parts(
            model=model,
            feed=MarkedFeed(),
            optimizer=chain,
            train=self.train,
            gr=gr_config,
            schedule=schedule,
            lr=lr,
            mesh=mesh,
        )
        self.step = make_train_step(parts, kind)
        self.diagnosis = make_diagnosis(parts, kind)
        averages = self.train.ema_decay is not None
        self.state = init_state(model, (SIDE, SIDE, 1), chain, seed=0, averages=averages)

    def go(self, steps: int) -> list[dict[str, float]]:
        told = []
        for _ in range(steps):
            self.state, metrics = self.step(self.state, source())
            told.append({name: float(value) for name, value in metrics.items()})
        return told


def snapshot(state: TrainState) -> Any:
    """Everything that a skipped step must leave alone."""
    return jax.tree.map(np.array, (state.params, state.model_state, state.opt_state, state.ema))


@pytest.fixture(autouse=True)
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax mixes types
        yield


@pytest.mark.parametrize(
    ("fault", "is_plain"),
    [
        ("perturbed-gradient", False),
        *(
            pytest.param(fault, is_plain, marks=pytest.mark.slow)
            for fault, is_plain in (
                ("loss", False),
                ("loss", True),
                ("clean-gradient", True),
                ("clean-gradient", False),
                ("state", False),
                ("state", True),
            )
        ),
    ],
)
def test_a_faulty_step_is_named_and_halts_the_state_with_all_that_follow(fault, is_plain):
    run = Run(faulty_model(fault, at=(0,)), is_plain=is_plain, ema_decay=0.9)
    before = snapshot(run.state)
    (metrics, *behind) = run.go(3)
    assert_same(before, snapshot(run.state))
    assert (int(run.state.step), int(run.state.skips.in_a_row), int(run.state.skips.total)) == (
        0,
        1,
        0,
    )
    assert all(guard.fault(later) for later in behind)
    name = guard.fault(metrics)
    assert name is not None
    findings = jax.device_get(run.diagnosis(run.state, source()))
    told = guard.describe(name, metrics, findings)
    expected = {
        "loss": ["the loss of the clean pass is inf"],
        "clean-gradient": [
            "the gradient norm of the clean pass is nan",
            "1 element(s) of it in w2",
        ],
        "perturbed-gradient": [
            "the gradient norm of the perturbed pass is nan",
            "1 element(s) of it in w2",
        ],
        "state": ["the model's state (its running statistics) is not finite"],
    }
    for part in expected[fault]:
        assert part in told
    if fault == "clean-gradient":
        assert "more of" not in told
    if fault == "perturbed-gradient":
        assert math.isfinite(metrics["loss"])
        assert math.isfinite(metrics["clean_grad_norm"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "fault"),
    [
        (AdamWConfig(name="adamw"), "loss"),
        pytest.param(SgdConfig(name="sgd", momentum=0.9), "state", marks=pytest.mark.slow),
    ],
)
def test_skipping_equals_a_run_that_leaves_that_update_out(optimizer, fault):
    settings = {"optimizer": optimizer, "on_nonfinite": "skip", "ema_decay": 0.5, "clip_norm": 1.0}
    # The good run is the same program up to the numbers of the steps: another one may round
    # otherwise.
    run, good = (Run(faulty_model(fault, at=at), **settings) for at in ((3, 6), (93, 96)))
    told = run.go(9)
    for step in range(9):
        if step in (
            3,
            6,
        ):  # nothing but the number of the step moves: batch and learning rate stay the step's own
            good.state = good.state._replace(step=good.state.step + 1)
        else:
            good.go(1)
    assert_same(snapshot(run.state), snapshot(good.state))
    assert int(run.state.step) == 9
    assert [int(metrics["skips_in_a_row"]) for metrics in told] == [0, 0, 0, 1, 0, 0, 1, 0, 0]
    assert [int(metrics["skipped_steps"]) for metrics in told] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    np.testing.assert_allclose(
        [metrics["lr"] for metrics in told], np.arange(9) / 20 * optimizer.lr, rtol=1e-5
    )


def test_skips_in_a_row_halt_at_the_limit_and_single_ones_never():
    run = Run(faulty_model("loss", at=(1, 2, 4, 5, 6)), on_nonfinite="skip", max_skips=3)
    run.go(6)
    assert (int(run.state.step), int(run.state.skips.in_a_row), int(run.state.skips.total)) == (
        6,
        2,
        4,
    )
    before = snapshot(run.state)
    run.go(3)
    assert_same(before, snapshot(run.state))
    assert (int(run.state.step), int(run.state.skips.in_a_row), int(run.state.skips.total)) == (
        6,
        3,
        4,
    )


@pytest.mark.slow
def test_a_good_run_is_the_same_whatever_the_guard_would_do():
    stops, skips = (Run(small_model(), on_nonfinite=way) for way in ("stop", "skip"))
    stops.go(4)
    skips.go(4)
    assert_same(snapshot(stops.state), snapshot(skips.state))


@pytest.mark.parametrize(
    ("is_plain", "clip_norm", "optimizer"),
    [
        (False, 1.0, AdamWConfig(name="adamw")),
        pytest.param(True, None, AdamWConfig(name="adamw"), marks=pytest.mark.slow),
        pytest.param(False, None, SgdConfig(name="sgd", momentum=0.9), marks=pytest.mark.slow),
    ],
)
def test_a_gradient_of_exactly_zero_is_no_fault(is_plain, clip_norm, optimizer):
    good = small_model()

    def flat(
        params: Any, state: Any, images: jax.Array, train: bool, key: Any
    ) -> tuple[jax.Array, Any]:
        logits, new_state = good.apply(params, state, images, train, key)
        return 0 * logits, new_state

    run = Run(Model(good.init, flat), is_plain=is_plain, clip_norm=clip_norm, optimizer=optimizer)
    before = jax.tree.map(np.array, run.state.params)
    for metrics in run.go(3):
        assert all(math.isfinite(value) for value in metrics.values())
        assert (metrics["grad_norm"], metrics["update_ratio"], metrics["surrogate_gap"]) == (
            0,
            0,
            0,
        )
        assert (metrics["clip_ratio"], metrics["skipped_steps"]) == (1, 0)
    assert_same(before, run.state.params)
    assert int(run.state.step) == 3


def test_what_overflows_float16_trains_in_bfloat16():
    """Logits, loss and gradient beyond 65504, float16's largest number: bfloat16 has float32's
    range.
    """
    good = small_model()

    def large(
        params: Any, state: Any, images: jax.Array, train: bool, key: Any
    ) -> tuple[jax.Array, Any]:
        logits, new_state = good.apply(params, state, images, train, key)
        return (1e6 * logits.astype(jnp.bfloat16)).astype(jnp.float32), new_state

    run = Run(Model(good.init, large))
    for metrics in run.go(3):
        assert metrics["skips_in_a_row"] == 0
        assert metrics["loss"] > 65504
        assert metrics["grad_norm"] > 65504
        assert math.isfinite(metrics["loss"])
    assert int(run.state.step) == 3


@pytest.mark.slow
def test_a_gradient_whose_square_overflows_is_a_fault_and_explained():
    good = small_model()

    @jax.custom_vjp
    def steep(x: jax.Array) -> jax.Array:
        return x

    steep.defvjp(lambda x: (x, None), lambda _, g: (1e25 * g,))

    def huge(
        params: Any, state: Any, images: jax.Array, train: bool, key: Any
    ) -> tuple[jax.Array, Any]:
        return good.apply({**params, "w2": steep(params["w2"])}, state, images, train, key)

    run = Run(Model(good.init, huge), optimizer=AdamWConfig(name="adamw"))
    (metrics,) = run.go(1)
    assert math.isfinite(metrics["loss"])
    name = guard.fault(metrics)
    assert name is not None
    told = guard.describe(name, metrics, jax.device_get(run.diagnosis(run.state, source())))
    assert told == (
        "the gradient norm of the clean pass is inf: its elements are finite, but not their "
        "squares in float32"
    )
