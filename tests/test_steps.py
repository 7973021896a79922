"""The train and evaluation steps: what acts on which gradient, what comes from which pass, and
bit-identity.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gnpcli.config.optimizers import SgdConfig
from gnpcli.config.resolved import Resolved, ResolvedGr
from gnpcli.config.schedules import ConstantConfig
from gnpcli.config.training import TrainConfig
from gnpcli.devices.mesh import make_mesh, replicated
from gnpcli.gnp import global_norm
from gnpcli.models.base import Model
from gnpcli.recipes.presets import resolve
from gnpcli.step.evaluate import make_eval_step
from gnpcli.step.gradient import make_value_and_grad
from gnpcli.step.losses import cross_entropy, zero_sums
from gnpcli.step.optimizer import build_optimizer
from gnpcli.step.parts import Parts, build_parts
from gnpcli.step.programs import TrainStep
from gnpcli.step.schedules import GrSchedule, Horizon, StepKind, gr_schedule, lr_schedule
from gnpcli.step.state import TrainState, init_state
from gnpcli.step.train import make_train_step
from tests.feeds import GivenEvalFeed, GivenFeed
from tests.programs import compilations, flops_of

CLASSES, SIDE = 4, 3
HORIZON = Horizon(steps_per_epoch=5, epochs=2)


class FixedFeed(GivenFeed):
    """The same random batch at every step."""

    steps_per_epoch = 5

    def batch(
        self, source: Any, step_in_epoch: jax.Array | int, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        return source["images"], source["labels"]


def source(count: int = 8) -> dict[str, jax.Array]:
    images = jax.random.normal(jax.random.key(5), (count, SIDE, SIDE, 1))
    return {
        "images": images,
        "labels": jnp.arange(count, dtype=jnp.int32) % CLASSES,
        "mask": jnp.arange(count) < count - 3,
    }


def small_model(dropout: float = 0.0, seen: list[Any] | None = None) -> Model:
    """A small network with a bias, running statistics of its hidden layer, and optional dropout."""

    def init(key: jax.Array, image_shape: tuple[int, int, int]) -> tuple[Any, Any]:
        size = int(np.prod(image_shape))
        first, second = jax.random.split(key)
        params = {
            "w1": jax.random.normal(first, (size, 6)) / 3,
            "b1": jnp.full(6, 0.1, jnp.float32),
            "w2": jax.random.normal(second, (6, CLASSES)) / 3,
        }
        return params, {"mean": jnp.zeros(6, jnp.float32)}

    def apply(
        params: Any, state: Any, images: jax.Array, train: bool, key: jax.Array | None
    ) -> tuple[jax.Array, Any]:
        hidden = jnp.tanh(
            images.reshape(images.shape[0], -1) @ params["w1"] + params["b1"][None, :]
        )
        if not train:
            return hidden @ params["w2"], state
        new_state = {"mean": 0.9 * state["mean"] + 0.1 * hidden.mean(0)}
        if dropout:
            assert key is not None
            keep = jax.random.bernoulli(key, 1 - dropout, hidden.shape)
            if seen is not None:
                jax.debug.callback(lambda mask: seen.append(np.array(mask)), keep)
            hidden = jnp.where(keep, hidden / (1 - dropout), 0.0)
        return hidden @ params["w2"], new_state

    return Model(init=init, apply=apply)


def build(
    model: Model | None = None,
    *,
    kind: StepKind = "gnp",
    gr: dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
    optimizer: dict[str, Any] | None = None,
) -> tuple[TrainState, TrainStep]:
    """A state and a jitted step on one device, with SGD at a constant rate of 0.5."""
    model = model or small_model()
    train_config = TrainConfig(**{"epochs": 2, **(train or {})})
    gr_config = ResolvedGr(
        **{"strategy": "constant", "r": 0.1, "alpha": 0.8, "warmup_epochs": 0.0, **(gr or {})}
    )
    lr = lr_schedule(ConstantConfig(name="constant"), 0.5, HORIZON)
    chain = build_optimizer(
        SgdConfig(**{"name": "sgd", "momentum": 0.0, **(optimizer or {})}), train_config
    )
    config = resolve(None, ["mesh.devices=1"])
    parts = Parts(
        model=model,
        feed=FixedFeed(),
        optimizer=chain,
        train=train_config,
        gr=gr_config,
        schedule=gr_schedule(gr_config, HORIZON, 0),
        lr=lr,
        mesh=make_mesh(config),
    )
    step = make_train_step(parts, kind)
    return init_state(
        model, (SIDE, SIDE, 1), chain, seed=0, reuses=gr_config.between == "reuse"
    ), step


def objective(params: Any, train: TrainConfig | None = None) -> jax.Array:
    logits, _ = small_model().apply(params, {"mean": jnp.zeros(6)}, source()["images"], False, None)
    return cross_entropy(logits, source()["labels"]).mean()


def snapshot(state: TrainState) -> Any:
    return jax.tree.map(np.array, (state.params, state.model_state))


def assert_same(left: Any, right: Any) -> None:
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(a, b)


def gnp_by_hand(params: Any, r: float, alpha: float, loss: Any = objective) -> Any:
    clean = jax.grad(loss)(params)
    norm = optax.tree.norm(clean)
    perturbed = jax.grad(loss)(jax.tree.map(lambda p, g: p + r / norm * g, params, clean))
    return jax.tree.map(lambda c, p: (1 - alpha) * c + alpha * p, clean, perturbed)


def test_a_step_is_gradient_descent_on_the_mixed_gradient():
    state, step = build()
    params = state.params
    expected = jax.tree.map(lambda p, g: p - 0.5 * g, params, gnp_by_hand(params, 0.1, 0.8))
    new, metrics = step(state, source())
    for a, b in zip(jax.tree.leaves(new.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert int(new.step) == 1
    rates = [float(metrics[name]) for name in ("lr", "r", "alpha")]
    assert rates == [0.5, np.float32(0.1), np.float32(0.8)]


@pytest.mark.parametrize("gr", [{"alpha": 0.0}, {"r": 0.0, "alpha": 0.0}, {"strategy": "none"}])
def test_without_strength_parameters_are_bit_identical_to_plain_training(gr):
    plain_state, plain = build(kind="plain")
    section = ResolvedGr(**{"strategy": "constant", "r": 0.1, "alpha": 0.8} | gr)
    state, step = build(gr=gr, kind=gr_schedule(section, HORIZON, 0).kinds[0])
    for _ in range(4):
        plain_state, _ = plain(plain_state, source())
        state, metrics = step(state, source())
    assert_same(snapshot(plain_state), snapshot(state))
    assert (float(metrics["r"]), float(metrics["alpha"])) == (0, 0)
    assert float(metrics["grad_cosine"]) == 1
    assert float(metrics["perturbed_loss"]) == float(metrics["loss"])


@pytest.mark.parametrize("strategy", ["lambda-warmup", "r-warmup"])
def test_the_first_step_of_a_warmup_is_the_plain_one(strategy):
    plain_state, plain = build(kind="plain")
    state, step = build(gr={"strategy": strategy, "warmup_epochs": 1.0})
    plain_state, _ = plain(plain_state, source())
    state, _ = step(state, source())
    for a, b in zip(
        jax.tree.leaves(snapshot(plain_state)), jax.tree.leaves(snapshot(state)), strict=True
    ):
        np.testing.assert_allclose(
            a, b, rtol=1e-6, atol=1e-8
        )  # two programs: equal up to reassociation


def test_model_state_comes_from_the_clean_pass():
    plain_state, plain = build(kind="plain")
    state, step = build(gr={"r": 5.0})
    plain_state, _ = plain(plain_state, source())
    state, metrics = step(state, source())
    assert float(metrics["perturbed_loss"]) > float(metrics["loss"]) + 0.5
    np.testing.assert_allclose(
        state.model_state["mean"], plain_state.model_state["mean"], rtol=1e-6
    )


def test_both_passes_see_the_same_dropout_and_each_step_its_own():
    seen: list[Any] = []
    state, step = build(small_model(dropout=0.5, seen=seen))
    for _ in range(2):
        state, _ = step(state, source())
    jax.effects_barrier()
    masks = {mask.tobytes() for mask in seen}
    assert len(seen) == 4
    assert len(masks) == 2


def test_clipping_acts_on_the_mixed_gradient_and_the_logged_norms_are_unclipped():
    clip = 0.05
    state, step = build(train={"clip_norm": clip})
    params = jax.tree.map(jnp.copy, state.params)
    mixed = gnp_by_hand(params, 0.1, 0.8)
    norm = float(optax.tree.norm(mixed))
    assert norm > 2 * clip
    new, metrics = step(state, source())
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    np.testing.assert_allclose(
        metrics["clean_grad_norm"], optax.tree.norm(jax.grad(objective)(params)), rtol=1e-5
    )
    np.testing.assert_allclose(metrics["update_norm"], 0.5 * clip, rtol=1e-5)
    moved = jax.tree.map(jnp.subtract, params, new.params)
    for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(mixed), strict=True):
        np.testing.assert_allclose(a, 0.5 * clip / norm * b, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("biases", [False, True])
def test_l2_is_in_the_objective_of_both_passes_once(biases):
    l2 = 0.3

    def penalised(params):
        leaves = jax.tree.leaves(params) if biases else [params["w1"], params["w2"]]
        return objective(params) + 0.5 * l2 * sum(jnp.sum(leaf**2) for leaf in leaves)

    state, step = build(train={"l2": l2, "decay_biases_and_norms": biases})
    params = jax.tree.map(jnp.copy, state.params)
    new, metrics = step(state, source())
    expected = jax.tree.map(
        lambda p, g: p - 0.5 * g, params, gnp_by_hand(params, 0.1, 0.8, penalised)
    )
    for a, b in zip(jax.tree.leaves(new.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"], penalised(params), rtol=1e-5)
    np.testing.assert_allclose(metrics["cross_entropy"], objective(params), rtol=1e-5)


def test_l2_outside_the_penalty_enters_the_mixed_gradient_once():
    l2 = 0.3

    def decay(params):
        return 0.5 * l2 * (jnp.sum(params["w1"] ** 2) + jnp.sum(params["w2"] ** 2))

    state, step = build(train={"l2": l2}, gr={"penalize_l2": False})
    params = jax.tree.map(jnp.copy, state.params)
    new, metrics = step(state, source())
    expected = jax.tree.map(
        lambda p, g, d: p - 0.5 * (g + d),
        params,
        gnp_by_hand(params, 0.1, 0.8),
        jax.grad(decay)(params),
    )
    for a, b in zip(jax.tree.leaves(new.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    clean = jax.grad(objective)(params)
    np.testing.assert_allclose(metrics["loss"], objective(params) + decay(params), rtol=1e-5)
    np.testing.assert_allclose(metrics["clean_grad_norm"], optax.tree.norm(clean), rtol=1e-5)
    norm = optax.tree.norm(clean)
    at = jax.tree.map(lambda p, g: p + 0.1 / norm * g, params, clean)
    np.testing.assert_allclose(metrics["perturbed_loss"], objective(at) + decay(params), rtol=1e-5)


@pytest.mark.parametrize(
    ("gr", "t_of"),
    [
        (
            {"ascent": "adaptive", "adaptive_eta": 0.2},
            lambda p: {"w1": abs(p["w1"]) + 0.2, "b1": 1.0, "w2": abs(p["w2"]) + 0.2},
        ),
        (
            {"ascent": "adaptive", "adapt_biases_and_norms": True, "perturb": "?1"},
            lambda p: {"w1": abs(p["w1"]) + 0.01, "b1": abs(p["b1"]) + 0.01, "w2": 0.0},
        ),
        ({"perturb": "w*"}, lambda p: {"w1": 1.0, "b1": 0.0, "w2": 1.0}),
    ],
)
def test_the_configured_ball_reaches_the_step(gr, t_of):
    state, step = build(gr=gr)
    params = jax.tree.map(jnp.copy, state.params)
    t, clean = t_of(params), jax.grad(objective)(params)
    slope = optax.tree.norm({name: t[name] * clean[name] for name in clean})
    at = {name: params[name] + 0.1 * t[name] ** 2 * clean[name] / slope for name in params}
    mixed = jax.tree.map(lambda c, p: 0.2 * c + 0.8 * p, clean, jax.grad(objective)(at))
    new, metrics = step(state, source())
    for name in params:
        np.testing.assert_allclose(
            new.params[name], params[name] - 0.5 * mixed[name], rtol=1e-5, atol=1e-6
        )
    np.testing.assert_allclose(metrics["perturbed_loss"], objective(at), rtol=1e-5)


def test_a_reuse_step_adds_what_the_last_penalised_one_kept():
    """LookSAM with a GNP mix and L2 outside: the component is of the penalised gradient alone."""
    options: dict[str, Any] = {
        "gr": {"every": 5, "between": "reuse", "reuse_weight": 0.5, "penalize_l2": False},
        "train": {"l2": 0.3},
    }

    def decay_grads(params):
        return {"w1": 0.3 * params["w1"], "b1": 0.0, "w2": 0.3 * params["w2"]}

    state, step = build(**options)
    clean, mixed = jax.grad(objective)(state.params), gnp_by_hand(state.params, 0.1, 0.8)
    share = optax.tree.vdot(mixed, clean) / optax.tree.norm(clean) ** 2
    component = jax.tree.map(lambda m, c: m - share * c, mixed, clean)
    state, _ = step(state, source())
    for name, leaf in component.items():
        np.testing.assert_allclose(state.component[name], leaf, rtol=1e-3, atol=1e-5)

    _, reuse_step = build(kind="reuse", **options)
    params, kept = jax.tree.map(np.array, (state.params, state.component))
    clean = jax.grad(objective)(params)
    scale = 0.5 * 0.8 * optax.tree.norm(clean) / optax.tree.norm(kept)
    state, metrics = reuse_step(state, source())
    for name in params:
        step_by_hand = clean[name] + scale * kept[name] + decay_grads(params)[name]
        np.testing.assert_allclose(
            state.params[name], params[name] - 0.5 * step_by_hand, rtol=1e-4, atol=1e-6
        )
        np.testing.assert_array_equal(state.component[name], kept[name])
    assert [float(metrics[name]) for name in ("r", "alpha")] == [0, np.float32(0.8)]


def gradient(gr=None, kind="gnp", size=24, **changes):
    """Value, gradient and metrics of a batch with one configuration of groups and microbatches."""
    keys = {f"gr.{key}": value for key, value in (gr or {}).items()}
    config = resolve(
        None,
        ["mesh.devices=1", "gr.strategy=none", f"data.batch_size={size}"]
        + [f"{key}={value}" for key, value in (keys | changes).items()],
    )
    model, batch = small_model(), source(size)
    params, model_state = model.init(jax.random.key(0), (SIDE, SIDE, 1))
    parts = build_parts(config, model, FixedFeed(), make_mesh(config))
    value_and_grad = make_value_and_grad(parts, kind, r=jnp.float32(0.1), alpha=jnp.float32(0.8))
    result = jax.jit(value_and_grad)(
        params, model_state, {}, batch["images"], batch["labels"], jax.random.key(1)
    )
    return params, result


@pytest.mark.parametrize("kind", ["plain", "gnp"])
@pytest.mark.parametrize("exact", [False, True])
def test_accumulation_changes_nothing_but_the_memory(kind, exact):
    """The model has no BatchNorm and no dropout: cross-entropy, norms and mixed gradient are those
    of the whole.
    """
    form = {"gradient": "exact" if exact else "finite-difference"}
    _, whole = gradient(form, kind)
    _, cut = gradient(form, kind, **{"train.accumulate": 4})
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(cut), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)


def test_groups_are_consecutive_rows_with_a_perturbation_each():
    params, ((loss, _), grads, metrics) = gradient({"groups": 3})
    batch = source(24)

    def loss_of(rows):
        def of_group(params):
            logits, _ = small_model().apply(
                params, {"mean": jnp.zeros(6)}, batch["images"][rows], False, None
            )
            return cross_entropy(logits, batch["labels"][rows]).mean()

        return of_group

    losses = [loss_of(slice(8 * number, 8 * (number + 1))) for number in range(3)]
    expected = [gnp_by_hand(params, 0.1, 0.8, of_group) for of_group in losses]
    for name in params:
        np.testing.assert_allclose(
            grads[name], sum(tree[name] for tree in expected) / 3, rtol=1e-4, atol=1e-6
        )
    norms = [optax.tree.norm(jax.grad(of_group)(params)) for of_group in losses]
    np.testing.assert_allclose(metrics.clean_grad_norm, sum(norms) / 3, rtol=1e-5)
    np.testing.assert_allclose(
        loss, sum(float(of_group(params)) for of_group in losses) / 3, rtol=1e-5
    )


def test_microbatches_of_a_group_share_its_perturbation():
    _, (_, groups, _) = gradient({"groups": 2})
    _, (_, microbatches, _) = gradient({"groups": 2}, **{"train.accumulate": 4})
    _, (_, finer, _) = gradient({"groups": 4})
    for name in groups:
        np.testing.assert_allclose(microbatches[name], groups[name], rtol=1e-4, atol=1e-6)
    assert float(optax.tree.norm(jax.tree.map(jnp.subtract, finer, groups))) > 1e-3


def test_decoupled_decay_is_in_no_loss():
    state, step = build(optimizer={"weight_decay": 0.3}, kind="plain")
    params = jax.tree.map(jnp.copy, state.params)
    new, metrics = step(state, source())
    grads = jax.grad(objective)(params)
    np.testing.assert_allclose(
        new.params["w1"],
        params["w1"] - 0.5 * (grads["w1"] + 0.3 * params["w1"]),
        rtol=1e-5,
        atol=1e-6,
    )
    np.testing.assert_allclose(new.params["b1"], params["b1"] - 0.5 * grads["b1"], rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], objective(params), rtol=1e-6)


def test_smoothing_is_in_the_training_loss_and_not_in_the_logged_cross_entropy():
    state, step = build(train={"label_smoothing": 0.5}, kind="plain")
    params = jax.tree.map(jnp.copy, state.params)
    logits, _ = small_model().apply(params, {"mean": jnp.zeros(6)}, source()["images"], False, None)
    _, metrics = step(state, source())
    np.testing.assert_allclose(
        metrics["loss"], cross_entropy(logits, source()["labels"], 0.5).mean(), rtol=1e-6
    )
    np.testing.assert_allclose(metrics["cross_entropy"], objective(params), rtol=1e-6)
    assert abs(float(metrics["loss"]) - float(metrics["cross_entropy"])) > 0.01


def test_logged_norms_and_rates_are_those_of_the_step_itself():
    state, step = build(gr={"strategy": "r-warmup", "warmup_epochs": 1.0})
    for number in range(3):
        before = jax.tree.map(np.array, state.params)
        state, metrics = step(state, source())
        moved = jax.tree.map(lambda a, b: jnp.asarray(a) - b, state.params, before)
        np.testing.assert_allclose(metrics["update_norm"], global_norm(moved), rtol=1e-3)
        np.testing.assert_allclose(metrics["r"], 0.1 * number / 5, rtol=1e-6)


def test_a_step_depends_on_seed_and_step_number_alone():
    class NoisyFeed(FixedFeed):
        def batch(
            self, source: Any, step_in_epoch: jax.Array | int, key: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            return source["images"] + jax.random.normal(key, source["images"].shape), source[
                "labels"
            ]

    model, config = small_model(dropout=0.5), resolve(None, ["mesh.devices=1"])
    train, gr = TrainConfig(epochs=2), ResolvedGr(strategy="constant", r=0.1, alpha=0.8)
    lr = lr_schedule(ConstantConfig(name="constant"), 0.5, HORIZON)
    chain = build_optimizer(SgdConfig(name="sgd"), train)

    def run(seed: int, steps: int, state: TrainState | None = None) -> TrainState:
        parts = Parts(
            model=model,
            feed=NoisyFeed(),
            optimizer=chain,
            train=train,
            gr=gr,
            schedule=gr_schedule(gr, HORIZON, 0),
            lr=lr,
            mesh=make_mesh(config),
        )
        step = make_train_step(parts, "gnp")
        state = state if state is not None else init_state(model, (SIDE, SIDE, 1), chain, seed)
        for _ in range(steps):
            state, _ = step(state, source())
        return state

    whole = run(3, 6)
    assert_same(snapshot(whole), snapshot(run(3, 3, run(3, 3))))
    assert not np.array_equal(whole.params["w1"], run(4, 6).params["w1"])


def test_the_state_is_donated_and_no_step_recompiles():
    state, step = build(gr={"strategy": "lambda-warmup", "warmup_epochs": 1.0})
    state = jax.device_put(state, replicated(make_mesh(resolve(None, ["mesh.devices=1"]))))
    for _ in range(6):
        old, (state, _) = state, step(state, source())
        assert old.params["w1"].is_deleted()
    assert compilations(step) == 1


def test_evaluation_masks_padding_and_sees_neither_smoothing_nor_l2():
    model, config = small_model(dropout=0.5), resolve(None, ["mesh.devices=1"])
    params, model_state = model.init(jax.random.key(0), (SIDE, SIDE, 1))
    step = make_eval_step(model, GivenEvalFeed(), make_mesh(config))
    sums = step(zero_sums(), params, model_state, source(), np.int32(0))
    logits, _ = model.apply(params, model_state, source()["images"], False, None)
    losses = np.asarray(cross_entropy(logits, source()["labels"]))
    assert int(sums.num_examples) == 5
    np.testing.assert_allclose(sums.loss, losses[:5].sum(), rtol=1e-6)
    assert int(sums.errors) == int(
        (np.asarray(logits).argmax(-1) != np.asarray(source()["labels"]))[:5].sum()
    )


def test_the_plain_step_costs_one_pass():
    flops = []
    kinds: tuple[StepKind, ...] = ("plain", "gnp")
    for kind in kinds:
        state, step = build(kind=kind)
        flops.append(flops_of(step.lower(state, source())))
    assert flops[0] < 0.7 * flops[1]


def test_schedules_reach_the_step_through_the_run_configuration():
    config: Resolved = resolve("vit-s-cifar10-zero-warmup", ["train.epochs=50"])
    schedule: GrSchedule = gr_schedule(config.gr, Horizon(195, config.train.epochs), 0)
    assert schedule.plain_steps == 40 * 195
