"""Steps that are not finite: seen on the device, so that no host has to wait; they leave the state
as it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gnpcli.config.schema import TrainConfig
from gnpcli.gnp.trees import joined, widest
from gnpcli.step.state import Skips, TrainState

WATCHED = {
    "loss": "the loss of the clean pass",
    "clean_grad_norm": "the gradient norm of the clean pass",
    "perturbed_loss": "the loss of the perturbed pass",
    "perturbed_grad_norm": "the gradient norm of the perturbed pass",
    "grad_norm": "the norm of the mixed gradient",
    "update_norm": "the norm of the update",
}
"""The metrics of a step that must be finite, in the order in which a step computes them, and what
they are.
"""


def max_in_a_row(train: TrainConfig) -> int:
    """Return the number of faulty steps in a row at which a run stops."""
    return 1 if train.on_nonfinite == "stop" else train.max_skips


def is_finite(metrics: Mapping[str, jax.Array], model_state: Any) -> jax.Array:
    """Return, as a bool scalar, whether a step can be trusted.

    A sum of squares overflows before its square root does, so a gradient beyond about 1.8e19 counts
    as infinite: its square would be, in the second moment of an adaptive optimizer.

    Args:
        metrics: The step's, those of `WATCHED` among them.
        model_state: What the step made of the model's state. A variance may overflow, and normalise
            everything to 0, without loss or gradient noticing.
    """
    floats = [
        leaf for leaf in jax.tree.leaves(model_state) if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    # One reduction over all of them, as in `dot`: a network has hundreds of running statistics, and
    # all are small.
    values = joined([*(metrics[name] for name in WATCHED), *floats], widest(floats))
    return jnp.all(jnp.isfinite(values))


def guarded(old: TrainState, new: TrainState, is_good: jax.Array, limit: int) -> TrainState:
    """Return `new` after a good step; after a faulty one `old` with the step counted, or with
    nothing counted at all.

    A skipped step leaves parameters, model state, optimizer state and averages exactly as they
    were, so the steps after it go on as if its update had never been, on their own batches and
    their own learning rates. The `limit`-th faulty step in a row halts the state: its step does not
    count, and whatever steps the host had dispatched behind it change nothing either. The host so
    holds, however late it looks, the state in which the faulty step began.

    Args:
        old: State before the step.
        new: State that the step would lead to.
        is_good: From `is_finite`.
        limit: At least 1; from `max_in_a_row`.
    """
    was_halted = old.skips.in_a_row >= limit
    in_a_row = jnp.where(
        was_halted, old.skips.in_a_row, jnp.where(is_good, 0, old.skips.in_a_row + 1)
    )
    halts, moves = in_a_row >= limit, is_good & ~was_halted
    kept: TrainState = jax.tree.map(lambda after, before: jnp.where(moves, after, before), new, old)
    return kept._replace(
        step=jnp.where(halts, old.step, old.step + 1),
        key=old.key,
        skips=Skips(in_a_row, jnp.where(moves | halts, old.skips.total, old.skips.total + 1)),
    )


def fault(metrics: Mapping[str, float]) -> str | None:
    """Name the metric that says so first; None after a good step. The key is one of `WATCHED`, or
    ``model_state``.
    """
    if not metrics["skips_in_a_row"]:
        return None
    return next((name for name in WATCHED if not math.isfinite(metrics[name])), "model_state")


def describe(
    name: str, metrics: Mapping[str, float], findings: Mapping[str, Any] | None = None
) -> str:
    """Say what was not finite in a step, and where, if that is known.

    Args:
        name: From `fault`.
        metrics: The step's.
        findings: For each pass the number of elements of its gradient that are not finite, a tree
            like the parameters.
    """
    if name == "model_state":
        return "the model's state (its running statistics) is not finite"
    text = f"{WATCHED[name]} is {metrics[name]}"
    kind, _, what = name.partition("_")
    if what != "grad_norm" or findings is None or kind not in findings:
        return text
    counts = jax.tree_util.tree_leaves_with_path(findings[kind])
    bad = [("/".join(str(key.key) for key in path), int(count)) for path, count in counts if count]
    if not bad:
        return f"{text}: its elements are finite, but not their squares in float32"
    more = f" and in {len(bad) - 1} more of {len(counts)} parameters" if len(bad) > 1 else ""
    return f"{text}, {bad[0][1]:,} element(s) of it in {bad[0][0]}{more}"
