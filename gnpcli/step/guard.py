"""Steps that are not finite leave the state as it was.

The device itself sees them, so no host has to wait.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gnpcli.config.training import TrainConfig
from gnpcli.gnp.trees import joined, widest
from gnpcli.models.base import Params, State
from gnpcli.step.state import Skips, TrainState

WATCHED = {
    "loss": "the loss of the clean pass",
    "clean_grad_norm": "the gradient norm of the clean pass",
    "perturbed_loss": "the loss of the perturbed pass",
    "perturbed_grad_norm": "the gradient norm of the perturbed pass",
    "grad_norm": "the norm of the mixed gradient",
    "update_norm": "the norm of the update",
}
"""The metrics of a step that must be finite, and what they are.

They stand in the order in which a step computes them.
"""


def max_in_a_row(train: TrainConfig) -> int:
    """Return the number of faulty steps in a row at which a run stops."""
    return 1 if train.on_nonfinite == "stop" else train.max_skips


def is_finite(metrics: Mapping[str, Float[Array, ""]], model_state: State) -> Bool[Array, ""]:
    """Return whether a step can be trusted.

    A sum of squares overflows before its square root does, so a gradient norm beyond about 1.8e19
    counts as infinite. Its square would be, in the second moment of an adaptive optimizer.

    Args:
        metrics: The step's, those of `WATCHED` among them.
        model_state: What the step made of the model's state. A variance may overflow, and normalise
            everything to 0, without loss or gradient noticing.
    """
    leaves = jax.tree.leaves(model_state)
    floats = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    watched = [metrics[name] for name in WATCHED]
    # One reduction over all of them, as in `dot`: a network has hundreds of running statistics, and
    # all are small.
    values = joined([*watched, *floats], widest(floats))
    return jnp.all(jnp.isfinite(values))


def guarded(old: TrainState, new: TrainState, is_good: Bool[Array, ""], limit: int) -> TrainState:
    """Return `new` after a good step, and `old` after a faulty one.

    A skipped step counts as a step. It leaves parameters, model state, optimizer state and averages
    exactly as they were. The steps after it go on as if its update had never been, on their own
    batches and with their own learning rates.

    The `limit`-th faulty step in a row halts the state. That step does not count, and the steps
    that the host had dispatched behind it change nothing either. However late the host looks, it
    holds the state in which the faulty step began.

    Args:
        old: State before the step.
        new: State that the step would lead to.
        is_good: From `is_finite`.
        limit: At least 1; from `max_in_a_row`.
    """
    was_halted = old.skips.in_a_row >= limit
    counted = jnp.where(is_good, 0, old.skips.in_a_row + 1)
    in_a_row = jnp.where(was_halted, old.skips.in_a_row, counted)
    halts = in_a_row >= limit
    moves = is_good & ~was_halted
    kept: TrainState = jax.tree.map(lambda after, before: jnp.where(moves, after, before), new, old)
    total = jnp.where(moves | halts, old.skips.total, old.skips.total + 1)
    return kept._replace(
        step=jnp.where(halts, old.step, old.step + 1),
        key=old.key,
        skips=Skips(in_a_row, total),
    )


def fault(metrics: Mapping[str, float]) -> str | None:
    """Name what was not finite first in a step; None after a good step.

    Returns:
        A key of `WATCHED`, or ``model_state``.
    """
    if not metrics["skips_in_a_row"]:
        return None
    return next((name for name in WATCHED if not math.isfinite(metrics[name])), "model_state")


def describe(
    name: str, metrics: Mapping[str, float], findings: Mapping[str, Params] | None = None
) -> str:
    """Say what was not finite in a step, and where, if that is known.

    Args:
        name: From `fault`.
        metrics: The step's.
        findings: From `gnpcli.step.probes.make_diagnosis`: for each pass, how many elements of
            its gradient are not finite.
    """
    if name == "model_state":
        return "the model's state (its running statistics) is not finite"
    text = f"{WATCHED[name]} is {metrics[name]}"
    own_pass, _, what = name.partition("_")
    if what != "grad_norm" or findings is None or own_pass not in findings:
        return text
    return f"{text}{_where(findings[own_pass])}"


def _where(counts: Params) -> str:
    """Say in which parameters the gradient has elements that are not finite."""
    leaves = jax.tree_util.tree_leaves_with_path(counts)
    bad = [(path, int(count)) for path, count in leaves if count]
    if not bad:
        return ": its elements are finite, but not their squares in float32"
    path, count = bad[0]
    parameter = "/".join(str(entry.key) for entry in path)
    text = f", {count:,} element(s) of it in {parameter}"
    if len(bad) == 1:
        return text
    return f"{text} and in {len(bad) - 1} more of {len(leaves)} parameters"
