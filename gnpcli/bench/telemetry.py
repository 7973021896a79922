"""What a step's metrics, its guard and the statistics of an adaptive optimizer cost."""

from __future__ import annotations

from typing import Any

import jax
import optax

from gnpcli.bench.steps import random_images
from gnpcli.bench.timing import Notify, Step, Timed, interleave
from gnpcli.config.resolved import Resolved
from gnpcli.config.strategies import NONE
from gnpcli.data.feeds.base import FeedData
from gnpcli.devices.mesh import make_mesh, replicated
from gnpcli.devices.process import describe_environment
from gnpcli.engine.task import Task, build_task
from gnpcli.gnp import global_norm
from gnpcli.step.batch import step_batch
from gnpcli.step.gradient import make_value_and_grad
from gnpcli.step.optimizer import clip_by_norm
from gnpcli.step.state import TrainState, laid_out


def bench_telemetry(config: Resolved, *, rounds: int, steps: int, notify: Notify) -> dict[str, Any]:
    """Measure plain steps of `config` against bare ones, which tell their loss and guard nothing.

    Steps are plain, because telemetry then is the largest share of a step. Figures are medians over
    rounds as in `gnpcli.bench.steps.bench`.

    Returns:
        JSON-able: `environment`, the sizes, `step_ms` of a bare step, `step_over_bare` and
        `cpu_step_over_bare` (the same ratio in processor time, null but on a CPU), `statistics_ms`
        of the statistics of an adaptive optimizer (null where there are none), and
        `statistics_share`, of a bare step at the cadence of ``train.log_every_steps``.

    Raises:
        DataError: The shape of the data set is not known without its files, and they are missing.
    """
    config = config.replaced({"gr.strategy": NONE})
    task = build_task(config, *random_images(config), make_mesh(config))
    source = task.parts.feed.source(0)
    notify("compiling")
    bare = Timed([_bare_step(task)], task.init(), source)
    step = Timed([task.steps["plain"]], task.init(), source)
    kinds = [bare, step]
    statistics = None
    if task.statistics is not None:
        tell = task.statistics
        program = jax.jit(lambda state, _: (state, tell(state.opt_state)), donate_argnums=0)
        statistics = Timed([program], task.init(), source)
        kinds.append(statistics)
    interleave(kinds, rounds=rounds, steps=steps, notify=notify)
    every = config.train.log_every_steps
    return {
        "model": config.model.name,
        "batch_size": config.data.batch_size,
        "dtype": config.train.dtype,
        "devices": task.parts.mesh.size,
        "rounds": rounds,
        "steps_per_round": steps,
        "step_ms": 1e3 * bare.step_s,
        "step_over_bare": step.over(bare),
        "cpu_step_over_bare": step.cpu_over(bare),
        "log_every_steps": every,
        "statistics_ms": None if statistics is None else 1e3 * statistics.step_s,
        "statistics_share": 0.0 if statistics is None else statistics.over(bare) / every,
        "environment": describe_environment(),
    }


def _bare_step(task: Task) -> Step:
    """Build a plain train step without metrics and without a guard.

    `gnpcli.step.train.make_train_step` adds both.
    """
    config = task.config
    parts = task.parts
    value_and_grad = make_value_and_grad(parts, "plain", r=0.0, alpha=0.0)

    def step(state: TrainState, source: FeedData) -> tuple[TrainState, jax.Array]:
        images, labels, key = step_batch(state.key, state.step, parts.feed, source, parts.mesh)
        (loss, aux), grads, _ = value_and_grad(
            state.params, state.model_state, state.component, images, labels, key
        )
        if config.train.clip_norm is not None:
            grads = clip_by_norm(grads, global_norm(grads), config.train.clip_norm)
        directions, opt_state = parts.optimizer.update(grads, state.opt_state, state.params)
        rate = parts.lr(state.step)
        params = optax.apply_updates(
            state.params, jax.tree.map(lambda direction: -rate * direction, directions)
        )
        updated = state._replace(
            params=params, model_state=aux.model_state, opt_state=opt_state, step=state.step + 1
        )
        return laid_out(updated, parts.layout), loss

    return jax.jit(step, donate_argnums=0, out_shardings=(None, replicated(parts.mesh)))
